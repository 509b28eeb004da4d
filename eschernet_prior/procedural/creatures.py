"""Randomised procedural objects with a face: snowmen, robots, animals.

An object is a list of parts in any unit, z up, facing +x; `scenes.random_scene` scales it.
"""

from collections.abc import Callable

from eschernet_prior.procedural.sampler import BLACK, WHITE, SeededSampler
from eschernet_prior.procedural.sdf import (
    Box,
    Capsule,
    Ellipsoid,
    Frustum,
    Lathe,
    Part,
    SmoothUnion,
    Torus,
    Vector,
    cylinder,
    euler,
    sphere,
)
from eschernet_prior.procedural.textures import Texture


def pair(shape_at: Callable[[float], Part]) -> list[Part]:
    """The same part on both sides: `shape_at` gets -1 for the right, +1 for the left."""
    return [shape_at(-1.0), shape_at(1.0)]


def eyes(at: Vector, apart: float, radius: float) -> list[Part]:
    """Two black eyes with a gleam, `apart` to both sides of `at`."""
    x, y, z = at
    black, gleam = Texture(BLACK, gloss=0.6), Texture(WHITE)
    balls = pair(lambda side: Part(sphere(radius), black, (x, y + side * apart, z)))
    shine = (x + 0.75 * radius, y, z + 0.5 * radius)
    return balls + pair(lambda side: Part(sphere(radius * 0.3), gleam, (shine[0], shine[1] + side * apart, shine[2])))


def snowman(sampler: SeededSampler) -> list[Part]:
    """Three balls, a carrot, a scarf, a hat."""
    low, middle, top = sampler.between(0.36, 0.44), sampler.between(0.26, 0.32), sampler.between(0.19, 0.24)
    snow = Texture(WHITE, (0.82, 0.88, 0.96), "patches", 0.6) if sampler.chance(0.7) else sampler.fancy(3)
    z_middle = low + 0.75 * (low + middle)
    z_top = z_middle + 0.8 * (middle + top)
    parts = [Part(sphere(r), snow, (0, 0, z)) for r, z in ((low, low), (middle, z_middle), (top, z_top))]
    parts += [Part(Torus(0.8 * top, 0.075), sampler.fancy(0, 0.15), (0, 0, z_top - 0.85 * top))]
    parts += [Part(Frustum(0.05, 0.0, 0.16), Texture((0.95, 0.5, 0.12)), (top + 0.1, 0, z_top), euler(y=90))]
    parts += eyes((0.86 * top, 0.0, z_top + 0.4 * top), 0.35 * top, 0.035)
    coal = Texture(BLACK, gloss=0.4)
    parts += [Part(sphere(0.035), coal, (0.97 * middle, 0, z_middle + 0.1 * i)) for i in (-0.5, 0.7)]
    hat, z_hat = sampler.fancy(1, 0.4), z_top + 0.75 * top
    if sampler.chance(0.6):
        parts += [Part(cylinder(1.15 * top, 0.02, 0.015), hat, (0, 0, z_hat))]
        parts += [Part(cylinder(0.75 * top, 0.15, 0.02), hat, (0, 0, z_hat + 0.15))]
    else:
        parts += [Part(Frustum(top, 0.0, 0.22), hat, (0, 0, z_hat + 0.15))]
        parts += [Part(sphere(0.07), sampler.plain(2), (0, 0, z_hat + 0.36))]
    wood = Texture((0.40, 0.26, 0.16))
    reach, lift = middle + sampler.between(0.2, 0.35), z_middle + sampler.between(-0.05, 0.25)
    arms = pair(lambda side: Part(Capsule((0, side * 0.9 * middle, z_middle), (0, side * reach, lift), 0.025), wood))
    return parts + arms


