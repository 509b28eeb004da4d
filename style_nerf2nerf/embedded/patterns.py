"""Patterns, filters and colours: the vocabulary of the procedural styles.

Axes: `views height width channels`; sizes are fractions of the picture's height; colours are written as `"rrggbb"` and
mixed in [0, 1]. A *palette* is a few colours from dark to bright.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Picture = Float[Tensor, "views height width 3"]
Plane = Float[Tensor, "views height width 1"]
Colour = Float[Tensor, "3"]
Palette = Float[Tensor, "colours 3"]

LUMA = (0.299, 0.587, 0.114)


def lines(phase: Plane) -> Plane:
    """Soft parallel lines: 0 where `phase` is whole, 1 half-way between."""
    return 0.5 - 0.5 * torch.cos(2 * math.pi * phase)


def rgb(code: str) -> Colour:
    """`"c0ffee"` as three numbers in [0, 1]."""
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])


def palette(codes: Sequence[str]) -> Palette:
    """The colours of some codes."""
    return torch.stack([rgb(code) for code in codes])


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


def luminance(picture: Picture) -> Plane:
    """Luma in [0, 1]."""
    return picture @ picture.new_tensor(LUMA)[:, None]


def saturate(picture: Picture, factor: float) -> Picture:
    """Multiply the distance of colours from grey, in [0, 1]."""
    grey = luminance(picture)
    return (grey + factor * (picture - grey)).clamp(0, 1)


def blur(picture: Float[Tensor, "views height width channels"], radius: float) -> Tensor:
    """Three box filters of a radius in heights; at the border, means over the pixels inside."""
    reach = max(1, round(radius * picture.shape[1]))
    for _ in range(3):
        for dim in (1, 2):
            picture = _box(picture, reach, dim)
    return picture


def _box(picture: Tensor, reach: int, dim: int) -> Tensor:
    """Mean over `reach` pixels to either side along one axis."""
    total = torch.cat([torch.zeros_like(picture.narrow(dim, 0, 1)), picture.cumsum(dim)], dim)
    places = torch.arange(picture.shape[dim], device=picture.device)
    last, first = (places + reach + 1).clamp(max=len(places)), (places - reach).clamp(min=0)
    count = (last - first).to(picture).view([-1 if axis == dim else 1 for axis in range(picture.dim())])
    return (total.index_select(dim, last) - total.index_select(dim, first)) / count


def kuwahara(picture: Picture, radius: float) -> Picture:
    """Brush strokes: the mean of the flattest of the four squares that meet at a pixel, of a side in heights.

    Kuwahara et al. 1976: smooths areas and keeps edges.
    """
    reach = max(1, round(radius * picture.shape[1]))
    _, height, width, _ = picture.shape
    padded = F.pad(picture.movedim(-1, 1), (reach,) * 4, mode="replicate")
    means = F.avg_pool2d(padded, reach + 1, stride=1)
    variances = (F.avg_pool2d(padded.square(), reach + 1, stride=1) - means.square()).sum(1, keepdim=True)
    corners = [(top, left) for top in (0, reach) for left in (0, reach)]
    colours, spreads = (
        torch.stack([maps[..., top : top + height, left : left + width] for top, left in corners])
        for maps in (means, variances)
    )
    flattest = spreads.argmin(0, keepdim=True).expand_as(colours[:1])
    return colours.gather(0, flattest)[0].movedim(1, -1)


def blocks(picture: Tensor, size: float) -> Tensor:
    """Replace squares, whose side is given in heights, by their mean colour; it divides the sides of the pictures."""
    side = max(1, round(size * picture.shape[1]))
    means = F.avg_pool2d(picture.movedim(-1, 1), side)
    return F.interpolate(means, scale_factor=side, mode="nearest").movedim(1, -1)
