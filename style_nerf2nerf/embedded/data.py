"""Training scenes of the embedded restyler: a few views each, as photo and in some of the procedural styles.

On disk: a folder of shards, one safetensors file each, written whole or not at all. Axes of a shard's tensors:

- `photo`: scenes views 3 height width, uint8
- `depth`: scenes views 1 height width, float16 in [0, 1]: what the ControlNet reads (see `restyler.depths`)
- `guides`: scenes views channels height width, uint8: what it sees of patterns (see `restyler.guides`)
- `rough_guides`: the same from uneven depth, as a field has it
- `styled`: scenes painted views 3 height width, uint8; each scene in one variation of a few of the styles
- `style`: scenes painted, int64 indices into `STYLE_NAMES`
- `pair`: scenes painted 2, int64 indices into `COLOUR_NAMES`; of a style that takes colours, which
- `mood`: scenes painted, int64 indices into `colours.MOODS`

A scene is fixed by its number: the same number always gives the same pictures, and the numbers from `HELD_OUT` on are
never trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base import cameras
from eschernet_prior.base.files import atomic_path
from eschernet_prior.procedural.raytracer import render
from eschernet_prior.procedural.scenes import random_scene
from style_nerf2nerf.embedded.colours import COLOURS, MOODS, PAIRS, StyleVariation, draw_variation
from style_nerf2nerf.embedded.styles import PAINTED, STYLES, paint
from style_nerf2nerf.embedded.surface import observe
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.depths import clean_depths, control_pictures
from style_nerf2nerf.restyler.guides import guide_pictures

STYLE_NAMES = tuple(STYLES)
COLOUR_NAMES = tuple(COLOURS)
HELD_OUT = 1_000_000
"""Scene numbers from here on are never trained on."""
SUPERSAMPLING = 2
"""Factor by which scenes are rendered and painted larger, and then averaged."""


def scene_cameras(number: int, views: int) -> tuple[Float[Tensor, "views 4 4"], float]:
    """Camera-to-world matrices of neighbouring views, and the field of view across the width in degrees."""
    rng = random.Random(number)  # noqa: S311
    start, step = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(12, 50))
    elevation, radius = rng.uniform(5, 50), rng.uniform(1.5, 2.2)
    azimuth = start + step * torch.arange(views, dtype=torch.float64)
    heights = elevation + torch.tensor([rng.uniform(-8, 8) for _ in range(views)], dtype=torch.float64)
    places = cameras.on_sphere(torch.full_like(azimuth, radius), heights, azimuth)
    return cameras.look_at(places).float(), rng.uniform(40, 56)


def own_variation(style: str, number: int) -> StyleVariation:
    """The default variation of a scene: the colours of the style's prompt, and a mood by its number."""
    return StyleVariation(STYLES[style].pair or PAIRS[0], random.Random(number + 2).randrange(len(MOODS)))  # noqa: S311


def paint_scene(
    number: int,
    views: int,
    size: int,
    styles: tuple[str, ...],
    background: bool | None = None,
    variations: Mapping[str, StyleVariation] | None = None,
) -> dict[str, Tensor]:
    """One scene as photo, depth control and in the given styles; the keys and axes of a shard without `scenes`.

    Args:
        number: Number of the scene, which seeds everything.
        views: Number of neighbouring views.
        size: Height and width in pixels.
        styles: Names of the styles to paint it in.
        background: Ground and sky, or an object on white; drawn from the number if None.
        variations: The variation of each style; default: `own_variation`.
    """
    if background is None:
        background = random.Random(number + 1).random() < 0.5  # noqa: S311
    large = size * SUPERSAMPLING
    poses, fov = scene_cameras(number, views)
    rendered = render(random_scene(number, background=background), poses, large, large, fov, supersampling=1)
    surface = observe(rendered.colour, rendered.depth, rendered.normal, poses, fov, SUPERSAMPLING)
    chosen = [(variations or {}).get(style) or own_variation(style, number) for style in styles]
    painted = [_shrink(paint(style, surface, variation), size) for style, variation in zip(styles, chosen)]
    depth = rendered.depth.movedim(-1, 1)[:, :, ::SUPERSAMPLING, ::SUPERSAMPLING]
    lenses = ViewCameras.from_fov(poses, fov, size, size)
    cleaned, inside = clean_depths(depth)
    guides, rough_guides = (
        (guide_pictures(each, inside, lenses) * 255).round().to(torch.uint8)
        for each in (cleaned, _uneven(cleaned, number))
    )
    pairs = [[COLOUR_NAMES.index(name) for name in variation.pair] for variation in chosen]
    return {
        "photo": _shrink(rendered.colour, size),
        "depth": control_pictures(depth)[:, :1].half(),
        "guides": guides,
        "rough_guides": rough_guides,
        "styled": torch.stack(painted) if painted else torch.empty(0, views, 3, size, size, dtype=torch.uint8),
        "style": torch.tensor([STYLE_NAMES.index(style) for style in styles], dtype=torch.int64),
        "pair": torch.tensor(pairs, dtype=torch.int64).view(len(styles), 2),
        "mood": torch.tensor([variation.mood for variation in chosen], dtype=torch.int64),
    }


def _uneven(depths: Float[Tensor, "views 1 height width"], number: int) -> Float[Tensor, "views 1 height width"]:
    """Depth with a field's errors, a two-thousandth to a hundred-and-sixtieth of it: bumps, and noise of pixels."""
    generator = torch.Generator().manual_seed(number)
    views, _, height, width = depths.shape
    share = 10 ** (1.1 * torch.rand(views, 1, 1, 1, generator=generator) - 3.3)
    bumps = torch.randn(views, 1, height // 4, width // 4, generator=generator)
    noise = F.interpolate(bumps, size=(height, width), mode="bilinear")
    return depths * (1 + share * (noise + 0.5 * torch.randn(depths.shape, generator=generator)))


def _shrink(pictures: Float[Tensor, "views height width 3"], size: int) -> Tensor:
    small = F.interpolate(pictures.movedim(-1, 1), size=(size, size), mode="area")
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)


def drawn_variations(number: int, count: int) -> dict[str, StyleVariation]:
    """Draw the styles of a training scene, and their variations."""
    rng = random.Random(number)  # noqa: S311
    return {style: draw_variation(rng) for style in rng.sample(PAINTED, count)}


def _training_scene(number: int, views: int, size: int, count: int) -> dict[str, Tensor]:
    variations = drawn_variations(number, count)
    return paint_scene(number, views, size, tuple(variations), variations=variations)


def write_shards(
    folder: Path, scenes: int, views: int, size: int, styles_per_scene: int, scenes_per_shard: int = 20
) -> Iterator[Path]:
    """Render the missing shards of a data set; yield the path of every shard as soon as it exists.

    Args:
        folder: Folder of the shards.
        scenes: Total number of scenes.
        views: Views of each scene.
        size: Height and width in pixels.
        styles_per_scene: Number of different styles that each scene is painted in.
        scenes_per_shard: Scenes in a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, scenes, scenes_per_shard):
        path = folder / f"{first:06d}_{views}x{size}_{styles_per_scene}.safetensors"
        if not path.exists():
            numbers = range(first, min(first + scenes_per_shard, scenes))
            parts = [_training_scene(number, views, size, styles_per_scene) for number in numbers]
            with atomic_path(path) as partial:
                save_file({key: torch.stack([part[key] for part in parts]).contiguous() for key in parts[0]}, partial)
        yield path


def load_shards(paths: list[Path]) -> dict[str, Tensor]:
    """All scenes of the given shards, joined along `scenes`."""
    shards = [load_file(path) for path in paths]
    return {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