def robot(sampler: SeededSampler) -> list[Part]:
    """A boxy or tubby machine with antennae, buttons and claws."""
    skin, metal, light = sampler.fancy(0, 0.6), sampler.plain(1), Texture((1.0, 0.85, 0.3), gloss=0.6, glow=0.5)
    wide, tall, deep = sampler.between(0.24, 0.36), sampler.between(0.24, 0.36), sampler.between(0.18, 0.26)
    head, legs = sampler.between(0.16, 0.24), sampler.between(0.18, 0.34)
    z = 0.1 + legs + tall
    boxy = sampler.chance(0.6)
    body = Box((deep, wide, tall), 0.05) if boxy else Ellipsoid((wide, wide, tall))
    parts = [Part(body, skin, (0, 0, z)), Part(cylinder(0.08, 0.1), metal, (0, 0, z + tall + 0.02))]
    z_head = z + tall + 0.08 + 0.8 * head
    parts += [
        Part(Box((head, 1.25 * head, 0.8 * head), 0.06) if sampler.chance(0.5) else sphere(head), skin, (0, 0, z_head))
    ]
    parts += eyes((0.92 * head, 0.0, z_head + 0.15 * head), 0.42 * head, 0.26 * head)
    parts += [Part(cylinder(0.015, 0.12), metal, (0, 0, z_head + head + 0.04))]
    parts += [Part(sphere(0.055), light, (0, 0, z_head + head + 0.17))]
    front = deep if boxy else 0.93 * wide
    parts += [Part(Box((0.02, 0.45 * wide, 0.3 * tall), 0.01), metal, (front, 0, z + 0.15 * tall))] if boxy else []
    parts += [Part(sphere(0.035), light, (front + 0.01, 0.12 * i, z + 0.15 * tall)) for i in (-1, 0, 1)]
    swing = sampler.between(-0.1, 0.35)
    for side in (-1.0, 1.0):
        hand = (0.12 + swing, side * (wide + 0.12), z - 0.5 * tall + swing)
        parts += [Part(sphere(0.085), metal, (0, side * (wide + 0.02), z + 0.55 * tall))]
        parts += [Part(Capsule((0, side * (wide + 0.05), z + 0.5 * tall), hand, 0.05), skin)]
        parts += [Part(Torus(0.07, 0.03), metal, hand, euler(x=90))]
        parts += [Part(cylinder(0.07, legs / 2 + 0.05), metal, (0, side * 0.5 * wide, 0.1 + legs / 2))]
        parts += [Part(Box((0.15, 0.11, 0.06), 0.04), skin, (0.04, side * 0.5 * wide, 0.06))]
    return parts


def animal(sampler: SeededSampler) -> list[Part]:
    """A four-legged animal: body, neck, snout, ears, tail; between horse, cow and cat."""
    long, fat, leg = sampler.between(0.32, 0.48), sampler.between(0.18, 0.26), sampler.between(0.22, 0.42)
    neck, snout = sampler.between(0.02, 0.32), sampler.between(0.05, 0.15)
    coat = Texture(
        sampler.palette[0],
        sampler.pick((WHITE, sampler.palette[1], sampler.palette[2])),
        sampler.pick(("patches", "stripes", "dots", "solid", "gradient")),
        sampler.between(1.2, 2.5),
        sampler.count(0, 2),
    )
    z = leg + 0.8 * fat
    skull = (long + 0.5 * neck + 0.08, 0.0, z + 0.12 + neck)
    torso = SmoothUnion(
        (
            (Ellipsoid((long, fat, fat)), (0.0, 0.0, z)),
            (Capsule((0.7 * long, 0, z), (skull[0] - 0.05, 0.0, skull[2]), 0.6 * fat), (0.0, 0.0, 0.0)),
            (Ellipsoid((0.17 + snout, 0.15, 0.14)), (skull[0] + 0.4 * snout, 0.0, skull[2])),
        ),
        0.08,
    )
    dark, nose = sampler.plain(3), Texture(BLACK, gloss=0.5)
    parts = [Part(torso, coat), Part(sphere(0.05), nose, (skull[0] + 0.16 + 1.4 * snout, 0.0, skull[2] + 0.01))]
    parts += eyes((skull[0] + 0.1, 0.0, skull[2] + 0.09), 0.1, 0.036)
    for x in (-0.62 * long, 0.62 * long):
        for side in (-1.0, 1.0):
            y = side * 0.6 * fat
            parts += [Part(Capsule((x, y, z - 0.4 * fat), (x, y, 0.1), 0.072), coat)]
            parts += [Part(cylinder(0.085, 0.05, 0.02), dark, (x, y, 0.05))]
    top = skull[2] + 0.12
    if sampler.chance(0.5):
        parts += pair(lambda side: Part(Frustum(0.06, 0.005, 0.09), coat, (skull[0] - 0.05, side * 0.1, top + 0.05)))
    else:
        lop = euler(x=50)
        parts += pair(lambda side: Part(Ellipsoid((0.04, 0.05, 0.13)), dark, (skull[0] - 0.05, side * 0.15, top), lop))
    tail = sampler.between(-0.15, 0.25)
    parts += [Part(Capsule((-0.9 * long, 0, z + 0.05), (-long - 0.2, 0, z + tail), 0.03), coat)]
    return [*parts, Part(sphere(0.06), dark, (-long - 0.22, 0, z + tail))]


