"""Styles that lie flat: mosaic, glass, woodblock print, linocut, comic print, cartoon, pixels, paper, blueprint.

Grids keep to the picture, with periods that are multiples of a thirty-second of its height: four pixels at 128².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from style_nerf2nerf.embedded.colours import Hand
from style_nerf2nerf.embedded.materials import dome, facets, grey_of, sheet_of
from style_nerf2nerf.embedded.patterns import (
    Picture,
    blocks,
    blur,
    cell_hash,
    lines,
    mix,
    ramp,
    rgb,
    saturate,
    smooth_step,
)
from style_nerf2nerf.embedded.surface import Surface, jumps


def _bold(surface: Surface, factor: float = 1.2) -> torch.Tensor:
    """Outlines a little thicker and softer than the scene's."""
    return torch.maximum(surface.outline, factor * blur(surface.outline, 0.006)).clamp(max=1)


def mosaic(surface: Surface, hand: Hand) -> Picture:
    """Square stones in courses, of uneven brightness, in pale grout; outlines in the darkest stone."""
    size = 1 / 16
    course = (surface.y / size).floor()
    across, down = surface.x / size + 0.5 * (course % 2), surface.y / size
    cell = torch.cat([across.floor(), down.floor(), torch.zeros_like(down)], -1)
    tone = smooth_step(0.05, 0.95, 0.7 * grey_of(surface) + 0.3 * blur(surface.up, 0.012))
    stone = ramp(hand.ramp, 0.08 + 0.8 * tone + 0.22 * (cell_hash(cell.long(), 1) - 0.5))
    rim = torch.maximum((across - across.floor() - 0.5).abs(), (down - down.floor() - 0.5).abs())
    dark = hand.ramp[0].to(stone)
    grout = 0.25 * dark + 0.75 * rgb("d8d0c0").to(stone)
    out = mix(stone, grout.expand_as(stone), smooth_step(0.39, 0.46, rim))
    return mix(out, (0.6 * dark).expand_as(out), surface.outline)


def stained_glass(surface: Surface, hand: Hand) -> Picture:
    """Jewel-coloured panes between black leading: a body's facets, and diamonds in the sky and on the ground."""
    size = 1 / 8
    first, second = (surface.x + surface.y) / size, (surface.x - surface.y) / size
    cell = torch.cat([first.floor(), second.floor(), torch.zeros_like(first)], -1)
    edge = torch.minimum((first - first.round()).abs(), (second - second.round()).abs()) * size / 2**0.5
    diamond = 1.1 * ramp(hand.ramp, 0.62 + 0.3 * (cell_hash(cell.long(), 2) - 0.5))
    step = (grey_of(surface) * 4).floor() / 3
    number, direction = facets(surface, 26)
    pane = ramp(hand.ramp, 0.15 + 0.45 * step + 0.3 * (0.5 + 0.5 * direction[..., 2:]))
    glass = torch.where(surface.floor, diamond * (0.55 + 0.5 * step), pane)
    glass = torch.where(surface.inside, glass, 1.1 * diamond)
    lattice = smooth_step(0.011, 0.006, edge) * (~surface.inside | surface.floor)
    changes = jumps((torch.cat([3 * number, 9 * step], -1) * ~surface.floor).movedim(-1, 1))
    lead = 0.9 * F.max_pool2d((changes > 1).to(glass), 3, stride=1, padding=1).movedim(1, -1) * surface.inside
    lead = torch.maximum(torch.maximum(lattice, lead), surface.outline)
    return mix(glass, sheet_of(surface, "08080a"), lead)


def ukiyo_e(surface: Surface, hand: Hand) -> Picture:
    """A woodblock print: four flat tones, waves on the ground, a sky that darkens upwards, indigo outlines."""
    shades, cream = hand.ramp.to(surface.colour), rgb("f2e6cc").to(surface.colour)
    grey = grey_of(surface)
    level = (4 * smooth_step(0.1, 0.9, 0.8 * grey + 0.2 * surface.up)).floor().clamp(max=3).long()
    paper = 0.4 * shades[5] + 0.6 * rgb("f4ead2").to(shades)
    flat = torch.stack([shades[1], 0.6 * shades[2] + 0.4 * shades[3], shades[4], paper])[level[..., 0]]
    sky = mix(cream.expand_as(flat), shades[1].expand_as(flat), smooth_step(0.3, 0.0, surface.y))
    sky = mix(sky, shades[4].expand_as(flat), 0.6 * smooth_step(0.45, 0.8, surface.y))
    size = 1 / 8
    row = (surface.y / (size / 2)).floor()
    across = surface.x / size + 0.5 * (row % 2)
    from_centre = torch.cat([across - across.floor() - 0.5, surface.y / size - (row + 1) / 2], -1)
    ring = from_centre.norm(dim=-1, keepdim=True)
    wave = smooth_step(0.07, 0.03, (ring - 0.46).abs()) + smooth_step(0.06, 0.02, (ring - 0.25).abs())
    ground = mix(shades[1].expand_as(flat), shades[2].expand_as(flat), grey)
    ground = mix(ground, cream.expand_as(flat), 0.55 * wave.clamp(0, 1))
    out = torch.where(surface.inside, torch.where(surface.floor, ground, flat), sky)
    return mix(out, sheet_of(surface, "14182c"), _bold(surface, 1.0))


