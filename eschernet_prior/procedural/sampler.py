"""Seeded random numbers, palettes, textures, skies and grounds for procedural objects.

Numbers are drawn in a fixed order from one generator, so that a seed always gives the same object.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from eschernet_prior.procedural.textures import Colour, Pattern, Texture

T = TypeVar("T")

PALETTES: tuple[tuple[Colour, ...], ...] = (
    ((0.90, 0.22, 0.21), (0.98, 0.75, 0.18), (0.16, 0.50, 0.73), (0.95, 0.93, 0.86), (0.20, 0.24, 0.35)),
    ((0.16, 0.62, 0.56), (0.91, 0.77, 0.42), (0.96, 0.64, 0.38), (0.91, 0.44, 0.32), (0.15, 0.27, 0.33)),
    ((0.94, 0.42, 0.55), (0.98, 0.80, 0.83), (0.46, 0.78, 0.74), (0.99, 0.95, 0.78), (0.36, 0.29, 0.45)),
    ((0.47, 0.71, 0.28), (0.97, 0.86, 0.36), (0.55, 0.34, 0.20), (0.93, 0.90, 0.80), (0.82, 0.30, 0.22)),
    ((0.38, 0.33, 0.75), (0.93, 0.36, 0.62), (0.99, 0.72, 0.28), (0.33, 0.77, 0.90), (0.96, 0.95, 0.98)),
    ((0.83, 0.52, 0.24), (0.58, 0.29, 0.15), (0.94, 0.85, 0.68), (0.29, 0.45, 0.42), (0.77, 0.22, 0.17)),
    ((0.10, 0.55, 0.82), (0.60, 0.85, 0.95), (1.00, 0.60, 0.20), (0.98, 0.97, 0.92), (0.10, 0.22, 0.42)),
    ((0.64, 0.82, 0.35), (0.20, 0.60, 0.40), (0.98, 0.55, 0.45), (0.99, 0.90, 0.60), (0.45, 0.25, 0.50)),
)
"""Palettes of five matching colours; the last but one is light or the last dark."""
PATTERNS: tuple[Pattern, ...] = ("checker", "stripes", "rings", "marble", "dots", "wood", "gradient", "patches")
BLACK: Colour = (0.08, 0.07, 0.09)
WHITE: Colour = (0.96, 0.96, 0.94)


class SeededSampler:
    """Random numbers, colours from one palette, and textures made of them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.palette = [self._jittered(c) for c in self.pick(PALETTES)]
        self.rng.shuffle(self.palette)

    def _jittered(self, colour: Colour) -> Colour:
        a, b, c = (float(np.clip(x + self.rng.uniform(-0.06, 0.06), 0.03, 0.98)) for x in colour)
        return (a, b, c)

    def between(self, low: float, high: float) -> float:
        """A number from [low, high)."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        """A random element."""
        return options[int(self.rng.integers(len(options)))]

    def plain(self, index: int) -> Texture:
        """A texture of one colour of the palette."""
        return Texture(self.palette[index % 5], gloss=self.between(0.0, 0.35))

    def fancy(self, index: int, size: float = 1.0, share: float = 0.65) -> Texture:
        """A texture of the palette, with probability `share` patterned, scaled to a part of about `size`."""
        if not self.chance(share):
            return self.plain(index)
        pattern = self.pick(PATTERNS)
        frequency = {"gradient": 0.8, "marble": 1.0, "wood": 2.5, "patches": 0.7}.get(pattern, self.between(1.6, 3.6))
        second = self.palette[(index + self.count(1, 4)) % 5]
        axis = self.count(0, 2) if pattern in ("stripes", "marble") else 2
        return Texture(self.palette[index % 5], second, pattern, frequency / size, axis, self.between(0.0, 0.35))


SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((0.86, 0.92, 0.97), (0.26, 0.52, 0.86)),
    ((0.99, 0.86, 0.72), (0.40, 0.52, 0.82)),
    ((0.93, 0.88, 0.94), (0.52, 0.45, 0.78)),
    ((0.90, 0.95, 0.92), (0.35, 0.68, 0.72)),
)
"""(horizon, overhead)."""
LAWN = Texture((0.47, 0.66, 0.33), (0.40, 0.58, 0.28), "patches", 0.6, gloss=0.0)
SAND = Texture((0.87, 0.78, 0.60), (0.80, 0.70, 0.52), "patches", 0.6, gloss=0.0)
SNOW = Texture((0.92, 0.95, 0.98), (0.80, 0.88, 0.96), "patches", 0.45, gloss=0.0)
GROUNDS: tuple[Texture, ...] = (
    LAWN,
    SAND,
    SNOW,
    Texture((0.78, 0.77, 0.76), (0.62, 0.62, 0.64), "checker", 0.9, gloss=0.0),
    Texture((0.62, 0.44, 0.29), (0.52, 0.35, 0.22), "stripes", 2.0, 1, gloss=0.0),
)
