"""Randomised procedural objects: houses, vessels, vehicles, furniture.

An object is a list of parts in any unit, z up, facing +x; `scenes.random_scene` scales it.
"""

import math

from eschernet_prior.procedural.sampler import WHITE, SeededSampler
from eschernet_prior.procedural.sdf import (
    Box,
    Capsule,
    Dome,
    Ellipsoid,
    Frustum,
    Gable,
    Lathe,
    Part,
    SmoothUnion,
    Torus,
    cylinder,
    euler,
    sphere,
)
from eschernet_prior.procedural.textures import Texture

PLANKS = Texture((0.45, 0.29, 0.17), (0.30, 0.18, 0.10), "stripes", 8.0, 1, gloss=0.0)
GLASS = Texture((0.62, 0.84, 0.95), gloss=0.5)


def house(sampler: SeededSampler) -> list[Part]:
    """Walls, a saddle roof, a door, windows, a chimney."""
    x, y, z = sampler.between(0.3, 0.45), sampler.between(0.35, 0.5), sampler.between(0.25, 0.4)
    walls = (
        sampler.plain(0)
        if sampler.chance(0.4)
        else Texture(sampler.palette[0], sampler.palette[3], sampler.pick(("bricks", "stripes", "wood")), 5.0)
    )
    roof = Texture(
        sampler.palette[1], sampler.palette[2], sampler.pick(("bricks", "stripes", "solid")), 6.0, sampler.count(1, 2)
    )
    slope = sampler.between(0.3, 0.5)
    parts = [
        Part(Box((x, y, z), 0.01), walls, (0, 0, z)),
        Part(Gable(y + 0.08, x + 0.08, slope), roof, (0, 0, 2 * z), euler(z=90)),
    ]
    door, glass = sampler.plain(2), GLASS
    parts.append(Part(Box((0.02, 0.09, 0.17), 0.01), door, (x, 0, 0.17)))
    frame = Texture(WHITE)
    for side in (-1.0, 1.0):
        parts.append(Part(Box((0.012, 0.085, 0.085)), frame, (x, side * 0.6 * y, 1.2 * z)))
        parts.append(Part(Box((0.02, 0.065, 0.065)), glass, (x, side * 0.6 * y, 1.2 * z)))
        parts.append(Part(Box((0.1, 0.02, 0.08)), glass, (0, side * y, 1.1 * z)))
        parts.append(Part(Box((0.02, 0.08, 0.08)), glass, (-x, side * 0.4 * y, 1.1 * z)))
    return [*parts, Part(Box((0.06, 0.06, 0.2)), sampler.plain(4), (-0.15, 0.22, 2 * z + 0.75 * slope))]


def totem(sampler: SeededSampler) -> list[Part]:
    """A stack of three to five plain bodies."""
    parts: list[Part] = []
    z = 0.0
    for index in range(sampler.count(3, 5)):
        r, h = sampler.between(0.18, 0.4), sampler.between(0.1, 0.25)
        shape = sampler.pick(
            (
                Box((r, r * sampler.between(0.7, 1.0), h), 0.03),
                cylinder(r, h, 0.03),
                Ellipsoid((r, r, h)),
                Torus(r, 0.5 * h),
                Frustum(r, 0.5 * r, h, 0.02),
                Lathe((r, 0.4 * r, 1.4 * r, 0.6 * r), h),
            )
        )
        up = shape.support((0, 0, 1))
        parts.append(Part(shape, sampler.fancy(index, 0.6, 0.8), (0, 0, z + up), euler(z=sampler.between(0, 90))))
        z += 1.9 * up
    return parts