def linocut(surface: Surface, hand: Hand) -> Picture:
    """Lines of paper cut into ink, as wide as a place is bright, that bend over bodies."""
    dark, light = (tone.to(surface.colour) for tone in hand.tones)
    ink, paper = 0.55 * dark, 0.5 * light + 0.5 * rgb("f8f0dc").to(light)
    tone = torch.where(surface.inside, surface.tone, 0.5 + 0.45 * (surface.y - 0.3))
    bent = surface.y + 0.35 * surface.x + 0.16 * surface.relief + 0.1 * surface.up
    phase = 24 * torch.where(surface.inside, bent, surface.y)
    cut = smooth_step(-0.16, 0.16, 1.15 * tone - 0.08 - 2 * (phase - phase.round()).abs())
    out = mix(ink.expand_as(surface.colour), paper.expand_as(surface.colour), cut)
    return mix(out, (0.7 * ink).expand_as(out), _bold(surface, 1.0))


def halftone(surface: Surface, hand: Hand) -> Picture:
    """A comic's print: dots of the darker colour on flat light ones, bold black outlines."""
    dark, light = (tone.to(surface.colour) for tone in hand.tones)
    tone = torch.where(surface.inside, surface.tone, 0.72 + 0.4 * (surface.y - 0.5))
    first, second = 16 * (surface.x + surface.y), 16 * (surface.x - surface.y)
    distance = torch.cat([first - first.round(), second - second.round()], -1).norm(dim=-1, keepdim=True)
    dot = smooth_step(0.07, -0.07, distance - 0.68 * (1 - tone).clamp(0, 1).pow(0.6))
    share = torch.where(surface.inside & ~surface.floor, 0.8, 0.3)
    out = mix(sheet_of(surface, "fdf6e4"), light.expand_as(surface.colour), share)
    out = mix(out, dark.expand_as(out), dot)
    black = smooth_step(0.2, 0.1, tone) * surface.inside
    return mix(out, sheet_of(surface, "101014"), torch.maximum(black, _bold(surface)))


def cartoon(surface: Surface, hand: Hand) -> Picture:
    """Flat saturated colours in three steps of light, black outlines, a bright sky."""
    grey = grey_of(surface)
    vivid = saturate(surface.soft, 1.7)
    vivid = vivid / vivid.amax(-1, keepdim=True).clamp(min=0.3)
    light = (3 * smooth_step(0.05, 0.85, 0.75 * grey + 0.25 * surface.up)).floor().clamp(max=2)
    flat = (4 * vivid).round() / 4 * (0.52 + 0.24 * light)
    return torch.where(surface.inside, flat, dome(surface, "8fd8ff", "d8f4ff", 0.6)) * (1 - _bold(surface, 1.3))


def pixel(surface: Surface, hand: Hand) -> Picture:
    """Big square pixels of few colours, dark ones along outlines."""
    size = 1 / 32
    vivid = (5 * saturate(blocks(surface.colour, size), 1.5)).round() / 5
    empty = (blocks(surface.void.to(vivid), size) > 0.5).to(vivid)
    edge = (blocks(surface.outline, size) > 0.28).to(vivid)
    return mix(mix(vivid, sheet_of(surface, "3c2c5c"), empty), sheet_of(surface, "100c1c"), 0.85 * edge)


def paper_cut(surface: Surface, hand: Hand) -> Picture:
    """Sheets of paper one behind the other, brighter towards the viewer, each with a shadow on the next."""
    depth = 0.22 + 0.78 * (6 * surface.relief).floor().clamp(max=5) / 5
    depth = torch.where(surface.inside, depth, 0.2 * smooth_step(0.1, 0.9, surface.y))
    reach = max(1, round(depth.shape[1] / 64))
    shadow = torch.zeros_like(depth)
    for step in (1, 2, 3):
        by = step * reach
        nearer = F.pad(depth, (0, 0, by, 0, by, 0))[:, : depth.shape[1], : depth.shape[2]] > depth + 0.05
        shadow = torch.maximum(shadow, nearer * (1 - 0.22 * step))
    shade = (2.999 * grey_of(surface)).floor() / 2
    out = ramp(hand.ramp, 0.12 + 0.62 * depth + 0.24 * shade) * (1 - 0.5 * blur(shadow, 0.008))
    edge = depth - depth.roll((reach, reach), (1, 2)) > 0.05
    return out * (1 - 0.18 * surface.outline) + 0.10 * edge


def blueprint(surface: Surface, hand: Hand) -> Picture:
    """White lines on blue, with a grid, hatched in the shade."""
    tone = torch.where(surface.inside, surface.tone, 0.35)
    across, down = 8 * surface.x, 8 * surface.y
    grid = smooth_step(0.06, 0.02, torch.minimum((across - across.round()).abs(), (down - down.round()).abs()))
    hatch = smooth_step(0.3, 0.05, tone) * lines(32 * (surface.x + surface.y)) * surface.inside
    out = mix(sheet_of(surface, "12408c"), sheet_of(surface, "2860b0"), tone) + 0.10 * grid + 0.16 * hatch
    line = torch.maximum(surface.outline, 0.4 * blur(surface.outline, 0.006))
    return mix(out, sheet_of(surface, "f0f6ff"), line)
