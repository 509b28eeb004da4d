"""Randomised procedural plants: trees, mushrooms, cactuses, vases with flowers.

An object is a list of parts in any unit, z up, facing +x; `scenes.random_scene` scales it.
"""

import math

from eschernet_prior.procedural.sampler import WHITE, SeededSampler
from eschernet_prior.procedural.sdf import (
    Capsule,
    Ellipsoid,
    Frustum,
    Lathe,
    Part,
    SmoothUnion,
    Torus,
    Vector,
    euler,
    sphere,
)
from eschernet_prior.procedural.textures import Texture

BARK = Texture((0.45, 0.29, 0.17), (0.30, 0.18, 0.10), "stripes", 8.0, 0, gloss=0.0)
STALK = Texture((0.25, 0.55, 0.25), gloss=0.05)


def mushroom(sampler: SeededSampler) -> list[Part]:
    """A dotted cap on a stem, sometimes with a smaller one beside it."""
    parts: list[Part] = []
    cap = sampler.pick(("dots", "patches", "gradient", "dots"))
    texture = Texture(
        sampler.palette[0], sampler.palette[1] if cap == "gradient" else WHITE, cap, sampler.between(2.0, 3.4)
    )
    stem = sampler.fancy(3, 0.6, 0.3)
    for index in range(sampler.count(1, 3)):
        size = 1.0 if index == 0 else sampler.between(0.35, 0.6)
        height, radius = size * sampler.between(0.5, 0.8), size * sampler.between(0.4, 0.55)
        angle = 2.1 * index + sampler.between(-0.4, 0.4)
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


def tree(sampler: SeededSampler) -> list[Part]:
    """A trunk under cones or under a cloud of balls, with fruit."""
    height = sampler.between(0.3, 0.6)
    leaves = Texture((0.20, sampler.between(0.42, 0.62), 0.22), (0.36, 0.68, 0.28), "patches", 1.2)
    if sampler.chance(0.3):
        leaves = sampler.fancy(0, 0.6)
    parts = [Part(Lathe((0.17, 0.08, 0.08, 0.06), height / 2 + 0.1), BARK, (0, 0, height / 2 + 0.1))]
    if sampler.chance(0.5):
        levels, radius, z = sampler.count(2, 4), sampler.between(0.38, 0.5), height
        for level in range(levels):
            shrink = 1.0 - 0.6 * level / levels
            tall = 0.24 * (0.7 + shrink)
            parts.append(Part(Frustum(radius * shrink, 0.02, tall / 2 + 0.08, 0.015), leaves, (0, 0, z + tall / 2)))
            z += 0.62 * tall
        return [*parts, Part(sphere(0.07), Texture((0.99, 0.82, 0.2), gloss=0.4), (0, 0, z + 0.2))]
    crown: list[tuple[Ellipsoid, Vector]] = [(sphere(sampler.between(0.3, 0.38)), (0.0, 0.0, 0.0))]
    for index in range(sampler.count(3, 5)):
        angle = 1.4 * index + sampler.between(0, 0.6)
        crown.append(
            (
                sphere(sampler.between(0.16, 0.24)),
                (0.26 * math.cos(angle), 0.26 * math.sin(angle), sampler.between(-0.1, 0.22)),
            )
        )
    parts.append(Part(SmoothUnion(tuple(crown), 0.08), leaves, (0, 0, height + 0.3)))
    fruit = sampler.plain(2)
    for index in range(sampler.count(0, 7)):
        angle, lift = 2.4 * index, sampler.between(-0.5, 0.6)
        reach = 0.40 * math.cos(lift)
        parts.append(
            Part(
                sphere(0.05),
                fruit,
                (reach * math.cos(angle), reach * math.sin(angle), height + 0.3 + 0.38 * math.sin(lift)),
            )
        )
    return parts


def vase(sampler: SeededSampler) -> list[Part]:
    """A turned vessel, sometimes with flowers."""
    half = sampler.between(0.4, 0.55)
    controls = (
        sampler.between(0.2, 0.3),
        sampler.between(0.35, 0.75),
        sampler.between(0.1, 0.7),
        sampler.between(0.0, 0.25),
        sampler.between(0.2, 0.4),
    )
    parts = [Part(Lathe(controls, half, 0.03), sampler.fancy(0, 0.7, 0.9), (0, 0, half))]
    if sampler.chance(0.5):
        return parts
    for index in range(sampler.count(2, 4)):
        angle = 2.2 * index + sampler.between(0, 0.5)
        lean, rise = sampler.between(0.1, 0.32), 2 * half + sampler.between(0.2, 0.5)
        tip = (lean * math.cos(angle), lean * math.sin(angle), rise)
        parts.append(Part(Capsule((0, 0, half), tip, 0.02), STALK))
        parts += blossom(tip, sampler.between(0.1, 0.15), sampler.plain(index + 1), sampler.plain(index + 2))
    return parts


def blossom(at: Vector, size: float, petals: Texture, heart: Texture) -> list[Part]:
    """Five petals around a heart, open to the top."""
    parts = [Part(sphere(0.5 * size), heart, (at[0], at[1], at[2] + 0.2 * size))]
    for index in range(5):
        angle = 2.0 * math.pi * index / 5
        place = (at[0] + 0.75 * size * math.cos(angle), at[1] + 0.75 * size * math.sin(angle), at[2])
        parts.append(Part(Ellipsoid((0.6 * size, 0.4 * size, 0.2 * size)), petals, place, euler(z=math.degrees(angle))))
    return parts


def cactus(sampler: SeededSampler) -> list[Part]:
    """A cactus with arms in a pot."""
    green = Texture(
        (0.25, sampler.between(0.5, 0.65), 0.30), (0.55, 0.78, 0.40), "stripes", 5.0, sampler.count(0, 1), gloss=0.05
    )
    clay = sampler.fancy(0, 0.5)
    parts = [Part(Frustum(0.2, 0.28, 0.17), clay, (0, 0, 0.17)), Part(Torus(0.27, 0.04), clay, (0, 0, 0.33))]
    tall = sampler.between(0.5, 0.8)
    limbs: list[tuple[Capsule, Vector]] = [
        (Capsule((0, 0, 0.3), (0, 0, 0.35 + tall), sampler.between(0.12, 0.17)), (0.0, 0.0, 0.0))
    ]
    tips: list[Vector] = [(0.0, 0.0, 0.5 + tall)]
    for index in range(sampler.count(1, 3)):
        turn = 2.1 * index + sampler.between(-0.4, 0.4)
        z, up = 0.4 + sampler.between(0.2, 0.55) * tall, sampler.between(0.12, 0.3)
        x, y = 0.3 * math.cos(turn), 0.3 * math.sin(turn)
        limbs += [
            (Capsule((0, 0, z), (x, y, z), 0.08), (0.0, 0.0, 0.0)),
            (Capsule((x, y, z), (x, y, z + up), 0.08), (0.0, 0.0, 0.0)),
        ]
        tips.append((x, y, z + up + 0.07))
    parts += [Part(SmoothUnion(tuple(limbs), 0.06), green)]
    for tip in tips:
        if sampler.chance(0.6):
            parts += blossom(tip, 0.1, sampler.plain(1), sampler.plain(2))
    return parts


PLANTS = (mushroom, tree, vase, cactus)