def tower(sampler: SeededSampler) -> list[Part]:
    """A round keep with battlements or a pointed roof, sometimes with a smaller one beside it."""
    parts: list[Part] = []
    stone = Texture(
        sampler.palette[0], sampler.palette[3], sampler.pick(("bricks", "bricks", "stripes")), 6.0, 2, gloss=0.0
    )
    roof, glass = sampler.fancy(1, 0.7), Texture((0.16, 0.17, 0.25), gloss=0.4)
    for index in range(sampler.count(1, 3)):
        size = 1.0 if index == 0 else sampler.between(0.5, 0.75)
        r, h = size * sampler.between(0.24, 0.32), size * sampler.between(0.45, 0.65)
        angle = 2.1 * index + sampler.between(-0.3, 0.3)
        x, y = (0.0, 0.0) if index == 0 else (0.38 * math.cos(angle), 0.38 * math.sin(angle))
        parts += [Part(Frustum(1.12 * r, r, h), stone, (x, y, h)), Part(cylinder(1.18 * r, 0.05), stone, (x, y, 2 * h))]
        if sampler.chance(0.6):
            parts += [Part(Frustum(1.25 * r, 0.0, 0.22 * size + 0.08), roof, (x, y, 2 * h + 0.12 + 0.22 * size))]
            parts += [Part(sphere(0.04), Texture((0.98, 0.82, 0.3), gloss=0.5), (x, y, 2 * h + 0.2 + 0.44 * size))]
        else:
            for tooth in range(6):
                turn = 60.0 * tooth
                place = (x + 1.05 * r * math.cos(math.radians(turn)), y + 1.05 * r * math.sin(math.radians(turn)))
                parts += [Part(Box((0.045, 0.07, 0.07)), stone, (*place, 2 * h + 0.1), euler(z=turn))]
        for turn in (0.0, 120.0, 240.0):
            place = (x + 1.03 * r * math.cos(math.radians(turn)), y + 1.03 * r * math.sin(math.radians(turn)))
            parts += [Part(Box((0.05, 0.045, 0.09), 0.02), glass, (*place, 1.35 * h), euler(z=turn))]
    parts += [
        Part(Box((0.05, 0.09, 0.15), 0.03), sampler.plain(4), (parts[0].shape.support((1, 0, 0)) - 0.02, 0, 0.15))
    ]
    return parts


def pot(sampler: SeededSampler) -> list[Part]:
    """A teapot or a cup on its saucer."""
    glaze = sampler.fancy(0, 0.6, 0.85)
    r = sampler.between(0.28, 0.36)
    if sampler.chance(0.4):
        h = sampler.between(0.2, 0.3)
        saucer = Part(Lathe((0.2, 0.45, 0.5, 0.55), 0.04), sampler.plain(1), (0, 0, 0.04))
        cup = Part(Lathe((0.14, 0.9 * r, r, 1.05 * r), h, 0.025), glaze, (0, 0, h + 0.05))
        tea = Part(cylinder(0.84 * r, 0.01), Texture((0.50, 0.27, 0.12), gloss=0.5), (0, 0, 1.6 * h + 0.05))
        return [saucer, cup, tea, Part(Torus(0.12, 0.03), glaze, (0, 0.95 * r, h + 0.08), euler(y=90))]
    h = sampler.between(0.24, 0.32)
    parts = [Part(Lathe((0.2, 1.5 * r, 1.35 * r, 0.2), h), glaze, (0, 0, h))]
    parts += [Part(Lathe((0.23, 0.22, 0.05), 0.06), sampler.plain(1), (0, 0, 2 * h + 0.03))]
    parts += [Part(sphere(0.055), sampler.plain(2), (0, 0, 2 * h + 0.13))]
    parts += [Part(Torus(0.17, 0.035), sampler.plain(2), (-0.98 * r - 0.04, 0, 1.1 * h), euler(x=90))]
    spout = SmoothUnion(
        (
            (Capsule((0.7 * r, 0, 0.7 * h), (1.3 * r, 0, h), 0.075), (0.0, 0.0, 0.0)),
            (Capsule((1.3 * r, 0, h), (1.6 * r, 0, 1.9 * h), 0.045), (0.0, 0.0, 0.0)),
        ),
        0.05,
    )
    return [*parts, Part(spout, glaze), Part(Torus(0.21, 0.03), sampler.plain(1), (0, 0, 0.03))]


