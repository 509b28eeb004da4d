"""Styles of materials and lights: clay, gold, ice, snow, night, autumn, neon tubes, a neon city.

Light comes from above and from the photo's own shading, so that a surface keeps its colour from view to view.
"""

from __future__ import annotations

import torch

from style_nerf2nerf.embedded.colours import StyleVariation
from style_nerf2nerf.embedded.patterns import (
    Picture,
    Plane,
    blur,
    lines,
    luminance,
    mix,
    palette,
    ramp,
    rgb,
)
from style_nerf2nerf.embedded.surface import Surface
from style_nerf2nerf.restyler.guides import EIGHTH, QUARTER, SIXTEENTH, smooth_step


def sheet_of(surface: Surface, code: str) -> Picture:
    """A picture of one colour."""
    return rgb(code).to(surface.colour).expand_as(surface.colour)


def dome(surface: Surface, top: str, bottom: str, horizon: float) -> Picture:
    """A sky that changes from one colour at the picture's upper edge to another at a height below it."""
    return mix(sheet_of(surface, bottom), sheet_of(surface, top), smooth_step(horizon, 0.0, surface.y))


def backdrop(surface: Surface, middle: str, rim: str, reach: tuple[float, float]) -> Picture:
    """A studio backdrop: one colour in the middle, another towards the picture's edges."""
    return mix(sheet_of(surface, middle), sheet_of(surface, rim), smooth_step(*reach, surface.from_middle))


def clay(surface: Surface, variation: StyleVariation) -> Picture:
    """Matte clay in the darker colour under soft light, in front of a backdrop of the lighter one."""
    dark, light = (tone.to(surface.colour) for tone in variation.tones)
    shade = smooth_step(-0.05, 1.05, 0.5 * surface.up + 0.3 * surface.facing + 0.3 * surface.luminance)
    body = mix((0.28 * dark).expand_as(surface.colour), (0.72 * dark + 0.28).expand_as(surface.colour), shade)
    wall = (0.55 * light + 0.42 * dark.mean()).expand_as(surface.colour)
    wall = mix(wall * 1.08, wall * 0.8, smooth_step(0.25, 0.75, surface.from_middle))
    table = mix(wall * 0.95, wall * 0.45, smooth_step(0.8, 0.2, surface.luminance))
    out = torch.where(surface.floor, table, body)
    return torch.where(surface.inside, out * (1 - 0.4 * surface.outline), wall)


def gold(surface: Surface, variation: StyleVariation) -> Picture:
    """Polished metal: bands of reflected light over the normals, on red velvet."""
    metal = palette(("2e1602", "7a4a06", "c8900f", "f4c430", "ffefa0", "fffbe6"))
    wave = 0.5 + 0.5 * torch.sin(8.0 * surface.up + 5.0 * surface.facing - 1.0)
    shine = ramp(metal, 0.12 + 0.3 * surface.luminance + 0.22 * surface.up + 0.38 * wave)
    lit = smooth_step(0.1, 0.9, surface.luminance)
    floor = mix(sheet_of(surface, "30060e"), sheet_of(surface, "8c1c2c"), lit)
    out = torch.where(surface.floor, floor, shine * (1 - 0.55 * surface.outline))
    return torch.where(surface.inside, out, backdrop(surface, "6c1020", "24040a", (0.2, 0.75)))


def ice(surface: Surface, variation: StyleVariation) -> Picture:
    """Clear ice: bright where it is seen edge-on, white along its edges, in a pale light."""
    frost = palette(("0c3050", "1c6088", "4a9cc4", "94cfe8", "d4f0fa", "ffffff"))
    edge = (1 - surface.facing).square()
    glint = torch.sin(9 * surface.up + 6 * surface.facing)
    body = ramp(frost, 0.12 + 0.28 * surface.luminance + 0.25 * surface.up + 0.5 * edge + 0.14 * glint)
    lit = smooth_step(0.1, 0.9, surface.luminance)
    floor = mix(sheet_of(surface, "5c88b0"), sheet_of(surface, "eaf6fc"), lit)
    out = mix(torch.where(surface.floor, floor, body), sheet_of(surface, "ffffff"), 0.7 * surface.outline)
    return torch.where(surface.inside, out, backdrop(surface, "e4f2fa", "84aac8", (0.15, 0.8)))


def snow(surface: Surface, variation: StyleVariation) -> Picture:
    """Snow on surfaces that face up; cold colours and frosted edges elsewhere."""
    lying = smooth_step(0.35, 0.62, surface.normal[..., 2:])
    bright = smooth_step(0.15, 0.75, 0.6 * surface.luminance + 0.4 * surface.up)
    white = mix(sheet_of(surface, "9db4d8"), sheet_of(surface, "fdfeff"), bright)
    grey = surface.luminance.expand_as(surface.colour)
    cold = mix(grey, surface.colour, torch.full_like(surface.up, 0.45)) * rgb("c4d4ec").to(surface.colour)
    frosted = mix(cold, sheet_of(surface, "e8f0fc"), 0.5 * smooth_step(0.35, 0.0, surface.facing))
    return torch.where(surface.inside, mix(frosted, white, lying), dome(surface, "a8bcd8", "dfe6f0", 0.6))


def night(surface: Surface, variation: StyleVariation) -> Picture:
    """Moonlight from above, a cold rim, lamps where the photo is bright and warm."""
    moon = smooth_step(0.35, 1.0, surface.up) * (0.3 + 0.7 * surface.luminance)
    warmth = smooth_step(0.12, 0.4, surface.colour[..., :1] - surface.colour[..., 2:])
    lamp = warmth * smooth_step(0.6, 0.9, surface.luminance)
    out = sheet_of(surface, "0a1434") * (0.8 + 0.9 * surface.luminance)
    out = out + sheet_of(surface, "6088e0") * (0.08 * surface.luminance + 0.42 * moon)
    out = out + sheet_of(surface, "ffb850") * (0.75 * lamp + 0.7 * blur(lamp, 0.03))
    out = out + sheet_of(surface, "5878c8") * 0.5 * smooth_step(0.4, 0.0, surface.facing)
    sky = dome(surface, "050a20", "1a2c68", 0.7)
    return torch.where(surface.inside, out * (1 - 0.6 * surface.outline), sky)


