"""Compare restyling with and without shared attention on held-out procedural scenes.

Depth and poses are exact. Both runs of a scene have the same prompt, noise and settings. The ratio of sharpnesses must
be read with the ratio of warp errors, because blurring also makes views consistent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.procedural.raytracer import render
from eschernet_prior.procedural.scenes import random_scene
from style_nerf2nerf.embedded.data import HELD_OUT, scene_cameras
from style_nerf2nerf.evaluation.consistency import RANGES, Distance, neighbours, outlines, sharpness, warp_error
from style_nerf2nerf.evaluation.likeness import StyleClassifier, compare_with_truth, painted_truth
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.restyler import Restyler

WAYS = {"shared": True, "alone": False}
"""Whether the views share attention, by name."""


@dataclass(frozen=True)
class HeldOutScene:
    """Some views of a procedural scene."""

    photos: Float[Tensor, "views 3 size size"]
    """In [0, 1]."""
    depths: Float[Tensor, "views 1 size size"]
    """Exact z-depth, 0 without a surface."""
    cameras: ViewCameras


def held_out_scene(index: int, views: int, size: int) -> HeldOutScene:
    """Render one of the held-out scenes; every second one has a ground and a sky."""
    number = HELD_OUT + index
    poses, fov = scene_cameras(number, views)
    seen = render(random_scene(number, background=index % 2 == 1), poses, size, size, fov, supersampling=2)
    cameras = ViewCameras.from_fov(poses, fov, size, size)
    return HeldOutScene(seen.colour.movedim(-1, 1), seen.depth.movedim(-1, 1), cameras)


def measure(
    images: Float[Tensor, "views 3 size size"], scene: HeldOutScene, lpips: Distance | None = None
) -> dict[str, float]:
    """Compute warp errors, sharpness and outlines of pictures of a scene, by names such as `short_rmse`."""
    found = outlines(images, scene.depths)
    measured = {"sharpness": float(sharpness(images).mean()), "outlines": math.nan if found is None else found}
    for name, place in RANGES.items():
        error = warp_error(images, scene.depths, scene.cameras, neighbours(scene.cameras, place), lpips).as_json()
        measured |= {f"{name}_{metric}": value for metric, value in error.items() if metric != "pairs"}
    return measured


@dataclass(frozen=True)
class Comparison:
    """Scores of all scenes in all styles."""

    scores: dict[str, dict[str, dict[str, float]]]
    """Means over scenes by style (`photo`: the photos themselves), way (`shared`, `alone`) and metric."""

    def mean(self, way: str) -> dict[str, float]:
        """Means over styles."""
        ways = [by_way[way] for style, by_way in self.scores.items() if style != "photo"]
        return {metric: _mean(scores[metric] for scores in ways) for metric in ways[0]}

    def ratios(self, style: str | None = None) -> dict[str, float]:
        """Each metric with sharing divided by that without, for a style or for the means over styles."""
        shared, alone = (self.mean(way) if style is None else self.scores[style][way] for way in WAYS)
        return {metric: shared[metric] / max(alone[metric], 1e-12) for metric in shared}


def compare(
    restyler: Restyler,
    styles: Sequence[str],
    scenes: int = 8,
    views: int = 4,
    size: int = 128,
    lpips: Distance | None = None,
    classifier: StyleClassifier | None = None,
    on_done: Callable[[int, str, dict[str, Float[Tensor, "views 3 size size"]]], None] | None = None,
    **settings: float | int,
) -> Comparison:
    """Restyle held-out scenes with and without shared attention, and measure both.

    Args:
        restyler: The models.
        styles: Names of `Restyler.known_styles`.
        scenes: Number of scenes.
        views: Neighbouring views of each scene.
        size: Height and width in pixels.
        lpips: Function for LPIPS; None to omit it.
        classifier: Classifier of styles; None to omit the comparison with painted truth.
        on_done: Called with a scene's index, a style, and the pictures by name: `photo`, `shared`, `alone`,
            `truth`.
        settings: Arguments of `Restyler.restyle`; the seed is the scene's index.

    Returns:
        The means over scenes.
    """
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for index in range(scenes):
        scene = held_out_scene(index, views, size)
        own = measured.setdefault("photo", {way: [] for way in WAYS})
        for way in WAYS:
            own[way].append(measure(scene.photos, scene, lpips))
        truth = painted_truth(HELD_OUT + index, index % 2 == 1, views, size, styles) if classifier else {}
        for style in styles:
            made = {"photo": scene.photos}
            for way, share in WAYS.items():
                made[way] = restyler.restyle(
                    scene.photos,
                    scene.depths,
                    Restyler.known_styles[style],
                    cameras=scene.cameras,
                    share_attention=share,
                    seed=index,
                    **settings,  # pyright: ignore[reportArgumentType]
                )
                by_way = measured.setdefault(style, {way: [] for way in WAYS})
                scores = measure(made[way], scene, lpips)
                if classifier:
                    likeness = asdict(compare_with_truth(made[way], truth[style]))
                    likeness["like_truth_sharpness"] = likeness.pop("sharpness")
                    named = [name == style for name in classifier(made[way])]
                    scores |= {**likeness, "named": sum(named) / len(named)}
                by_way[way].append(scores)
            if truth:
                made |= {"truth": truth[style][0]}
            if on_done:
                on_done(index, style, made)
    return Comparison(
        {
            style: {way: {name: _mean(one[name] for one in each) for name in each[0]} for way, each in ways.items()}
            for style, ways in measured.items()
        }
    )


def _mean(numbers: Iterable[float]) -> float:
    """The mean of the numbers that are not NaN."""
    known = [number for number in numbers if not math.isnan(number)]
    return fmean(known) if known else math.nan


def sheet_row(
    made: dict[str, Float[Tensor, "views 3 size size"]], views: int = 2
) -> Float[Tensor, "tiles 3 size size"]:
    """Arrange one row of a sheet: photo, restyled together, restyled alone, and the painted truth if it was made."""
    return torch.cat([made[name][:views] for name in ("photo", *WAYS, "truth") if name in made])
