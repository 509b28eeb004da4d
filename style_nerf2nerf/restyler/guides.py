"""Guide pictures: patterns that belong to surfaces, which a ControlNet can follow.

Tiles, courses, dots and blotches are laid out in the world, so that the views of a scene agree about them; a prompt
decides which of them a picture shows, and in which colours. All are functions of the waves of a place (see `position`)
and of the surface's normal.

Axes: `views height width channels` for painters, `views channels height width` for networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.position import surface_normals, surface_points, waves

Plane = Float[Tensor, "views height width 1"]
QUARTER, EIGHTH, SIXTEENTH = 0, 1, 2
"""Indices of `position.PERIODS`."""
DEPTH_CHANNELS = 3
"""Equal channels of the control picture of a ControlNet that sees depth alone."""


@dataclass(frozen=True)
class Lattice:
    """The patterns of some views. A `period` is an index of `position.PERIODS`."""

    waves: Float[Tensor, "views height width channels"]
    """Sines and cosines of the places in the world."""
    normal: Float[Tensor, "views height width 3"]
    """Unit world normals."""

    def __getitem__(self, index: int) -> Lattice:
        """The patterns of one view, with an axis of views of length 1."""
        return Lattice(self.waves[index : index + 1], self.normal[index : index + 1])

    def wave(self, axis: int, period: int) -> tuple[Plane, Plane]:
        """Sine and cosine along a world axis: 0 x, 1 y, 2 z."""
        first = 6 * period + axis
        return self.waves[..., first : first + 1], self.waves[..., first + 3 : first + 4]

    @cached_property
    def across(self) -> Float[Tensor, "views height width 3"]:
        """How clearly planes across each world axis cut a surface: 0 where it is parallel to them, else 1."""
        return smooth_step(0.1, 0.45, 1 - self.normal.square())

    def grid(self, period: int, width: float) -> Plane:
        """1 on lines where planes across the three axes cut surfaces, `width` periods wide; 0 elsewhere."""
        cuts = [self.across[..., axis, None] * near_crest(self.wave(axis, period)[1], width) for axis in range(3)]
        return torch.cat(cuts, -1).amax(-1, keepdim=True)

    def cells(self, period: int) -> Plane:
        """An uneven shade in [-1, 1] for every cell of the grid of half the period."""
        shade = torch.zeros_like(self.waves[..., :1])
        for axis, weight in ((0, 0.55), (1, 0.3), (2, 0.45)):
            side = (6 * self.wave(axis, period)[0]).clamp(-1, 1)
            coarse = (6 * self.wave(axis, max(0, period - 1))[0]).clamp(-1, 1)
            shade = shade + self.across[..., axis, None] * weight * (side + 0.6 * coarse)
        return (shade / 1.36).clamp(-1, 1)

    def courses(self, period: int, bend: float = 0.0) -> Plane:
        """A wave in [-1, 1]: along z on steep surfaces, along y on level ones.

        Args:
            period: Of the courses.
            bend: Amplitude of their bends, in radians of their phase.
        """
        sway = bend * (self.wave(0, QUARTER)[0] + 0.5 * self.wave(1, QUARTER)[1])
        level, flat = _turned(self.wave(2, period), sway), _turned(self.wave(1, period), sway)
        return torch.lerp(flat, level, self.across[..., 2:])

    def uprights(self, period: int) -> Plane:
        """A wave in [-1, 1] across `courses`: along x, or along y on surfaces that face along x."""
        return torch.lerp(self.wave(1, period)[1], self.wave(0, period)[1], self.across[..., :1])

    def bumps(self, period: int) -> Plane:
        """A bump in [-1, 1] at every corner of a grid, 1 in its middle."""
        cosines = torch.cat([self.wave(axis, period)[1] for axis in range(3)], -1)
        return (self.across * cosines).sum(-1, keepdim=True) / self.across.sum(-1, keepdim=True).clamp(min=1e-3)

    def blotches(self) -> Plane:
        """Soft blotches in [-1, 1], larger than a quarter of the picture."""
        first = self.wave(0, QUARTER)[0] + self.wave(1, QUARTER)[1]
        return (first * 0.35 + 0.3 * _turned(self.wave(2, QUARTER), 1.5 * self.wave(0, QUARTER)[1])).clamp(-1, 1)

    def swell(self) -> Plane:
        """Waves of water in [-1, 1] along y."""
        return _turned(self.wave(1, EIGHTH), 1.6 * self.wave(0, EIGHTH)[0])

    def pictures(self) -> Float[Tensor, "views channels height width"]:
        """All guides in [0, 1], as a network sees them."""
        signed = [
            self.cells(QUARTER),
            self.cells(EIGHTH),
            *(self.courses(SIXTEENTH, bend) for bend in (0.0, 0.8, 1.2, 2.0)),
            self.courses(EIGHTH, 0.8),
            self.uprights(EIGHTH),
            self.uprights(SIXTEENTH),
            self.bumps(EIGHTH),
            self.bumps(SIXTEENTH),
            self.blotches(),
            self.swell(),
            self.normal[..., 2:],
        ]
        lines = [self.grid(EIGHTH, 0.15), self.grid(SIXTEENTH, 0.2)]
        return torch.cat([0.5 + 0.5 * torch.cat(signed, -1), torch.cat(lines, -1)], -1).clamp(0, 1).movedim(-1, 1)


NOWHERE = (0.5,) * 14 + (0.0, 0.0)
"""The guides of a picture that has no place in the world."""
CHANNELS = len(NOWHERE)
"""Channels of `Lattice.pictures`."""


def guide_pictures(
    depths: Float[Tensor, "views 1 height width"],
    inside: Bool[Tensor, "views 1 height width"],
    cameras: ViewCameras | None,
) -> Float[Tensor, "views channels height width"]:
    """The guides of all views in [0, 1].

    Args:
        depths: z-depth in the poses' units.
        inside: Where surfaces are.
        cameras: The views' cameras; without them every view has a world of its own.
    """
    points = surface_points(depths, inside, cameras)
    normals = surface_normals(points)
    return Lattice(waves(points).movedim(1, -1), normals.movedim(1, -1)).pictures()


def sees_guides(controlnet: Any) -> bool:
    """Whether a ControlNet reads the guides after the channels of depth."""
    return int(controlnet.config["conditioning_channels"]) == DEPTH_CHANNELS + CHANNELS


def near_crest(cosine: Plane, width: float) -> Plane:
    """Lines around the crests of a wave, 1 inside and with soft edges; the width is a share of the period."""
    middle = math.cos(math.pi * width)
    return smooth_step(middle - 0.25, middle + 0.15, cosine)


def _turned(wave: tuple[Plane, Plane], angle: Plane) -> Plane:
    """The cosine of a wave after a shift by an angle in radians."""
    return wave[1] * torch.cos(angle) - wave[0] * torch.sin(angle)


def smooth_step(low: float, high: float, value: Tensor) -> Tensor:
    """Cubic step from 0 at `low` to 1 at `high`."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