def autumn(surface: Surface, variation: StyleVariation) -> Picture:
    """Golden light, with red and yellow leaves, also on the ground."""
    leaves = palette(("4c1408", "a02c0c", "d8641c", "f0a030", "f8d868"))
    red, green, blue = surface.colour.split(1, -1)
    leafy = smooth_step(0.02, 0.14, green - torch.maximum(red, blue) + 0.04)
    scatter = 0.5 + 0.3 * surface.lattice.cells(EIGHTH) + 0.25 * surface.lattice.bumps(SIXTEENTH)
    litter = ramp(leaves, 0.08 + 0.5 * surface.luminance + 0.45 * scatter)
    turned = ramp(leaves, 0.1 + 0.85 * surface.luminance)
    warm = 0.25 * surface.luminance + 0.75 * surface.colour
    warm = warm * rgb("ffd8a0").to(warm) * 1.05
    fallen = torch.maximum(leafy, 0.45 * smooth_step(0.5, 0.9, surface.up))
    out = mix(mix(warm, turned, fallen), litter, surface.ground)
    return torch.where(surface.inside, out * (1 - 0.3 * surface.outline), dome(surface, "e09850", "fce4b0", 0.55))


def neon(surface: Surface, variation: StyleVariation) -> Picture:
    """Glowing tubes along outlines and lines of equal depth, in the dark of their own glow."""
    low, high = (tone / tone.max().clamp(min=0.2) for tone in variation.tones)
    level = smooth_step(0.75, 0.97, 1 - lines(5 * surface.relief)) * surface.inside * (1 - surface.ground)
    tube = torch.maximum(surface.outline, 0.7 * level * smooth_step(0.15, 0.4, surface.facing))
    hue = smooth_step(0.3, 0.7, surface.up)
    tint = mix(low.to(hue).expand_as(surface.colour), high.to(hue).expand_as(surface.colour), hue)
    dark = 0.02 + 0.05 * tint * surface.luminance
    return dark + 0.85 * tint * tube + 1.1 * blur(tube * tint, 0.035) + 0.35 * smooth_step(0.8, 1.0, tube)


def cyberpunk(surface: Surface, variation: StyleVariation) -> Picture:
    """A city's neon light: magenta from the left, cyan from the right, glowing edges, a violet haze."""
    left, right = smooth_step(0.1, 0.9, -surface.side), smooth_step(0.1, 0.9, surface.side)
    lit = 0.35 + 0.5 * surface.luminance
    out = sheet_of(surface, "140a2c") + surface.luminance * rgb("383060").to(surface.colour)
    out = out + sheet_of(surface, "ff1f9c") * left * lit + sheet_of(surface, "10c8ff") * right * lit
    out = out + 0.35 * (1 - surface.facing).pow(1.5) * sheet_of(surface, "b070ff")
    wet = 0.4 * sheet_of(surface, "3c1c70") + 0.25 * surface.luminance * rgb("20c0e0").to(surface.colour)
    out = out + surface.ground * (wet + 0.5 * surface.lattice.grid(EIGHTH, 0.2) * rgb("ff40c0").to(surface.colour))
    out = torch.where(surface.inside, out, dome(surface, "120828", "d02888", 0.75))
    glow = 0.55 * blur(surface.outline, 0.012) * rgb("18d0f0").to(surface.colour)
    return (out + glow + 0.35 * surface.outline) * (1 - 0.16 * lines(32 * surface.y))


def low_poly(surface: Surface, variation: StyleVariation) -> Picture:
    """Flat facets in the scene's colours, brighter where they face up; ground and sky in squares."""
    _, direction = facets(surface, 40)
    shade = 0.5 * surface.lattice.cells(QUARTER)
    strength = surface.flat.amax(-1, keepdim=True).clamp(min=0.3)
    hue = surface.flat / strength
    grey = hue.mean(-1, keepdim=True)
    base = (grey + 1.15 * (hue - grey)) * (0.35 + 0.55 * strength)
    turn = direction @ direction.new_tensor([0.075, 0.05, 0.25])[:, None]
    sky = mix(sheet_of(surface, "f8d8b8"), sheet_of(surface, "70a8d8"), smooth_step(0.8, 0.0, surface.y))
    out = torch.where(surface.floor, base * (1.02 + 0.22 * shade), base * (0.87 + turn))
    return torch.where(surface.inside, out, sky * (0.97 + 0.14 * shade))


def facets(surface: Surface, count: int) -> tuple[Plane, Picture]:
    """The nearest of some evenly spread directions for each normal: its index, and the direction."""
    place = torch.arange(count) + 0.5
    height, turn = 1 - 2 * place / count, torch.pi * (1 + 5**0.5) * place
    flat = (1 - height.square()).sqrt()
    directions = torch.stack([flat * turn.cos(), flat * turn.sin(), height], -1).to(surface.colour)
    nearest = (surface.normal @ directions.T).argmax(-1)
    return nearest[..., None].to(surface.colour), directions[nearest]


def photo(surface: Surface, variation: StyleVariation) -> Picture:
    """The unchanged picture, for the words "a photo"."""
    return surface.colour


def grey_of(surface: Surface) -> Plane:
    """Luma of the softened picture."""
    return luminance(surface.soft)
