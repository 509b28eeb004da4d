"""Painted and drawn styles: van Gogh's strokes, watercolour, oil, charcoal, pencil.

Strokes belong to the surfaces that they are painted on, so that they stay where they are from view to view.
"""

from __future__ import annotations

import torch

from style_nerf2nerf.embedded.colours import StyleVariation
from style_nerf2nerf.embedded.materials import backdrop, grey_of, sheet_of
from style_nerf2nerf.embedded.patterns import Picture, blur, luminance, mix, ramp, rgb, saturate
from style_nerf2nerf.embedded.surface import Surface
from style_nerf2nerf.restyler.guides import EIGHTH, SIXTEENTH, smooth_step


def van_gogh(surface: Surface, variation: StyleVariation) -> Picture:
    """Thick, swinging strokes around bodies and over the ground."""
    stroke = surface.lattice.courses(SIXTEENTH, bend=2.0)
    dash = stroke * surface.lattice.uprights(EIGHTH)
    tone = smooth_step(0.02, 1.0, grey_of(surface))
    tone = torch.where(surface.inside, tone, 0.5 + 0.25 * surface.lattice.blotches())
    paint = ramp(variation.ramp, 0.12 + 0.74 * tone + 0.14 * stroke + 0.06 * dash) * (1 + 0.10 * stroke)
    return paint * (1 - 0.75 * surface.outline)


def watercolour(surface: Surface, variation: StyleVariation) -> Picture:
    """Thin washes of the scene's colours, with blooms and darker edges, that fade towards the paper's border."""
    bloom = surface.lattice.blotches()
    wash = 1 - (1 - saturate(surface.flat, 1.5)) * (0.95 + 0.25 * bloom)
    wash = wash * (1 - 0.35 * blur(surface.outline, 0.02))
    to_rim = torch.minimum(torch.minimum(surface.x, 1 - surface.x), torch.minimum(surface.y, 1 - surface.y))
    fade = smooth_step(0.02, 0.18, to_rim + 0.05 * bloom)
    out = mix(sheet_of(surface, "fbf8ef"), 0.12 + 0.88 * wash, fade * torch.where(surface.inside, 0.95, 0.7))
    return mix(out, sheet_of(surface, "5c5048"), 0.45 * smooth_step(0.3, 1.0, surface.outline))


def oil(surface: Surface, variation: StyleVariation) -> Picture:
    """The scene's colours in flat, warm brush strokes with ridges, in front of a brown background."""
    ridge = surface.lattice.courses(SIXTEENTH, bend=1.2) * (0.6 + 0.4 * surface.lattice.uprights(EIGHTH))
    grey = luminance(surface.flat)
    rich = (grey + 1.35 * (surface.flat - grey)) * rgb("fff0d8").to(surface.colour)
    rich = (rich - 0.5) * 1.12 + 0.46 + 0.07 * ridge
    wall = backdrop(surface, "a08050", "5c4028", (0.2, 0.8)) + 0.05 * ridge
    return torch.where(surface.void, wall, rich) * (1 - 0.35 * surface.outline)


def charcoal(surface: Surface, variation: StyleVariation) -> Picture:
    """Smudged black on grey paper, with broad strokes in the shade and white chalk in the lights."""
    tone = torch.where(surface.inside, surface.tone, 0.72)
    stroke = surface.lattice.courses(EIGHTH, bend=0.8)
    dark = 0.85 * smooth_step(0.8, 0.15, tone + 0.14 * stroke + 0.1 * surface.lattice.blotches())
    dark = torch.maximum(dark, 0.9 * blur(surface.outline, 0.018)).clamp(max=1)
    dark = torch.maximum(dark, 0.95 * surface.outline)
    out = mix(sheet_of(surface, "c8bca8") * (1 + 0.05 * surface.lattice.blotches()), sheet_of(surface, "161412"), dark)
    chalk = 0.8 * smooth_step(0.8, 0.98, tone) * surface.inside * (1 - dark)
    return mix(out, sheet_of(surface, "f8f4ec"), chalk)


def pencil(surface: Surface, variation: StyleVariation) -> Picture:
    """Graphite on white paper: dark outlines, hatching in the shade, crossed in deep shade."""
    tone = torch.where(surface.inside, surface.tone, 0.97)
    first, second = 0.5 + 0.5 * surface.lattice.courses(SIXTEENTH), 0.5 + 0.5 * surface.lattice.uprights(SIXTEENTH)
    ink = smooth_step(0.8, 0.3, tone) * (0.15 + 0.6 * first)
    ink = torch.maximum(ink, smooth_step(0.45, 0.12, tone) * (0.25 + 0.6 * second))
    ink = torch.maximum(ink, 0.92 * surface.outline).clamp(0, 0.95)
    return mix(sheet_of(surface, "f6f3ea"), sheet_of(surface, "26262c"), ink)