def duck(sampler: SeededSampler) -> list[Part]:
    """A bird that sits: body, head, beak, wings, tail."""
    long, fat, head = sampler.between(0.38, 0.48), sampler.between(0.26, 0.34), sampler.between(0.17, 0.23)
    plumage = sampler.fancy(0, 1.0, 0.5)
    z_head = 1.7 * fat + sampler.between(0.1, 0.3)
    x_head = 0.55 * long
    body = SmoothUnion(
        (
            (Ellipsoid((long, fat, 0.8 * fat)), (0.0, 0.0, 0.8 * fat)),
            (Ellipsoid((0.16, 0.12, 0.12)), (-0.85 * long, 0.0, 1.2 * fat)),
            (Capsule((x_head, 0, fat), (x_head, 0, z_head), 0.55 * head), (0.0, 0.0, 0.0)),
        ),
        0.12,
    )
    beak = Texture((0.98, 0.60, 0.12), gloss=0.3)
    parts = [Part(body, plumage), Part(sphere(head), sampler.pick((plumage, sampler.plain(1))), (x_head, 0, z_head))]
    parts += [Part(Ellipsoid((0.13, 0.09, 0.035)), beak, (x_head + head + 0.05, 0, z_head - 0.02))]
    parts += eyes((x_head + 0.75 * head, 0, z_head + 0.3 * head), 0.55 * head, 0.04)
    wing = sampler.fancy(2, 0.5)
    parts += pair(
        lambda side: Part(Ellipsoid((0.25, 0.05, 0.15)), wing, (-0.1, side * 0.93 * fat, fat), euler(x=side * 15, y=15))
    )
    return [*parts, *([Part(Torus(0.62 * head, 0.05), sampler.plain(3), (x_head, 0, z_head - 0.85 * head))])]


def bear(sampler: SeededSampler) -> list[Part]:
    """A soft toy that sits, with round or with long ears."""
    fur, belly = sampler.fancy(0, 1.0, 0.4), sampler.plain(1)
    fat, head = sampler.between(0.28, 0.36), sampler.between(0.22, 0.28)
    z_head = 1.75 * fat + 0.72 * head
    parts = [Part(Ellipsoid((fat, fat, 1.1 * fat)), fur, (0, 0, fat))]
    parts += [Part(Ellipsoid((0.6 * fat, 0.75 * fat, 0.8 * fat)), belly, (0.45 * fat, 0, 0.95 * fat))]
    parts += [Part(sphere(head), fur, (0, 0, z_head))]
    parts += [Part(Ellipsoid((0.45 * head, 0.5 * head, 0.4 * head)), belly, (0.75 * head, 0, z_head - 0.2 * head))]
    nose = Texture(BLACK, gloss=0.6)
    parts += [Part(Ellipsoid((0.04, 0.06, 0.04)), nose, (1.17 * head, 0, z_head - 0.08 * head))]
    parts += eyes((0.84 * head, 0, z_head + 0.3 * head), 0.4 * head, 0.04)
    long_ears = sampler.chance(0.35)
    for side in (-1.0, 1.0):
        ear = (0.0, side * (0.45 if long_ears else 0.72) * head, z_head + (1.3 if long_ears else 0.75) * head)
        tall = 0.75 * head if long_ears else 0.36 * head
        tilt = euler(x=-side * (12 if long_ears else 30))
        parts += [Part(Ellipsoid((0.05, 0.36 * head, tall)), fur, ear, tilt)]
        parts += [Part(Ellipsoid((0.03, 0.22 * head, 0.7 * tall)), belly, (0.03, ear[1], ear[2]), tilt)]
        foot = (1.15 * fat, side * 0.75 * fat, 0.13)
        parts += [Part(Capsule((0.3 * fat, side * 0.6 * fat, 0.16), foot, 0.13), fur)]
        parts += [Part(Ellipsoid((0.03, 0.085, 0.1)), belly, (foot[0] + 0.12, foot[1], foot[2]))]
        hand = (0.75 * fat, side * 1.05 * fat, fat + sampler.between(-0.1, 0.3))
        parts += [Part(Capsule((0, side * 0.75 * fat, 1.6 * fat), hand, 0.1), fur)]
    parts += [Part(sphere(0.1), fur, (-fat, 0, 0.3))]
    if sampler.chance(0.6):
        bow = sampler.plain(2)
        z_bow = z_head - 0.95 * head
        parts += pair(
            lambda side: Part(Frustum(0.09, 0.02, 0.06), bow, (fat * 0.75, side * 0.08, z_bow), euler(x=side * 90))
        )
        parts += [Part(sphere(0.045), bow, (fat * 0.77, 0, z_bow))]
    return parts