def chair(sampler: SeededSampler) -> list[Part]:
    """A seat, four legs, a back of bars or in one piece, a cushion."""
    wood = Texture(
        sampler.palette[0], sampler.palette[1], sampler.pick(("wood", "solid", "wood")), 5.0, sampler.count(0, 1)
    )
    wide, seat, back = sampler.between(0.26, 0.34), sampler.between(0.32, 0.48), sampler.between(0.3, 0.5)
    parts = [Part(Box((wide, wide, 0.035), 0.02), wood, (0, 0, seat))]
    for x in (-0.85 * wide, 0.85 * wide):
        for y in (-0.85 * wide, 0.85 * wide):
            parts += [Part(Frustum(0.028, 0.042, seat / 2), wood, (x, y, seat / 2))]
    x = -0.88 * wide
    if sampler.chance(0.5):
        parts += [Part(Box((0.03, wide, back), 0.025), sampler.fancy(2, 0.5), (x, 0, seat + back))]
    else:
        bars = sampler.count(3, 5)
        for index in range(bars):
            y = (2.0 * index / (bars - 1) - 1.0) * 0.85 * wide
            parts += [Part(cylinder(0.026, back), wood, (x, y, seat + back))]
        parts += [Part(Box((0.035, wide, 0.06), 0.03), wood, (x, 0, seat + 2 * back))]
    if sampler.chance(0.6):
        parts += [Part(Ellipsoid((0.9 * wide, 0.9 * wide, 0.07)), sampler.fancy(3, 0.4, 1.0), (0.02, 0, seat + 0.07))]
    return parts


def car(sampler: SeededSampler) -> list[Part]:
    """A car, a bus or a lorry on four wheels."""
    paint, roof = sampler.fancy(0, 1.2, 0.4), sampler.plain(1)
    long, wide, low = sampler.between(0.45, 0.6), sampler.between(0.22, 0.28), sampler.between(0.1, 0.14)
    wheel = sampler.between(0.11, 0.15)
    z = wheel + low
    parts = [Part(Box((long, wide, low), 0.06), paint, (0, 0, z))]
    cabin, tall = sampler.between(0.4, 0.85) * long, sampler.between(0.1, 0.2)
    x = sampler.between(-0.9, 0.2) * (long - cabin)
    parts += [Part(Box((cabin, 0.9 * wide, tall), 0.06), GLASS, (x, 0, z + low + 0.7 * tall))]
    parts += [Part(Box((1.02 * cabin, 0.92 * wide, 0.05), 0.04), roof, (x, 0, z + low + 1.7 * tall))]
    parts += [
        Part(Box((0.03, 0.92 * wide, tall), 0.02), roof, (x + i * 0.3 * cabin, 0, z + low + 0.7 * tall))
        for i in (-1, 1)
    ]
    tyre, hub, lamp = (
        Texture((0.12, 0.12, 0.14), gloss=0.1),
        sampler.plain(3),
        Texture((1.0, 0.93, 0.6), gloss=0.6, glow=0.4),
    )
    for front in (-0.6 * long, 0.6 * long):
        for side in (-1.0, 1.0):
            place = (front, side * wide, wheel)
            parts += [Part(cylinder(wheel, 0.055, 0.03), tyre, place, euler(x=90))]
            parts += [Part(cylinder(0.55 * wheel, 0.065, 0.01), hub, place, euler(x=90))]
    for side in (-1.0, 1.0):
        parts += [Part(sphere(0.045), lamp, (long - 0.01, side * 0.65 * wide, z + 0.02))]
        parts += [Part(sphere(0.035), Texture((0.85, 0.1, 0.1)), (0.01 - long, side * 0.65 * wide, z + 0.02))]
    return [*parts, Part(Box((0.03, wide, 0.035), 0.02), hub, (long, 0, wheel + 0.03))]


