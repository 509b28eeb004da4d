"""Toys with dice in them: every archetype is recognisable, and no two throws of it look the same.

A toy is a list of parts in any unit, z up, facing +x; `scenes.random_scene` brings it to size. Numbers are drawn in a fixed
order from one generator, so that a seed always gives the same toy.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from eschernet_prior.sdf import (
    Box,
    Capsule,
    Ellipsoid,
    Frustum,
    Gable,
    Lathe,
    Part,
    SmoothUnion,
    Torus,
    Vector,
    cylinder,
    euler,
    sphere,
)
from eschernet_prior.textures import Colour, Pattern, Texture

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
"""Five colours each that go together; the last but one is light or the last dark."""
PATTERNS: tuple[Pattern, ...] = ("checker", "stripes", "rings", "marble", "dots", "wood", "gradient", "patches")
BLACK: Colour = (0.08, 0.07, 0.09)
WHITE: Colour = (0.96, 0.96, 0.94)


class Dice:
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
        """True that often."""
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def plain(self, index: int) -> Texture:
        """One colour of the palette."""
        return Texture(self.palette[index % 5], gloss=self.between(0.0, 0.35))

    def fancy(self, index: int, size: float = 1.0, share: float = 0.65) -> Texture:
        """A colour of the palette, most often with a pattern in another one, scaled to a part about `size` large."""
        if not self.chance(share):
            return self.plain(index)
        pattern = self.pick(PATTERNS)
        frequency = {"gradient": 0.8, "marble": 1.0, "wood": 2.5, "patches": 0.7}.get(pattern, self.between(1.6, 3.6))
        second = self.palette[(index + self.count(1, 4)) % 5]
        axis = self.count(0, 2) if pattern in ("stripes", "marble") else 2
        return Texture(self.palette[index % 5], second, pattern, frequency / size, axis, self.between(0.0, 0.35))


def _pair(shape_at: Callable[[float], Part]) -> list[Part]:
    """The same part on both sides."""
    return [shape_at(-1.0), shape_at(1.0)]


def _eyes(at: Vector, apart: float, radius: float) -> list[Part]:
    """Two black eyes with a gleam around `at`."""
    x, y, z = at
    black, gleam = Texture(BLACK, gloss=0.6), Texture(WHITE)
    eyes = _pair(lambda side: Part(sphere(radius), black, (x, y + side * apart, z)))
    shine = (x + 0.75 * radius, y, z + 0.5 * radius)
    return eyes + _pair(lambda side: Part(sphere(radius * 0.3), gleam, (shine[0], shine[1] + side * apart, shine[2])))


def snowman(dice: Dice) -> list[Part]:
    """Two or three balls, a carrot, a scarf, a hat."""
    low, middle, top = dice.between(0.36, 0.44), dice.between(0.26, 0.32), dice.between(0.19, 0.24)
    snow = Texture(WHITE, (0.82, 0.88, 0.96), "patches", 0.6) if dice.chance(0.7) else dice.fancy(3)
    z_middle = low + 0.75 * (low + middle)
    z_top = z_middle + 0.8 * (middle + top)
    parts = [Part(sphere(low), snow, (0, 0, low)), Part(sphere(middle), snow, (0, 0, z_middle))]
    parts += [Part(sphere(top), snow, (0, 0, z_top))]
    parts += [Part(Torus(0.8 * top, 0.075), dice.fancy(0, 0.15), (0, 0, z_top - 0.85 * top))]
    parts += [Part(Frustum(0.05, 0.0, 0.16), Texture((0.95, 0.5, 0.12)), (top + 0.1, 0, z_top), euler(y=90))]
    parts += _eyes((0.86 * top, 0.0, z_top + 0.4 * top), 0.35 * top, 0.035)
    coal = Texture(BLACK, gloss=0.4)
    parts += [Part(sphere(0.035), coal, (0.97 * middle, 0, z_middle + 0.1 * i)) for i in (-0.5, 0.7)]
    hat = dice.fancy(1, 0.4)
    z_hat = z_top + 0.75 * top
    if dice.chance(0.6):
        parts += [Part(cylinder(1.15 * top, 0.02, 0.015), hat, (0, 0, z_hat))]
        parts += [Part(cylinder(0.75 * top, 0.15, 0.02), hat, (0, 0, z_hat + 0.15))]
    else:
        parts += [
            Part(Frustum(top, 0.0, 0.22), hat, (0, 0, z_hat + 0.15)),
            Part(sphere(0.07), dice.plain(2), (0, 0, z_hat + 0.36)),
        ]
    wood = Texture((0.40, 0.26, 0.16))
    reach = middle + dice.between(0.2, 0.35)
    lift = z_middle + dice.between(-0.05, 0.25)
    return parts + _pair(
        lambda side: Part(Capsule((0, side * 0.9 * middle, z_middle), (0, side * reach, lift), 0.025), wood)
    )


def mushroom(dice: Dice) -> list[Part]:
    """A dotted cap on a stem, sometimes with a smaller one beside it."""
    parts: list[Part] = []
    cap = dice.pick(("dots", "patches", "gradient", "dots"))
    texture = Texture(dice.palette[0], dice.palette[1] if cap == "gradient" else WHITE, cap, dice.between(2.0, 3.4))
    stem = dice.fancy(3, 0.6, 0.3)
    for index in range(dice.count(1, 3)):
        size = 1.0 if index == 0 else dice.between(0.35, 0.6)
        height, radius = size * dice.between(0.5, 0.8), size * dice.between(0.4, 0.55)
        angle = 2.1 * index + dice.between(-0.4, 0.4)
        away = 0.0 if index == 0 else 0.45
        at = (away * math.cos(angle), away * math.sin(angle), 0.0)
        body = Lathe((0.24 * size, 0.12 * size, 0.10 * size, 0.13 * size), height / 2)
        parts.append(Part(body, stem, (at[0], at[1], height / 2)))
        dome = SmoothUnion(
            (
                (Ellipsoid((radius, radius, 0.7 * radius)), (0, 0, 0)),
                (Torus(0.8 * radius, 0.16 * radius), (0, 0, -0.1 * radius)),
            ),
            0.1 * radius,
        )
        parts.append(Part(dome, texture, (at[0], at[1], height)))
    return parts


def house(dice: Dice) -> list[Part]:
    """Walls, a saddle roof, a door, windows, a chimney."""
    x, y, z = dice.between(0.3, 0.45), dice.between(0.35, 0.5), dice.between(0.25, 0.4)
    walls = (
        dice.plain(0)
        if dice.chance(0.4)
        else Texture(dice.palette[0], dice.palette[3], dice.pick(("bricks", "stripes", "wood")), 5.0)
    )
    roof = Texture(dice.palette[1], dice.palette[2], dice.pick(("bricks", "stripes", "solid")), 6.0, dice.count(1, 2))
    slope = dice.between(0.3, 0.5)
    parts = [
        Part(Box((x, y, z), 0.01), walls, (0, 0, z)),
        Part(Gable(y + 0.08, x + 0.08, slope), roof, (0, 0, 2 * z), euler(z=90)),
    ]
    door, glass = dice.plain(2), Texture((0.62, 0.84, 0.95), gloss=0.5)
    parts.append(Part(Box((0.02, 0.09, 0.17), 0.01), door, (x, 0, 0.17)))
    frame = Texture(WHITE)
    for side in (-1.0, 1.0):
        parts.append(Part(Box((0.012, 0.085, 0.085)), frame, (x, side * 0.6 * y, 1.2 * z)))
        parts.append(Part(Box((0.02, 0.065, 0.065)), glass, (x, side * 0.6 * y, 1.2 * z)))
        parts.append(Part(Box((0.1, 0.02, 0.08)), glass, (0, side * y, 1.1 * z)))
        parts.append(Part(Box((0.02, 0.08, 0.08)), glass, (-x, side * 0.4 * y, 1.1 * z)))
    return [*parts, Part(Box((0.06, 0.06, 0.2)), dice.plain(4), (-0.15, 0.22, 2 * z + 0.75 * slope))]


def tree(dice: Dice) -> list[Part]:
    """A trunk under cones or under a cloud of balls, with fruit."""
    height = dice.between(0.3, 0.6)
    bark = Texture((0.45, 0.29, 0.17), (0.30, 0.18, 0.10), "stripes", 8.0, 0)
    leaves = Texture((0.20, dice.between(0.42, 0.62), 0.22), (0.36, 0.68, 0.28), "patches", 1.2)
    if dice.chance(0.3):
        leaves = dice.fancy(0, 0.6)
    parts = [Part(Lathe((0.17, 0.08, 0.08, 0.06), height / 2 + 0.1), bark, (0, 0, height / 2 + 0.1))]
    if dice.chance(0.5):
        levels, radius, z = dice.count(2, 4), dice.between(0.38, 0.5), height
        for level in range(levels):
            shrink = 1.0 - 0.6 * level / levels
            tall = 0.24 * (0.7 + shrink)
            parts.append(Part(Frustum(radius * shrink, 0.02, tall / 2 + 0.08, 0.015), leaves, (0, 0, z + tall / 2)))
            z += 0.62 * tall
        return [*parts, Part(sphere(0.07), Texture((0.99, 0.82, 0.2), gloss=0.4), (0, 0, z + 0.2))]
    crown: list[tuple[Ellipsoid, Vector]] = [(sphere(dice.between(0.3, 0.38)), (0.0, 0.0, 0.0))]
    for index in range(dice.count(3, 5)):
        angle = 1.4 * index + dice.between(0, 0.6)
        crown.append(
            (
                sphere(dice.between(0.16, 0.24)),
                (0.26 * math.cos(angle), 0.26 * math.sin(angle), dice.between(-0.1, 0.22)),
            )
        )
    parts.append(Part(SmoothUnion(tuple(crown), 0.08), leaves, (0, 0, height + 0.3)))
    fruit = dice.plain(2)
    for index in range(dice.count(0, 7)):
        angle, lift = 2.4 * index, dice.between(-0.5, 0.6)
        reach = 0.40 * math.cos(lift)
        parts.append(
            Part(
                sphere(0.05),
                fruit,
                (reach * math.cos(angle), reach * math.sin(angle), height + 0.3 + 0.38 * math.sin(lift)),
            )
        )
    return parts


def vase(dice: Dice) -> list[Part]:
    """A turned vessel, sometimes with flowers."""
    half = dice.between(0.4, 0.55)
    controls = (
        dice.between(0.2, 0.3),
        dice.between(0.35, 0.75),
        dice.between(0.1, 0.7),
        dice.between(0.0, 0.25),
        dice.between(0.2, 0.4),
    )
    parts = [Part(Lathe(controls, half, 0.03), dice.fancy(0, 0.7, 0.9), (0, 0, half))]
    if dice.chance(0.5):
        return parts
    for index in range(dice.count(2, 4)):
        angle = 2.2 * index + dice.between(0, 0.5)
        lean, rise = dice.between(0.1, 0.32), 2 * half + dice.between(0.2, 0.5)
        tip = (lean * math.cos(angle), lean * math.sin(angle), rise)
        parts.append(Part(Capsule((0, 0, half), tip, 0.02), Texture((0.25, 0.55, 0.25))))
        parts += _blossom(tip, dice.between(0.1, 0.15), dice.plain(index + 1), dice.plain(index + 2))
    return parts


def _blossom(at: Vector, size: float, petals: Texture, heart: Texture) -> list[Part]:
    parts = [Part(sphere(0.5 * size), heart, (at[0], at[1], at[2] + 0.2 * size))]
    for index in range(5):
        angle = 2.0 * math.pi * index / 5
        place = (at[0] + 0.75 * size * math.cos(angle), at[1] + 0.75 * size * math.sin(angle), at[2])
        parts.append(Part(Ellipsoid((0.6 * size, 0.4 * size, 0.2 * size)), petals, place, euler(z=math.degrees(angle))))
    return parts


def totem(dice: Dice) -> list[Part]:
    """A stack of three to five plain bodies."""
    parts: list[Part] = []
    z = 0.0
    for index in range(dice.count(3, 5)):
        r, h = dice.between(0.18, 0.4), dice.between(0.1, 0.25)
        shape = dice.pick(
            (
                Box((r, r * dice.between(0.7, 1.0), h), 0.03),
                cylinder(r, h, 0.03),
                Ellipsoid((r, r, h)),
                Torus(r, 0.5 * h),
                Frustum(r, 0.5 * r, h, 0.02),
                Lathe((r, 0.4 * r, 1.4 * r, 0.6 * r), h),
            )
        )
        up = shape.support((0, 0, 1))
        parts.append(Part(shape, dice.fancy(index, 0.6, 0.8), (0, 0, z + up), euler(z=dice.between(0, 90))))
        z += 1.9 * up
    return parts


ARCHETYPES: tuple[Callable[[Dice], list[Part]], ...] = (snowman, mushroom, house, tree, vase, totem)
"""What `random_scene` draws from."""

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((0.86, 0.92, 0.97), (0.26, 0.52, 0.86)),
    ((0.99, 0.86, 0.72), (0.40, 0.52, 0.82)),
    ((0.93, 0.88, 0.94), (0.52, 0.45, 0.78)),
    ((0.90, 0.95, 0.92), (0.35, 0.68, 0.72)),
)
"""(horizon, overhead)."""
GROUNDS: tuple[Texture, ...] = (
    Texture((0.47, 0.66, 0.33), (0.40, 0.58, 0.28), "patches", 0.5, gloss=0.0),
    Texture((0.87, 0.78, 0.60), (0.80, 0.70, 0.52), "patches", 0.4, gloss=0.0),
    Texture((0.78, 0.77, 0.76), (0.62, 0.62, 0.64), "checker", 0.9, gloss=0.0),
    Texture((0.62, 0.44, 0.29), (0.52, 0.35, 0.22), "stripes", 1.0, 1, gloss=0.0),
    Texture((0.90, 0.93, 0.97), (0.82, 0.88, 0.95), "patches", 0.3, gloss=0.0),
)