def fish(sampler: SeededSampler) -> list[Part]:
    """A fish over a stand."""
    long, fat, tall = sampler.between(0.42, 0.55), sampler.between(0.14, 0.22), sampler.between(0.22, 0.34)
    scales = Texture(
        sampler.palette[0], sampler.palette[1], sampler.pick(("stripes", "dots", "gradient", "checker")), 2.6, 0
    )
    fins, z = sampler.plain(2), 0.42 + tall
    parts = [Part(Ellipsoid((long, fat, tall)), scales, (0, 0, z))]
    for side in (-1.0, 1.0):
        tip = (-long - 0.22, 0.0, z + side * 0.16)
        parts += [Part(Ellipsoid((0.2, 0.035, 0.09)), fins, tip, euler(y=side * 35))]
        parts += [
            Part(Ellipsoid((0.14, 0.02, 0.08)), fins, (0.05, side * (fat + 0.05), z - 0.08), euler(x=side * 40, y=25))
        ]
    parts += [Part(Ellipsoid((0.24, 0.03, 0.13)), fins, (-0.05, 0, z + tall))]
    parts += eyes((0.72 * long, 0, z + 0.25 * tall), 0.66 * fat, 0.055)
    parts += [Part(Torus(0.05, 0.022), Texture((0.95, 0.45, 0.42)), (0.98 * long, 0, z - 0.05), euler(y=90))]
    stand = sampler.fancy(3, 0.5)
    return [
        *parts,
        Part(cylinder(0.03, 0.22), stand, (0, 0, 0.22)),
        Part(Lathe((0.3, 0.3, 0.05, 0.04), 0.08), stand, (0, 0, 0.08)),
    ]


def snail(sampler: SeededSampler) -> list[Part]:
    """A foot, a shell of rings that shrink, two stalks."""
    skin, shell = sampler.plain(0), sampler.fancy(1, 0.6, 1.0)
    size = sampler.between(0.28, 0.36)
    foot = SmoothUnion(
        (
            (Ellipsoid((0.55, 0.15, 0.09)), (0.0, 0.0, 0.08)),
            (Capsule((0.4, 0, 0.1), (0.55, 0, 0.4), 0.09), (0.0, 0.0, 0.0)),
            (sphere(0.13), (0.57, 0.0, 0.43)),
        ),
        0.1,
    )
    parts = [Part(foot, skin), Part(Ellipsoid((size, 0.7 * size, size)), shell, (-0.1, 0, size + 0.1))]
    rim = sampler.plain(2)
    for radius in (0.8, 0.5, 0.22):
        out = 0.7 * size * (1.0 - radius**2) ** 0.5 + 0.005
        parts += pair(
            lambda side, r=radius, y=out: Part(Torus(r * size, 0.03), rim, (-0.1, side * y, size + 0.1), euler(x=90))
        )
    for side in (-1.0, 1.0):
        tip = (0.68, side * 0.12, 0.72)
        parts += [Part(Capsule((0.58, side * 0.05, 0.5), tip, 0.022), skin)]
        parts += [
            Part(sphere(0.05), Texture(BLACK, gloss=0.6), tip),
            Part(sphere(0.016), Texture(WHITE), (0.72, tip[1], 0.745)),
        ]
    return parts


CREATURES = (snowman, robot, animal, duck, bear, fish, snail)
