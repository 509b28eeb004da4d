"""Patterns that live in the world, and colours: the vocabulary of the procedural styles.

A pattern is a function of world position alone, in units of the picture's height, so that two views of a point agree.
Axes: `views height width channels`; colours are written as `"rrggbb"` and mixed in [0, 1]. A *palette* is a few
colours from dark to bright.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Picture = Float[Tensor, "views height width 3"]
Plane = Float[Tensor, "views height width 1"]
Colour = Float[Tensor, "3"]
Palette = Float[Tensor, "colours 3"]


def smooth_step(low: float, high: float, value: Tensor) -> Tensor:
    """Cubic step from 0 at `low` to 1 at `high`."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def cell_bits(cells: Int[Tensor, "*batch 3"], seed: int) -> Int[Tensor, "*batch"]:
    """32 well-mixed bits for every integer cell."""
    value = cells[..., 0] * 73856093 ^ cells[..., 1] * 19349663 ^ cells[..., 2] * 83492791 ^ (seed * 2654435761)
    for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (16, 1)):
        value = ((value ^ (value >> shift)) * factor) & 0xFFFFFFFF
    return value


def cell_hash(cells: Int[Tensor, "*batch 3"], seed: int) -> Float[Tensor, "*batch 1"]:
    """A number in [0, 1) for every integer cell."""
    return ((cell_bits(cells, seed) >> 8).to(torch.float32) / 2**24)[..., None]


def value_noise(position: Float[Tensor, "*batch 3"], period: float, seed: int) -> Float[Tensor, "*batch 1"]:
    """Smooth value noise in [0, 1] of the given period (in heights), fixed in the world."""
    scaled = position / period
    corner = scaled.floor()
    weight = smooth_step(0.0, 1.0, scaled - corner)
    corner = corner.to(torch.int64)
    total = torch.zeros_like(scaled[..., :1])
    for offset in torch.cartesian_prod(*[torch.arange(2)] * 3):
        share = torch.where(offset.bool(), weight, 1 - weight).prod(-1, keepdim=True)
        total = total + share * cell_hash(corner + offset, seed)
    return total


def voronoi(position: Picture, size: float, seed: int) -> tuple[Plane, Plane, Plane]:
    """World-fixed Voronoi cells of one jittered point a cube: (identity in [0, 1), F1, F2 - F1), distances in sizes."""
    scaled = position / size
    corner = scaled.floor().to(torch.int64)
    best = torch.full_like(scaled[..., :1], 9.0)
    second, identity = best.clone(), torch.zeros_like(best)
    for offset in torch.cartesian_prod(*[torch.arange(-1, 2)] * 3):
        cell = corner + offset
        bits = cell_bits(cell, seed)[..., None]
        jitter = torch.cat([(bits >> shift) & 0xFF for shift in (0, 8, 16)], -1).to(scaled) / 256
        distance = (scaled - cell - jitter).square().sum(-1, keepdim=True).sqrt()
        nearer = distance < best
        second = torch.where(nearer, best, torch.minimum(second, distance))
        identity = torch.where(nearer, (bits >> 24).to(scaled) / 256, identity)
        best = torch.where(nearer, distance, best)
    return identity, best, second - best


def rgb(code: str) -> Colour:
    """`"c0ffee"` as three numbers in [0, 1]."""
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])


def palette(codes: Sequence[str], turn: float = 0.0) -> Palette:
    """The colours of some codes, their hues turned by a share of the colour circle; lightness and saturation stay."""
    told = []
    for code in codes:
        hue, lightness, saturation = colorsys.rgb_to_hls(*rgb(code).tolist())
        told.append(colorsys.hls_to_rgb((hue + turn) % 1.0, lightness, saturation))
    return torch.tensor(told)


def ramp(colours: Palette, value: Plane) -> Picture:
    """Linear interpolation along a palette, dark to bright, at positions in [0, 1]."""
    colours = colours.to(value)
    place = value.clamp(0, 1)[..., 0] * (len(colours) - 1)
    low = place.floor().long().clamp(max=len(colours) - 2)
    share = (place - low)[..., None]
    return colours[low] * (1 - share) + colours[low + 1] * share


def pick(colours: Palette, value: Plane) -> Picture:
    """One flat colour of a palette for every value in [0, 1)."""
    return colours.to(value)[(value[..., 0] * len(colours)).long().clamp(0, len(colours) - 1)]


def mix(first: Tensor, second: Tensor, share: Plane) -> Tensor:
    """`first` where `share` is 0, `second` where it is 1."""
    return first * (1 - share) + second * share


def blur(picture: Float[Tensor, "views height width channels"], radius: float) -> Tensor:
    """A soft glow: three box filters with a radius in heights."""
    size = 2 * max(1, round(radius * picture.shape[1])) + 1
    value = picture.movedim(-1, 1)
    for _ in range(3):
        value = F.avg_pool2d(value, size, stride=1, padding=size // 2, count_include_pad=False)
    return value.movedim(1, -1)


def smear(value: Plane, angle: Plane, length: float) -> Plane:
    """Line integral convolution: the mean of `value` along the direction field, `length` heights in all."""
    views, height, width, _ = value.shape
    steps = max(2, round(length * height / 2))
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5) * 2 / height - 1, (torch.arange(width) + 0.5) * 2 / width - 1, indexing="ij"
    )
    start = torch.stack([columns, rows], -1).to(value).expand(views, height, width, 2)
    field = torch.cat([angle.cos() * height / width, angle.sin()], -1).movedim(-1, 1) * (2 / height)
    image, total = value.movedim(-1, 1), value.clone()
    for sign in (1.0, -1.0):
        place = start
        for _ in range(steps):
            step = F.grid_sample(field, place, padding_mode="border", align_corners=False).movedim(1, -1)
            place = place + sign * step
            total = total + F.grid_sample(image, place, padding_mode="reflection", align_corners=False).movedim(1, -1)
    return total / (2 * steps + 1)
