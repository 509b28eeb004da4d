"""Flat styles: mosaic, glass, woodblock print, linocut, comic print, cartoon, pixels, paper, blueprint.

Tiles, panes, dots and cuts belong to the surfaces, so that they stay where they are from view to view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from style_nerf2nerf.embedded.colours import StyleVariation
from style_nerf2nerf.embedded.materials import dome, grey_of, sheet_of
from style_nerf2nerf.embedded.patterns import (
    Picture,
    blocks,
    blur,
    mix,
    ramp,
    rgb,
    saturate,
)
from style_nerf2nerf.embedded.surface import Surface
from style_nerf2nerf.restyler.guides import EIGHTH, QUARTER, SIXTEENTH, near_crest, smooth_step


def _bold(surface: Surface, factor: float = 1.2) -> torch.Tensor:
    """Outlines, slightly thicker and softer than those of the scene."""
    return torch.maximum(surface.outline, factor * blur(surface.outline, 0.006)).clamp(max=1)


def mosaic(surface: Surface, variation: StyleVariation) -> Picture:
    """Square stones of uneven brightness in pale grout; outlines in the darkest stone."""
    tone = smooth_step(0.05, 0.95, 0.7 * grey_of(surface) + 0.3 * blur(surface.up, 0.012))
    stone = ramp(variation.ramp, 0.14 + 0.72 * tone + 0.16 * surface.lattice.cells(EIGHTH))
    dark = variation.ramp[0].to(stone)
    grout = 0.25 * dark + 0.75 * rgb("d8d0c0").to(stone)
    out = mix(stone, grout.expand_as(stone), surface.lattice.grid(SIXTEENTH, 0.2))
    return mix(out, (0.6 * dark).expand_as(out), surface.outline)


def stained_glass(surface: Surface, variation: StyleVariation) -> Picture:
    """Jewel-coloured panes between black leading, each of one brightness."""
    step = (grey_of(surface) * 4).floor() / 3
    glass = (
        1.1
        * ramp(variation.ramp, 0.5 + 0.3 * surface.lattice.cells(QUARTER) + 0.3 * (step - 0.5))
        * (0.62 + 0.45 * step)
    )
    glass = glass * (1 + 0.08 * surface.lattice.bumps(EIGHTH))
    return mix(glass, sheet_of(surface, "08080a"), torch.maximum(surface.lattice.grid(EIGHTH, 0.15), surface.outline))


def ukiyo_e(surface: Surface, variation: StyleVariation) -> Picture:
    """A woodblock print: four flat tones, waves on the ground, a sky that darkens upwards, indigo outlines."""
    shades, cream = variation.ramp.to(surface.colour), rgb("f2e6cc").to(surface.colour)
    grey = grey_of(surface)
    level = (4 * smooth_step(0.1, 0.9, 0.8 * grey + 0.2 * surface.up)).floor().clamp(max=3).long()
    paper = 0.4 * shades[5] + 0.6 * rgb("f4ead2").to(shades)
    flat = torch.stack([shades[1], 0.6 * shades[2] + 0.4 * shades[3], shades[4], paper])[level[..., 0]]
    sky = mix(cream.expand_as(flat), shades[1].expand_as(flat), smooth_step(0.3, 0.0, surface.y))
    sky = mix(sky, shades[4].expand_as(flat), 0.6 * smooth_step(0.45, 0.8, surface.y))
    ground = mix(shades[1].expand_as(flat), shades[2].expand_as(flat), grey)
    ground = mix(ground, cream.expand_as(flat), 0.65 * near_crest(surface.lattice.swell(), 0.3))
    out = torch.where(surface.inside, mix(flat, ground, surface.ground), sky)
    return mix(out, sheet_of(surface, "14182c"), _bold(surface, 1.0))


def linocut(surface: Surface, variation: StyleVariation) -> Picture:
    """Lines of paper in ink around bodies and over the ground, wider where the scene is brighter."""
    dark, light = (tone.to(surface.colour) for tone in variation.tones)
    ink, paper = 0.55 * dark, 0.5 * light + 0.5 * rgb("f8f0dc").to(light)
    tone = torch.where(surface.inside, surface.tone, 0.5 + 0.45 * (surface.y - 0.3))
    cut = smooth_step(-0.35, 0.35, 2.1 * (tone - 0.5) + surface.lattice.courses(SIXTEENTH, bend=0.8))
    out = mix(ink.expand_as(surface.colour), paper.expand_as(surface.colour), cut)
    return mix(out, (0.7 * ink).expand_as(out), _bold(surface, 1.0))


def halftone(surface: Surface, variation: StyleVariation) -> Picture:
    """A comic's print: dots of the darker colour on flat light ones, bold black outlines."""
    dark, light = (tone.to(surface.colour) for tone in variation.tones)
    tone = torch.where(surface.inside, surface.tone, 0.72 + 0.4 * (surface.y - 0.5))
    dot = smooth_step(-0.3, 0.3, surface.lattice.bumps(SIXTEENTH) - 1.9 * (tone - 0.42))
    share = torch.where(surface.inside & ~surface.floor, 0.8, 0.3)
    out = mix(sheet_of(surface, "fdf6e4"), light.expand_as(surface.colour), share)
    out = mix(out, dark.expand_as(out), dot)
    black = smooth_step(0.2, 0.1, tone) * surface.inside
    return mix(out, sheet_of(surface, "101014"), torch.maximum(black, _bold(surface)))


