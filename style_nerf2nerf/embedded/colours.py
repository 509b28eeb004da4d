"""The colours that prompts may name, and the free choices of a painting.

A *pair* is two colour names: the darker one is a picture's shadows and middle tones, the lighter one its lights. A
*variation* is one drawing of a painter's choices: the pair, which words can decide, and the *mood*, a warm or a cool
light, which no word decides. Views of a scene have one variation.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from style_nerf2nerf.embedded.patterns import LUMA, Colour, Palette, Picture, rgb

Pair = tuple[str, str]

COLOURS = {
    "red": "b8201c",
    "orange": "e8701c",
    "gold": "e8b83c",
    "green": "2c8040",
    "turquoise": "22a0a0",
    "blue": "1c4fa8",
    "purple": "66309c",
    "pink": "e878a0",
    "brown": "6c4020",
    "cream": "f4e6c4",
    "white": "f8f8f4",
    "black": "18181c",
}
"""Colours that prompts may name, as hexadecimal codes."""
PAIRS: tuple[Pair, ...] = (
    ("red", "gold"),
    ("blue", "white"),
    ("green", "gold"),
    ("purple", "pink"),
    ("blue", "orange"),
    ("turquoise", "cream"),
    ("brown", "cream"),
    ("red", "white"),
    ("green", "white"),
    ("black", "gold"),
    ("purple", "gold"),
    ("blue", "gold"),
    ("turquoise", "pink"),
    ("red", "black"),
    ("pink", "white"),
    ("orange", "cream"),
)
"""Pairs that go well together."""
PLAIN_PAIRS = 0.6
"""Share of these among drawn pairs; the others are any two colours of different brightness."""
MOODS = ((1.04, 0.985, 0.87), (0.90, 0.975, 1.06))
"""Factors of the light on red, green and blue: warm, cool."""


def _brightness(name: str) -> float:
    return float(rgb(COLOURS[name]) @ torch.tensor(LUMA))


@dataclass(frozen=True)
class StyleVariation:
    """The free choices of a painting: its colours and its light."""

    pair: Pair = PAIRS[0]
    """Names of the colours, for styles that take colours."""
    mood: int = 0
    """An index into `MOODS`."""

    @property
    def tones(self) -> tuple[Colour, Colour]:
        """The pair's colours, the darker one first."""
        dark, light = sorted(self.pair, key=_brightness)
        return rgb(COLOURS[dark]), rgb(COLOURS[light])

    @property
    def ramp(self) -> Palette:
        """Six colours from deep shadow to highlight."""
        dark, light = self.tones
        shades = (0.3 * dark, 0.7 * dark, 0.9 * dark + 0.1 * light, 0.5 * dark + 0.5 * light)
        return torch.stack([*shades, light, 0.55 * light + 0.45])

    def light(self, picture: Picture) -> Picture:
        """The picture in this variation's light, in [0, 1]."""
        return (picture.clamp(0, 1) * picture.new_tensor(MOODS[self.mood])).clamp(0, 1)


def draw_pair(rng: random.Random) -> Pair:
    """Draw two colours of different brightness, often a pair that goes well together."""
    if rng.random() < PLAIN_PAIRS:
        return rng.choice(PAIRS)
    while True:
        first, second = rng.sample(list(COLOURS), 2)
        if abs(_brightness(first) - _brightness(second)) > 0.12:
            return first, second


def draw_variation(rng: random.Random) -> StyleVariation:
    """Draw a pair and a mood."""
    return StyleVariation(draw_pair(rng), rng.randint(0, 1))
