"""Restyled views with known ground truth: an embedded scene, painted by the painters that train the small restyler.

Painted with the same colours and light (one *variation*), all views, including held-out ones, show one consistent
scene, so that remaining errors are those of the field. Painted in a different variation each, they contradict each
other in palette, light and pattern.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.images import write_image
from eschernet_prior.procedural.dataparser import FIELD_OF_VIEW, ProceduralDataParserConfig, split_poses
from eschernet_prior.procedural.raytracer import render
from style_nerf2nerf.embedded.colours import StyleVariation, draw_variation
from style_nerf2nerf.embedded.data import SUPERSAMPLING
from style_nerf2nerf.embedded.styles import paint
from style_nerf2nerf.embedded.surface import observe

VIEWS_AT_A_TIME = 4


def _variation(seed: int) -> StyleVariation:
    """Draw a variation, a pair of colours and a light, from a seed."""
    return draw_variation(random.Random(seed))  # noqa: S311


class PaintedScene:
    """The surfaces of an embedded scene, the input of the painters, at a higher resolution than the paintings."""

    def __init__(self, config: ProceduralDataParserConfig) -> None:
        """Trace all views, training and held-out ones.

        Args:
            config: The scene, its cameras and its resolution.
        """
        scene, poses = config.check(), split_poses(config)
        self.names = [f"{split}_{index:03d}" for split, each in poses.items() for index in range(len(each))]
        self.num_train = len(poses["train"])
        self._size, large = config.resolution, config.resolution * SUPERSAMPLING
        cameras = torch.cat(list(poses.values()))
        parts = [
            render(scene, some, large, large, FIELD_OF_VIEW, supersampling=1) for some in cameras.split(VIEWS_AT_A_TIME)
        ]
        colour, depth, normal = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("colour", "depth", "normal")
        )
        self._surface = observe(colour, depth, normal, cameras, FIELD_OF_VIEW, SUPERSAMPLING)

    def with_one_variation(self, style: str, variation: int) -> Float[Tensor, "views 3 height width"]:
        """Paint all views in one variation of a style; RGB in [0, 1]."""
        return self._shrunk(paint(style, self._surface, _variation(variation)))

    def with_many_variations(self, style: str, first_variation: int) -> Float[Tensor, "views 3 height width"]:
        """Paint all views in a style, each in a variation of its own; RGB in [0, 1]."""
        return torch.cat(
            [
                self._shrunk(paint(style, self._surface[index], _variation(first_variation + index)))
                for index in range(len(self.names))
            ]
        )

    def _shrunk(self, pictures: Float[Tensor, "views height width 3"]) -> Float[Tensor, "views 3 _ _"]:
        return F.interpolate(pictures.movedim(-1, 1), size=(self._size, self._size), mode="area").clamp(0, 1)

    def write(self, pictures: Float[Tensor, "views 3 height width"], folder: Path) -> Path:
        """Write pictures with the names of the scene's photos, for `--pipeline.restyled-data`."""
        for name, picture in zip(self.names, pictures):
            write_image(folder / f"{name}.png", picture)
        return folder
