"""Procedural textures: albedo as a function of the position in a shape's own frame.

Colours are display-referred (sRGB-like) red, green, blue in [0, 1]. Every pattern mixes two colours by a weight in
[0, 1] that depends on the position only, so a texture is fixed to its shape and consistent over views.
Patterns have smooth transitions, to avoid aliasing between views.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Colour = tuple[float, float, float]
PointValues = Float[Tensor, "points"]
Pattern = Literal["solid", "checker", "stripes", "rings", "marble", "dots", "wood", "gradient", "bricks", "patches"]


@dataclass(frozen=True)
class Texture:
    """One of the patterns, in two colours."""

    colour: Colour
    """The colour, or the first of the two."""
    second: Colour = (1.0, 1.0, 1.0)
    """The other colour."""
    pattern: Pattern = "solid"
    """The pattern that mixes the two colours."""
    frequency: float = 4.0
    """Periods of the pattern per unit of the shape's own frame."""
    axis: int = 2
    """Axis of the pattern: along stripes and gradients, around wood and rings."""
    gloss: float = 0.15
    """Strength of the highlight, in [0, 1]."""
    glow: float = 0.0
    """Emission as a share of its colour, in [0, 1]."""


def _ramp(wave: PointValues, sharpness: float = 6.0) -> PointValues:
    """Map a wave in [-1, 1] to a weight in [0, 1] with steep flanks."""
    return (0.5 + 0.5 * sharpness * wave).clamp(0.0, 1.0)


def _turbulence(x: PointValues, y: PointValues, z: PointValues) -> PointValues:
    """Smooth noise in about [-1, 1]: three octaves of sines with warped arguments."""
    total = torch.zeros_like(x)
    for octave, weight in enumerate((0.5, 0.3, 0.2)):
        u = 2.1**octave
        a = torch.sin(u * (x + 1.7 * y) + 1.3 * torch.sin(u * (1.1 * z - 0.6 * y) + octave))
        b = torch.sin(u * (1.3 * y - 0.8 * z) + 1.3 * torch.sin(u * (0.9 * x + 0.5 * z) + 2.0 * octave))
        total = total + weight * (0.5 * a + 0.5 * b)
    return total


def _weight(texture: Texture, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
    """Share of the second colour at a point, in [0, 1]."""
    f = 2.0 * math.pi * texture.frequency
    coordinates = (x, y, z)
    along = coordinates[texture.axis]
    u, v = (c for i, c in enumerate(coordinates) if i != texture.axis)
    match texture.pattern:
        case "solid":
            return torch.zeros_like(x)
        case "checker":
            # Half a period of offset keeps flat faces at coordinate 0 off the pattern's sign change.
            return _ramp((f * x + 0.7).sin() * (f * y + 0.7).sin() * (f * z + 0.7).sin(), 12.0)
        case "stripes":
            return _ramp((f * along).sin())
        case "rings":
            return _ramp((f * (u * u + v * v).sqrt()).sin())
        case "marble":
            return (0.5 + 0.5 * torch.sin(f * along + 4.0 * _turbulence(f * x, f * y, f * z))).square()
        case "dots":
            cells = [(texture.frequency * c).frac_() for c in (x + 50.0, y + 50.0, z + 50.0)]
            squared = sum((c - 0.5).square() for c in cells)
            return ((0.36 - torch.as_tensor(squared).sqrt()) * 16.0 + 0.5).clamp(0.0, 1.0)
        case "wood":
            rings = f * (u * u + v * v).sqrt() + 1.2 * _turbulence(3.0 * x, 3.0 * y, 3.0 * z)
            return (0.5 + 0.5 * rings.sin()).pow(1.5) * 0.8
        case "gradient":
            return (0.5 + texture.frequency * along).clamp(0.0, 1.0)
        case "bricks":
            course = (texture.frequency * along + 50.0).floor()
            shift = 0.25 * torch.remainder(course, 2.0)
            joint = torch.minimum(
                _joint(texture.frequency * along + 50.0), _joint(texture.frequency * u * 0.5 + shift + 50.0, 0.5)
            )
            joint = torch.minimum(joint, _joint(texture.frequency * v * 0.5 + shift + 50.0, 0.5))
            return joint
        case "patches":
            return _ramp(_turbulence(f * x, f * y, f * z) - 0.15, 4.0)


def _joint(coordinate: PointValues, spread: float = 1.0) -> PointValues:
    """1 away from whole numbers, 0 at them: mortar between bricks."""
    to_joint = (coordinate - coordinate.round()).abs()
    return ((to_joint - 0.05 * spread) * 16.0).clamp(0.0, 1.0)


def albedo(texture: Texture, x: PointValues, y: PointValues, z: PointValues) -> Float[Tensor, "3 points"]:
    """Display-referred colour of points given in the shape's own frame."""
    weight = _weight(texture, x, y, z)
    return torch.stack([a + (b - a) * weight for a, b in zip(texture.colour, texture.second)])
