"""The hand-made scenes: cottage, bear and tea.

Parts in any unit, z up, facing +x; `scenes.embedded_scene` scales them.
"""

import math

from eschernet_prior.procedural.sdf import (
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
from eschernet_prior.procedural.textures import Colour, Texture

SNOW = Texture((0.97, 0.98, 1.0), (0.86, 0.92, 0.99), "patches", 0.7, gloss=0.05)
BARK = Texture((0.47, 0.31, 0.19), (0.33, 0.20, 0.12), "stripes", 9.0, 0, gloss=0.0)
GLASS = Texture((1.0, 0.80, 0.36), gloss=0.4, glow=0.75)
COAL = Texture((0.10, 0.09, 0.11), gloss=0.4)
WHITE: Colour = (0.97, 0.96, 0.93)


def _placed(parts: list[Part], at: Vector, turn: float = 0.0, scale: float = 1.0) -> list[Part]:
    return [part.moved(euler(z=turn), at, scale) for part in parts]


def _cottage_house() -> list[Part]:
    """Plaster walls, a red tiled roof, a blue door, lit windows on every side, a smoking chimney."""
    walls = Texture((0.96, 0.87, 0.68), (0.91, 0.79, 0.58), "patches", 1.4, gloss=0.0)
    roof = Texture((0.62, 0.17, 0.13), (0.85, 0.30, 0.20), "bricks", 9.0, 2, gloss=0.1)
    beams, frame, door = Texture((0.43, 0.26, 0.15), gloss=0.05), Texture(WHITE), Texture((0.13, 0.42, 0.62), gloss=0.3)
    stone = Texture((0.50, 0.49, 0.50), (0.72, 0.70, 0.67), "bricks", 11.0, gloss=0.0)
    parts = [
        Part(Box((0.36, 0.44, 0.05), 0.01), stone, (0, 0, 0.05)),
        Part(Box((0.33, 0.41, 0.25), 0.01), walls, (0, 0, 0.32)),
        Part(Gable(0.335, 0.415, 0.40), walls, (0, 0, 0.56)),
    ]
    slope, length = math.degrees(math.atan2(0.40, 0.335)), math.hypot(0.335, 0.40)
    for side in (-1.0, 1.0):
        middle = (side * 0.21, 0.0, 0.76)
        parts.append(Part(Box((length / 2 + 0.075, 0.50, 0.028), 0.012), roof, middle, euler(y=side * slope)))
        parts.append(Part(Box((0.025, 0.025, 0.26), 0.005), beams, (0.33 * side, 0.41, 0.32)))
        parts.append(Part(Box((0.025, 0.025, 0.26), 0.005), beams, (0.33 * side, -0.41, 0.32)))
    parts.append(Part(cylinder(0.035, 0.51, 0.02), beams, (0, 0, 0.98), euler(x=90)))
    parts += [
        Part(Box((0.02, 0.105, 0.185), 0.01), frame, (0.335, 0, 0.27)),
        Part(Box((0.03, 0.085, 0.17), 0.01), door, (0.335, 0, 0.26)),
        Part(sphere(0.018), Texture((0.95, 0.78, 0.3), gloss=0.6), (0.372, 0.055, 0.26)),
        Part(Box((0.09, 0.13, 0.03), 0.01), stone, (0.42, 0, 0.03)),
    ]
    windows = [((0.335, y, 0.36), 0.0) for y in (-0.26, 0.26)] + [((-0.335, y, 0.36), 0.0) for y in (-0.2, 0.2)]
    windows += [((0.0, y, 0.36), 90.0) for y in (-0.415, 0.415)] + [((0.0, y, 0.68), 90.0) for y in (-0.415, 0.415)]
    for place, turn in windows:
        parts += _placed(
            [
                Part(Box((0.015, 0.085, 0.095), 0.005), frame),
                Part(Box((0.022, 0.066, 0.076)), GLASS),
                Part(Box((0.027, 0.008, 0.08)), frame),
                Part(Box((0.027, 0.07, 0.008)), frame),
            ],
            place,
            turn,
        )
    parts += [
        Part(Box((0.07, 0.07, 0.20), 0.01), stone, (-0.17, 0.20, 0.95)),
        Part(Box((0.085, 0.085, 0.025), 0.01), stone, (-0.17, 0.20, 1.15)),
    ]
    return parts


def _fir(height: float) -> list[Part]:
    """A fir of three skirts with snow on their hems and a golden ball on top."""
    needles = Texture((0.13, 0.40, 0.25), (0.22, 0.54, 0.32), "stripes", 14.0, 2, gloss=0.05)
    parts = [Part(cylinder(0.06, 0.14), BARK, (0, 0, 0.14))]
    for level, radius in enumerate((0.34, 0.26, 0.18)):
        z = 0.24 + 0.23 * level * height
        parts.append(Part(Frustum(radius, 0.03, 0.17 * height, 0.02), needles, (0, 0, z + 0.17 * height)))
        hem = Frustum(1.03 * radius, 0.86 * radius, 0.026 * height, 0.012)
        parts.append(Part(hem, SNOW, (0, 0, z + 0.03 * height)))
    return [*parts, Part(sphere(0.045), Texture((0.98, 0.78, 0.25), gloss=0.6, glow=0.2), (0, 0, 0.24 + 0.80 * height))]


def _snowman() -> list[Part]:
    """Three balls, carrot nose, top hat, red scarf."""
    hat, scarf = (
        Texture((0.16, 0.17, 0.22), gloss=0.3),
        Texture((0.86, 0.16, 0.18), (0.98, 0.93, 0.86), "stripes", 16.0, 0),
    )
    parts = [
        Part(sphere(0.17), SNOW, (0, 0, 0.15)),
        Part(sphere(0.125), SNOW, (0, 0, 0.37)),
        Part(sphere(0.095), SNOW, (0, 0, 0.54)),
    ]
    parts += [
        Part(Torus(0.078, 0.032), scarf, (0, 0, 0.465)),
        Part(Capsule((0.09, 0.04, 0.45), (0.13, 0.07, 0.32), 0.028), scarf),
        Part(Frustum(0.025, 0.0, 0.07), Texture((0.97, 0.50, 0.10)), (0.15, 0, 0.54), euler(y=90)),
        Part(cylinder(0.115, 0.010, 0.008), hat, (0, 0, 0.615)),
        Part(cylinder(0.075, 0.065, 0.012), hat, (0, 0, 0.68)),
        Part(cylinder(0.078, 0.014), Texture((0.86, 0.16, 0.18)), (0, 0, 0.637)),
    ]
    parts += [Part(sphere(0.014), COAL, (0.083, side * 0.035, 0.575)) for side in (-1.0, 1.0)]
    parts += [Part(sphere(0.015), COAL, (x, 0, z)) for x, z in ((0.122, 0.40), (0.122, 0.34))]
    for side in (-1.0, 1.0):
        parts.append(Part(Capsule((0, side * 0.11, 0.39), (0.04, side * 0.25, 0.47), 0.012), BARK))
        parts.append(Part(Capsule((0.03, side * 0.21, 0.45), (0.08, side * 0.25, 0.44), 0.009), BARK))
    return parts


def cottage() -> list[Part]:
    """A cottage in the snow with two firs and a snowman, on a round base."""
    base = Texture((0.58, 0.38, 0.23), (0.46, 0.28, 0.16), "stripes", 5.0, 2, gloss=0.1)
    lawn = Texture((0.95, 0.97, 1.0), (0.80, 0.88, 0.97), "patches", 0.35, gloss=0.05)
    parts = [
        Part(cylinder(0.95, 0.05, 0.02), base, (0, 0, 0.05)),
        Part(cylinder(0.91, 0.045, 0.04), lawn, (0, 0, 0.09)),
    ]
    z = 0.13
    parts += _placed(_cottage_house(), (-0.18, -0.10, z), 12.0)
    parts += _placed(_fir(1.15), (-0.28, 0.62, z), 0.0, 1.05) + _placed(_fir(0.9), (-0.56, -0.56, z - 0.02), 0.0, 0.72)
    parts += _placed(_snowman(), (0.42, 0.42, z), 25.0, 1.0)
    path = Texture((0.74, 0.70, 0.66), (0.60, 0.57, 0.55), "patches", 3.0, gloss=0.0)
    stones = ((0.34, -0.02, 0.085), (0.48, -0.06, 0.075), (0.62, -0.03, 0.08), (0.75, -0.08, 0.07))
    parts += [Part(Ellipsoid((r, 0.9 * r, 0.02)), path, (x, y, z + 0.008)) for x, y, r in stones]
    parts += [
        Part(Ellipsoid((0.13, 0.09, 0.035)), SNOW, (x, y, z)) for x, y in ((0.35, -0.55), (-0.7, 0.25), (0.05, 0.75))
    ]
    return parts


def bear() -> list[Part]:
    """A teddy bear with a bow tie on a rug, between a ball and a present."""
    fur = Texture((0.66, 0.42, 0.22), (0.54, 0.32, 0.15), "patches", 2.2, gloss=0.05)
    light, nose = Texture((0.93, 0.78, 0.56), gloss=0.05), Texture((0.13, 0.09, 0.09), gloss=0.7)
    gleam, bow = Texture(WHITE, glow=0.3), Texture((0.84, 0.16, 0.24), (0.97, 0.92, 0.85), "dots", 14.0)
    rug = Texture((0.16, 0.45, 0.55), (0.95, 0.87, 0.70), "rings", 4.0, gloss=0.0)
    parts = [Part(cylinder(0.92, 0.03, 0.02), rug, (0, 0, 0.03))]
    toy = [
        Part(Ellipsoid((0.33, 0.35, 0.38)), fur, (0, 0, 0.36)),
        Part(Ellipsoid((0.20, 0.25, 0.28)), light, (0.16, 0, 0.34)),
        Part(Ellipsoid((0.27, 0.30, 0.27)), fur, (0.02, 0, 0.93)),
        Part(Ellipsoid((0.13, 0.15, 0.11)), light, (0.24, 0, 0.87)),
        Part(Ellipsoid((0.045, 0.065, 0.045)), nose, (0.36, 0, 0.91)),
        Part(sphere(0.09), fur, (-0.33, 0, 0.24)),
        Part(sphere(0.045), bow, (0.25, 0, 0.68)),
    ]
    for side in (-1.0, 1.0):
        toy += [
            Part(sphere(0.042), nose, (0.245, side * 0.125, 1.02)),
            Part(sphere(0.013), gleam, (0.28, side * 0.115, 1.038)),
            Part(Ellipsoid((0.06, 0.115, 0.115)), fur, (0.0, side * 0.24, 1.16)),
            Part(Ellipsoid((0.03, 0.075, 0.075)), light, (0.045, side * 0.24, 1.16)),
            Part(Frustum(0.10, 0.025, 0.07), bow, (0.245, side * 0.09, 0.68), euler(x=side * 90)),
            Part(Capsule((0.0, side * 0.28, 0.60), (0.26, side * 0.42, 0.42), 0.105), fur),
            Part(Ellipsoid((0.06, 0.07, 0.07)), light, (0.33, side * 0.45, 0.39)),
            Part(Capsule((0.10, side * 0.22, 0.14), (0.44, side * 0.32, 0.16), 0.135), fur),
            Part(Ellipsoid((0.03, 0.085, 0.10)), light, (0.565, side * 0.355, 0.17)),
        ]
        for y, z in ((-0.05, 0.06), (0.0, 0.085), (0.05, 0.06)):
            toy.append(Part(sphere(0.022), fur, (0.588, side * 0.36 + y, 0.19 + z)))
    parts += _placed(toy, (-0.12, 0.0, 0.05), 15.0)
    ball = Texture((0.98, 0.78, 0.16), (0.13, 0.45, 0.76), "stripes", 3.2, 0, gloss=0.5)
    parts.append(Part(sphere(0.17), ball, (0.42, -0.52, 0.22), euler(x=25, y=30)))
    paper, ribbon = Texture((0.28, 0.62, 0.42), (0.96, 0.95, 0.82), "dots", 9.0), Texture((0.93, 0.30, 0.25), gloss=0.3)
    present = [Part(Box((0.17, 0.17, 0.14), 0.012), paper, (0, 0, 0.14))]
    present += [
        Part(Box((0.177, 0.03, 0.147)), ribbon, (0, 0, 0.14)),
        Part(Box((0.03, 0.177, 0.147)), ribbon, (0, 0, 0.14)),
    ]
    for turn in (0.0, 90.0, 180.0, 270.0):
        x, y = 0.06 * math.cos(math.radians(turn)), 0.06 * math.sin(math.radians(turn))
        present.append(Part(Torus(0.05, 0.018), ribbon, (x, y, 0.32), euler(x=65, z=turn)))
    return parts + _placed(present, (-0.30, 0.58, 0.05), 30.0)


def tea() -> list[Part]:
    """A round cloth laid for tea: pot, two cups, a cake, a vase with a flower."""
    cloth = Texture((0.95, 0.91, 0.84), (0.84, 0.34, 0.31), "checker", 3.0, gloss=0.0)
    china, gold = (
        Texture((0.24, 0.46, 0.72), (0.97, 0.97, 0.95), "dots", 7.0, gloss=0.6),
        Texture((0.93, 0.74, 0.28), gloss=0.6),
    )
    brew = Texture((0.52, 0.26, 0.10), gloss=0.5)
    parts = [Part(cylinder(0.84, 0.025, 0.02), cloth, (0, 0, 0.025))]
    pot = [
        Part(Lathe((0.16, 0.44, 0.38, 0.12), 0.19), china, (0, 0, 0.19)),
        Part(Lathe((0.14, 0.13, 0.03), 0.03), gold, (0, 0, 0.40)),
        Part(sphere(0.035), gold, (0, 0, 0.46)),
        Part(Torus(0.12, 0.025), gold, (-0.32, 0, 0.22), euler(x=90)),
        Part(Torus(0.15, 0.02), gold, (0, 0, 0.015)),
        Part(
            SmoothUnion(
                (
                    (Capsule((0.2, 0, 0.13), (0.37, 0, 0.19), 0.05), (0.0, 0.0, 0.0)),
                    (Capsule((0.37, 0, 0.19), (0.47, 0, 0.37), 0.03), (0.0, 0.0, 0.0)),
                ),
                0.04,
            ),
            china,
        ),
    ]
    parts += _placed(pot, (-0.08, 0.26, 0.05), -25.0)
    cup = [
        Part(Lathe((0.08, 0.17, 0.19, 0.20), 0.012), china, (0, 0, 0.014)),
        Part(Lathe((0.05, 0.13, 0.12, 0.13), 0.075, 0.012), china, (0, 0, 0.10)),
        Part(cylinder(0.105, 0.006), brew, (0, 0, 0.145)),
        Part(Torus(0.045, 0.012), gold, (0, 0.125, 0.10), euler(y=90)),
    ]
    parts += _placed(cup, (0.45, 0.32, 0.05), 40.0) + _placed(cup, (-0.38, -0.36, 0.05), 200.0)
    sponge, cream = (
        Texture((0.95, 0.80, 0.55), (0.55, 0.30, 0.20), "stripes", 11.0, 2),
        Texture((0.99, 0.93, 0.90), gloss=0.3),
    )
    cake = [
        Part(cylinder(0.27, 0.012, 0.01), gold, (0, 0, 0.012)),
        Part(cylinder(0.215, 0.085, 0.01), sponge, (0, 0, 0.11)),
        Part(cylinder(0.225, 0.025, 0.022), cream, (0, 0, 0.20)),
        Part(Torus(0.19, 0.03), cream, (0, 0, 0.215)),
    ]
    for index in range(8):
        x, y = 0.19 * math.cos(math.pi * index / 4.0), 0.19 * math.sin(math.pi * index / 4.0)
        cake.append(Part(sphere(0.036), Texture((0.83, 0.10, 0.18), gloss=0.7), (x, y, 0.255)))
    parts += _placed(cake, (0.28, -0.30, 0.05))
    parts.append(
        Part(Lathe((0.05, 0.14, 0.02, 0.06), 0.13, 0.012), Texture((0.55, 0.78, 0.70), gloss=0.5), (-0.45, 0.08, 0.18))
    )
    petals, heart = Texture((0.97, 0.72, 0.20), gloss=0.1), Texture((0.45, 0.25, 0.13), gloss=0.0)
    for tip in ((-0.52, 0.12, 0.55), (-0.40, -0.03, 0.48)):
        parts.append(Part(Capsule((-0.45, 0.08, 0.15), tip, 0.012), Texture((0.25, 0.50, 0.22))))
        parts.append(Part(sphere(0.045), heart, tip))
        for index in range(8):
            turn = 45.0 * index
            x, y = 0.085 * math.cos(math.radians(turn)), 0.085 * math.sin(math.radians(turn))
            parts.append(Part(Ellipsoid((0.055, 0.03, 0.014)), petals, (tip[0] + x, tip[1] + y, tip[2]), euler(z=turn)))
    return parts