def boat(sampler: SeededSampler) -> list[Part]:
    """A hull with a mast and a sail, or a steamer with funnels."""
    hull = Texture(sampler.palette[0], sampler.palette[1], sampler.pick(("stripes", "solid", "wood")), 5.0, 2)
    long, wide = sampler.between(0.42, 0.55), sampler.between(0.18, 0.24)
    parts = [
        Part(Dome((long, wide, 0.36)), hull, (0, 0, 0.36), euler(x=180)),
        Part(cylinder(0.8 * wide, 0.015), PLANKS, (0.3 * long, 0, 0.365)),
        Part(Box((0.55 * long, 0.75 * wide, 0.02)), PLANKS, (0, 0, 0.36)),
        Part(
            Torus(0.07, 0.028),
            Texture((0.95, 0.35, 0.25), WHITE, "stripes", 8.0, 0),
            (0, 0.98 * wide, 0.27),
            euler(x=80),
        ),
    ]
    if sampler.chance(0.5):
        tall = sampler.between(0.4, 0.6)
        parts += [Part(cylinder(0.022, tall), PLANKS, (0.05, 0, 0.4 + tall))]
        sail = Texture(WHITE, sampler.palette[2], sampler.pick(("stripes", "checker", "solid")), 4.0, 2)
        parts += [Part(Gable(0.36, 0.012, 1.5 * tall), sail, (-0.16, 0, 0.52))]
        return [*parts, Part(Box((0.07, 0.008, 0.045)), sampler.plain(3), (0.12, 0, 0.4 + 2 * tall))]
    deck = sampler.plain(2)
    parts += [Part(Box((0.26, 0.14, 0.1), 0.02), Texture(WHITE), (-0.05, 0, 0.46))]
    parts += [Part(Box((0.14, 0.11, 0.07), 0.02), deck, (-0.02, 0, 0.62))]
    parts += [Part(sphere(0.035), GLASS, (-0.05 + 0.13 * i, side * 0.14, 0.48)) for i in (-1, 0, 1) for side in (-1, 1)]
    funnel = Texture(sampler.palette[3], sampler.palette[4], "stripes", 5.0, 2)
    return parts + [Part(cylinder(0.055, 0.13), funnel, (-0.12 * i, 0, 0.78)) for i in range(sampler.count(1, 2))]


def rocket(sampler: SeededSampler) -> list[Part]:
    """A turned body with fins, a porthole and a nozzle."""
    half, fat = sampler.between(0.45, 0.6), sampler.between(0.2, 0.32)
    body = Texture(
        WHITE, sampler.palette[1], sampler.pick(("solid", "stripes", "checker", "gradient")), 1.8, 2, gloss=0.4
    )
    z = half + 0.2
    parts = [Part(Lathe((0.5 * fat, 1.5 * fat, 1.1 * fat, 0.7 * fat, 0.02), half), body, (0, 0, z))]
    trim, count = sampler.plain(0), sampler.count(3, 4)
    for index in range(count):
        turn = 360.0 * index / count
        x, y = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        fin = Box((0.17, 0.02, 0.2), 0.015)
        parts += [Part(fin, trim, (x * (fat + 0.04), y * (fat + 0.04), 0.27), euler(y=22, z=turn))]
    parts += [Part(Frustum(0.19, 0.1, 0.09), Texture((0.35, 0.36, 0.4), gloss=0.4), (0, 0, 0.13))]
    for turn in (0.0, 180.0):
        x = 0.93 * fat * math.cos(math.radians(turn))
        parts += [
            Part(Torus(0.085, 0.03), trim, (x, 0, z + 0.12), euler(y=90)),
            Part(sphere(0.085), GLASS, (0.93 * x, 0, z + 0.12)),
        ]
    return parts


def cake(sampler: SeededSampler) -> list[Part]:
    """Tiers with icing, cherries and candles."""
    parts: list[Part] = [Part(cylinder(0.52, 0.02, 0.01), Texture(WHITE, gloss=0.4), (0, 0, 0.02))]
    z, r = 0.04, sampler.between(0.38, 0.46)
    cherry = Texture((0.85, 0.1, 0.16), gloss=0.6)
    for tier in range(sampler.count(1, 3)):
        h = sampler.between(0.1, 0.15)
        parts += [Part(cylinder(r, h, 0.02), sampler.fancy(tier, 0.6, 0.6), (0, 0, z + h))]
        z += 2 * h
        parts += [Part(Torus(0.93 * r, 0.05), sampler.plain(tier + 2), (0, 0, z))]
        r *= 0.66
    count, flame = sampler.count(1, 5), Texture((1.0, 0.75, 0.2), glow=0.9)
    for index in range(count):
        turn = 2.0 * math.pi * index / count
        x, y = (0.0, 0.0) if count == 1 else (0.7 * r * math.cos(turn), 0.7 * r * math.sin(turn))
        candle = Texture(sampler.palette[(index + 1) % 5], WHITE, "stripes", 12.0, 2)
        parts += [
            Part(cylinder(0.024, 0.1), candle, (x, y, z + 0.1)),
            Part(Ellipsoid((0.025, 0.025, 0.05)), flame, (x, y, z + 0.25)),
        ]
    edge = 1.5 * r
    for index in range(8):
        turn = 2.0 * math.pi * (index + 0.5) / 8
        parts += [Part(sphere(0.045), cherry, (1.25 * edge * math.cos(turn), 1.25 * edge * math.sin(turn), z + 0.02))]
    return parts