def cartoon(surface: Surface, variation: StyleVariation) -> Picture:
    """Flat saturated colours in three steps of light, black outlines, a bright sky."""
    grey = grey_of(surface)
    vivid = saturate(surface.soft, 1.7)
    vivid = vivid / vivid.amax(-1, keepdim=True).clamp(min=0.3)
    light = (3 * smooth_step(0.05, 0.85, 0.75 * grey + 0.25 * surface.up)).floor().clamp(max=2)
    flat = (4 * vivid).round() / 4 * (0.52 + 0.24 * light)
    return torch.where(surface.inside, flat, dome(surface, "8fd8ff", "d8f4ff", 0.6)) * (1 - _bold(surface, 1.3))


def pixel(surface: Surface, variation: StyleVariation) -> Picture:
    """Big square pixels of few colours, dark ones along outlines."""
    size = 1 / 32
    vivid = (5 * saturate(blocks(surface.colour, size), 1.5)).round() / 5
    empty = (blocks(surface.void.to(vivid), size) > 0.5).to(vivid)
    edge = (blocks(surface.outline, size) > 0.28).to(vivid)
    return mix(mix(vivid, sheet_of(surface, "3c2c5c"), empty), sheet_of(surface, "100c1c"), 0.85 * edge)


def paper_cut(surface: Surface, variation: StyleVariation) -> Picture:
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
    out = ramp(variation.ramp, 0.12 + 0.62 * depth + 0.24 * shade) * (1 - 0.5 * blur(shadow, 0.008))
    edge = depth - depth.roll((reach, reach), (1, 2)) > 0.05
    return out * (1 - 0.18 * surface.outline) + 0.10 * edge


def blueprint(surface: Surface, variation: StyleVariation) -> Picture:
    """White lines on blue, with a grid, hatched in the shade."""
    tone = torch.where(surface.inside, surface.tone, 0.35)
    hatch = smooth_step(0.3, 0.05, tone) * (0.5 + 0.5 * surface.lattice.uprights(SIXTEENTH)) * surface.inside
    out = mix(sheet_of(surface, "12408c"), sheet_of(surface, "2860b0"), tone)
    out = out + 0.22 * surface.lattice.grid(EIGHTH, 0.12) + 0.16 * hatch
    line = torch.maximum(surface.outline, 0.4 * blur(surface.outline, 0.006))
    return mix(out, sheet_of(surface, "f0f6ff"), line)
