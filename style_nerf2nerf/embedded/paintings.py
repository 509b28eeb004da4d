"""Styles of a hand that paints or draws: van Gogh's strokes, watercolour, oil, charcoal, pencil.

Strokes keep to the picture, as on paper, and bend with depth and shading: what photo and depth show decides them.
"""

from __future__ import annotations

import torch

from style_nerf2nerf.embedded.colours import Hand
from style_nerf2nerf.embedded.materials import backdrop, grey_of, sheet_of
from style_nerf2nerf.embedded.patterns import (
    Picture,
    Plane,
    blur,
    lines,
    mix,
    ramp,
    rgb,
    saturate,
    smooth_step,
    value_noise,
)
from style_nerf2nerf.embedded.surface import Surface


def _screen_noise(surface: Surface, period: float, seed: int) -> Plane:
    """Value noise in [0, 1] of the picture's plane, the same in every view."""
    return value_noise(surface.screen[:1], period, seed).expand_as(surface.depth)


def _swirl(surface: Surface, seed: int) -> Plane:
    """A smooth field whose level lines are the eddies of a sky."""
    return _screen_noise(surface, 0.35, seed) + 0.35 * _screen_noise(surface, 0.16, seed + 1)


def van_gogh(surface: Surface, hand: Hand) -> Picture:
    """Thick swirling strokes: eddies in the sky, waves on the ground, lines that bend around bodies."""
    swirl = _swirl(surface, 3)
    sky = (0.55 * surface.y + 0.75 * swirl) / 0.052
    ground = (surface.y + 0.05 * torch.sin(2 * torch.pi * surface.x / 0.31)) / 0.042
    body = (0.8 * surface.x + 0.5 * surface.y + 0.3 * surface.relief + 0.22 * surface.up) / 0.045
    phase = torch.where(surface.inside, torch.where(surface.floor, ground, body), sky)
    stroke = torch.sin(2 * torch.pi * phase)
    dash = torch.sin(2 * torch.pi * (surface.x - 0.6 * surface.y) / 0.125 + 3 * phase.floor())
    tone = smooth_step(0.02, 1.0, grey_of(surface))
    tone = torch.where(surface.inside, tone, 0.42 + 0.5 * (swirl - 0.65))
    paint = ramp(hand.ramp, 0.1 + 0.78 * tone + 0.10 * stroke + 0.04 * dash) * (1 + 0.10 * stroke)
    return paint * (1 - 0.75 * surface.outline)


def watercolour(surface: Surface, hand: Hand) -> Picture:
    """Thin washes of the scene's colours, darker along edges, that fade into the paper's rim."""
    grain = 0.6 * _screen_noise(surface, 0.05, 11) + 0.8 * _screen_noise(surface, 0.16, 12)
    wash = 1 - (1 - saturate(surface.flat, 1.5)) * (0.75 + 0.3 * grain)
    wash = wash * (1 - 0.35 * blur(surface.outline, 0.02))
    to_rim = torch.minimum(torch.minimum(surface.x, 1 - surface.x), torch.minimum(surface.y, 1 - surface.y))
    fade = smooth_step(0.02, 0.18, to_rim + 0.10 * (grain - 0.7))
    out = mix(sheet_of(surface, "fbf8ef"), 0.12 + 0.88 * wash, fade * torch.where(surface.inside, 0.95, 0.7))
    return mix(out, sheet_of(surface, "5c5048"), 0.45 * smooth_step(0.3, 1.0, surface.outline))


def oil(surface: Surface, hand: Hand) -> Picture:
    """The scene's colours in flat warm brush strokes with the bristles' ridges, before an old master's brown."""
    body = (0.7 * surface.x + 0.7 * surface.y + 0.25 * surface.relief + 0.2 * surface.up) / 0.04
    sky = (surface.y + 0.12 * _swirl(surface, 21)) / 0.045
    ridge = torch.sin(2 * torch.pi * torch.where(surface.inside, body, sky))
    ridge = ridge * (0.6 + 0.4 * torch.sin(2 * torch.pi * surface.x / 0.09))
    grey = surface.flat @ surface.flat.new_tensor([0.299, 0.587, 0.114])[:, None]
    rich = (grey + 1.35 * (surface.flat - grey)) * rgb("fff0d8").to(surface.colour)
    rich = (rich - 0.5) * 1.12 + 0.46 + 0.045 * ridge
    wall = backdrop(surface, "a08050", "5c4028", (0.2, 0.8)) + 0.03 * ridge
    return torch.where(surface.void, wall, rich) * (1 - 0.35 * surface.outline)


def charcoal(surface: Surface, hand: Hand) -> Picture:
    """Smudged black on rough grey paper, with white chalk in the lights."""
    tone = torch.where(surface.inside, surface.tone, 0.72)
    grain = 0.5 * _screen_noise(surface, 0.0157, 31) + 0.5 * _screen_noise(surface, 0.09, 32)
    dark = 0.85 * smooth_step(0.8, 0.15, tone + 0.25 * (grain - 0.5))
    dark = torch.maximum(dark, 0.9 * blur(surface.outline, 0.018)).clamp(max=1)
    dark = torch.maximum(dark, 0.95 * surface.outline)
    out = mix(sheet_of(surface, "c8bca8") * (0.95 + 0.1 * grain), sheet_of(surface, "161412"), dark)
    chalk = 0.8 * smooth_step(0.8, 0.98, tone) * surface.inside * (1 - dark)
    return mix(out, sheet_of(surface, "f8f4ec"), chalk)


def pencil(surface: Surface, hand: Hand) -> Picture:
    """Graphite on white paper: dark outlines, hatching in the shade, crossed in deep shade."""
    tone = torch.where(surface.inside, surface.tone, 0.97)
    first, second = lines(32 * (surface.x + surface.y)), lines(32 * (surface.x - surface.y))
    ink = smooth_step(0.75, 0.3, tone) * (0.25 + 0.5 * first)
    ink = torch.maximum(ink, smooth_step(0.42, 0.12, tone) * (0.35 + 0.5 * second))
    ink = torch.maximum(ink, 0.92 * surface.outline).clamp(0, 0.95)
    return mix(sheet_of(surface, "f6f3ea"), sheet_of(surface, "26262c"), ink)