def lamp(sampler: SeededSampler) -> list[Part]:
    """A foot, a turned or plain stem, a shade."""
    stem, shade = sampler.plain(0), sampler.fancy(1, 0.6, 0.7)
    tall, r = sampler.between(0.25, 0.4), sampler.between(0.26, 0.38)
    shape = (
        Lathe((0.1, sampler.between(0.05, 0.4), sampler.between(0.05, 0.3), 0.04), tall)
        if sampler.chance(0.7)
        else cylinder(0.035, tall)
    )
    parts = [
        Part(cylinder(sampler.between(0.2, 0.26), 0.03, 0.02), stem, (0, 0, 0.03)),
        Part(shape, stem, (0, 0, tall + 0.05)),
    ]
    up = sampler.between(0.16, 0.24)
    glowing = Texture(shade.colour, shade.second, shade.pattern, shade.frequency, shade.axis, 0.05, glow=0.25)
    parts += [Part(Frustum(r, sampler.between(0.4, 0.9) * r, up), glowing, (0, 0, 2 * tall + 0.05 + up))]
    return [*parts, Part(sphere(0.04), stem, (0, 0, 2 * tall + 0.1 + 2 * up))]


def gift(sampler: SeededSampler) -> list[Part]:
    """Wrapped boxes with ribbons and a bow, one on top of the other."""
    parts: list[Part] = []
    z, half, ribbon = 0.0, sampler.between(0.34, 0.42), sampler.plain(2)
    for index in range(sampler.count(1, 3)):
        h, turn = half * sampler.between(0.5, 0.95), sampler.between(0, 60)
        paper, ribbon = sampler.fancy(index, half, 0.9), sampler.plain(index + 2)
        parts += [Part(Box((half, half, h), 0.015), paper, (0, 0, z + h), euler(z=turn))]
        parts += [Part(Box((half + 0.008, 0.05, h + 0.008)), ribbon, (0, 0, z + h), euler(z=turn))]
        parts += [Part(Box((0.05, half + 0.008, h + 0.008)), ribbon, (0, 0, z + h), euler(z=turn))]
        z, half = z + 2 * h, 0.68 * half
    for side in (0.0, 90.0, 180.0, 270.0):
        x, y = (0.1 * math.cos(math.radians(side)), 0.1 * math.sin(math.radians(side)))
        parts += [Part(Torus(0.08, 0.03), ribbon, (x, y, z + 0.06), euler(x=65, z=side))]
    return [*parts, Part(sphere(0.05), ribbon, (0, 0, z + 0.05))]


def planet(sampler: SeededSampler) -> list[Part]:
    """A ball with a ring and moons on a stand, like a little orrery."""
    r = sampler.between(0.3, 0.4)
    z = 0.5 + r
    parts = [
        Part(sphere(r), sampler.fancy(0, 0.8, 1.0), (0, 0, z)),
        Part(cylinder(0.025, 0.28), sampler.plain(3), (0, 0, 0.3)),
    ]
    parts += [Part(Lathe((0.28, 0.28, 0.03, 0.03), 0.1), sampler.fancy(3, 0.5), (0, 0, 0.1))]
    tilt = (sampler.between(-30, 30), sampler.between(-30, 30))
    if sampler.chance(0.7):
        ring = Texture(sampler.palette[1], sampler.palette[2], "rings", 9.0)
        parts += [Part(cylinder(1.6 * r, 0.012), ring, (0, 0, z), euler(*tilt))]
    for index in range(sampler.count(1, 3)):
        turn, lift = 2.2 * index + sampler.between(0, 1), sampler.between(-0.5, 0.6)
        reach = 1.65 * r * math.cos(lift)
        place = (reach * math.cos(turn), reach * math.sin(turn), z + 1.65 * r * math.sin(lift))
        parts += [Part(sphere(sampler.between(0.05, 0.1)), sampler.plain(index + 2), place)]
    return parts


THINGS = (house, totem, tower, pot, chair, car, boat, rocket, cake, lamp, gift, planet)
