"""Shapes as signed distance functions, and parts: shapes with a pose and a texture.

A shape has its own frame, centred near the origin, z up. `distance(x, y, z)` is negative
inside, zero on the surface, positive outside; outside it never exceeds the true distance, so it is a safe step for
sphere tracing. Every shape is 1-Lipschitz (|f(p) - f(q)| <= |p - q|) except the ellipsoid, which is so at its surface
only. Coordinates are three tensors of the same shape: contiguous rows are several times faster than points of stride 3.
`support(d)` is the largest p · d over the shape's points p, from which bounding boxes are computed.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.procedural.textures import Texture

Vector = tuple[float, float, float]
Rotation = tuple[Vector, Vector, Vector]
PointValues = Float[Tensor, "*points"]

IDENTITY: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Shape(ABC):
    """Interface of a shape to the ray tracer."""

    convex: ClassVar[bool] = True
    """Whether the shape is convex: then it does not shadow itself, and `level` is a convex function."""

    @abstractmethod
    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """Signed distance, or a bound of it, of points in the shape's frame."""

    def level(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """A 1-Lipschitz function with the same sign, convex for a convex shape; by default the distance."""
        return self.distance(x, y, z)

    @abstractmethod
    def support(self, d: Vector) -> float:
        """Largest p · d over the shape."""


def _length(x: PointValues, y: PointValues) -> PointValues:
    return (x * x + y * y).sqrt()


def _length3(x: PointValues, y: PointValues, z: PointValues) -> PointValues:
    return (x * x + y * y + z * z).sqrt()


@dataclass(frozen=True)
class Ellipsoid(Shape):
    """An ellipsoid; a sphere where the radii are equal (its distance is then exact).

    f = (g - 1) / |grad g| with g = |p / radii|: g is convex, so this never exceeds the distance to {g = 1} outside.
    """

    radii: Vector

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        a, b, c = self.radii
        if a == b == c:
            return _length3(x, y, z) - a
        u, v, w = x / a, y / b, z / c
        g = _length3(u, v, w)
        return g * (g - 1.0) / _length3(u / a, v / b, w / c).clamp_min(1e-12)

    def level(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        a, b, c = self.radii
        return (_length3(x / a, y / b, z / c) - 1.0) * min(self.radii)

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        return math.hypot(*(radius * part for radius, part in zip(self.radii, d)))


@dataclass(frozen=True)
class Dome(Shape):
    """The half of an ellipsoid above z = 0; a bound, exact on the surface."""

    radii: Vector

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        return torch.maximum(Ellipsoid(self.radii).distance(x, y, z), -z)

    def level(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        return torch.maximum(Ellipsoid(self.radii).level(x, y, z), -z)

    def support(self, d: Vector) -> float:
        """See `Shape`; for directions below the horizon, the rim is the farthest point."""
        return Ellipsoid(self.radii).support((d[0], d[1], max(d[2], 0.0)))


@dataclass(frozen=True)
class Box(Shape):
    """A box whose edges are rounded; `half` includes the rounding."""

    half: Vector
    rounding: float = 0.0

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        a, b, c = (half - self.rounding for half in self.half)
        u, v, w = x.abs() - a, y.abs() - b, z.abs() - c
        outside = _length3(u.clamp_min(0.0), v.clamp_min(0.0), w.clamp_min(0.0))
        return outside + torch.maximum(torch.maximum(u, v), w).clamp_max(0.0) - self.rounding

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        core = sum((half - self.rounding) * abs(part) for half, part in zip(self.half, d))
        return core + self.rounding * math.hypot(*d)


@dataclass(frozen=True)
class Torus(Shape):
    """A ring around z."""

    major: float
    minor: float
    convex: ClassVar[bool] = False

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        return _length(_length(x, y) - self.major, z) - self.minor

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        return self.major * math.hypot(d[0], d[1]) + self.minor * math.hypot(*d)


@dataclass(frozen=True)
class Frustum(Shape):
    """A cone between two discs across z, rounded: a cylinder where the radii are equal, a cone where one is zero.

    In the half plane (r = distance from the axis, z) it is a trapezium, and the exact distance is the distance to its
    caps or to its slanted side, whichever is smaller. All sizes include the rounding, except at a cone's tip.
    """

    bottom: float
    top: float
    half_height: float
    rounding: float = 0.0

    @property
    def _core(self) -> tuple[float, float, float]:
        shrink = self.rounding
        return max(self.bottom - shrink, 0.0), max(self.top - shrink, 0.0), self.half_height - shrink

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        bottom, top, half = self._core
        r = _length(x, y)
        if bottom == top:
            u, v = r - bottom, z.abs() - half
            outside = _length(u.clamp_min(0.0), v.clamp_min(0.0))
            return outside + torch.maximum(u, v).clamp_max(0.0) - self.rounding
        beyond_r = (r - torch.where(z < 0.0, bottom, top)).clamp_min(0.0)
        beyond_z = z.abs() - half
        slant_r, slant_z = top - bottom, 2.0 * half
        along = (((r - bottom) * slant_r + (z + half) * slant_z) / (slant_r**2 + slant_z**2)).clamp(0.0, 1.0)
        off_r, off_z = r - bottom - along * slant_r, z + half - along * slant_z
        squared = torch.minimum(beyond_r**2 + beyond_z**2, off_r**2 + off_z**2)
        inside = (off_r < 0.0) & (beyond_z < 0.0)
        return torch.where(inside, -squared.sqrt(), squared.sqrt()) - self.rounding

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        bottom, top, half = self._core
        flat = math.hypot(d[0], d[1])
        return max(bottom * flat - half * d[2], top * flat + half * d[2]) + self.rounding * math.hypot(*d)


@dataclass(frozen=True)
class Capsule(Shape):
    """All points within `radius` of the segment from `start` to `end`."""

    start: Vector
    end: Vector
    radius: float

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        u, v, w = (e - s for s, e in zip(self.start, self.end))
        x, y, z = x - self.start[0], y - self.start[1], z - self.start[2]
        along = ((x * u + y * v + z * w) / max(u * u + v * v + w * w, 1e-12)).clamp(0.0, 1.0)
        return _length3(x - along * u, y - along * v, z - along * w) - self.radius

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        ends = (sum(p * q for p, q in zip(end, d)) for end in (self.start, self.end))
        return max(ends) + self.radius * math.hypot(*d)


@dataclass(frozen=True)
class Gable(Shape):
    """A saddle roof: a triangle in (x, z), base on z = 0, extruded along y; a bound, exact on the faces."""

    half_width: float
    half_length: float
    height: float

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        edge = math.hypot(self.half_width, self.height)
        slope = (x.abs() * self.height + z * self.half_width - self.half_width * self.height) / edge
        return torch.maximum(torch.maximum(slope, -z), y.abs() - self.half_length)

    def support(self, d: Vector) -> float:
        """See `Shape`."""
        return max(self.half_width * abs(d[0]), self.height * d[2]) + self.half_length * abs(d[1])


@dataclass(frozen=True)
class Lathe(Shape):
    """A solid of revolution: its radius R(z) is the Bézier curve over `radii`, from z = -half_height to +half_height.

    f = (r - R(z)) / sqrt(1 + max R'^2), cut at both ends. With `wall` > 0 it is a vessel, open at the top, with walls
    of about that thickness.
    """

    radii: tuple[float, ...]
    half_height: float
    wall: float = 0.0
    convex: ClassVar[bool] = False

    def _profile(self, z: PointValues) -> PointValues:
        """R(z) by de Casteljau's scheme."""
        u = (z / (2.0 * self.half_height) + 0.5).clamp(0.0, 1.0)
        points: list[PointValues | float] = list(self.radii)
        while len(points) > 1:
            points = [a + u * (b - a) for a, b in pairwise(points)]
        return torch.as_tensor(points[0])

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        degree = len(self.radii) - 1
        steepest = max(abs(b - a) for a, b in pairwise(self.radii)) * degree / (2.0 * self.half_height)
        side = (_length(x, y) - self._profile(z)) / math.sqrt(1.0 + steepest**2)
        body = torch.maximum(side, z.abs() - self.half_height)
        if self.wall == 0.0:
            return body
        return torch.maximum(body, -torch.maximum(side + self.wall, self.wall - self.half_height - z))

    def support(self, d: Vector) -> float:
        """See `Shape`; the largest over many rings, which misses less than a thousandth."""
        z = torch.linspace(-self.half_height, self.half_height, 129, dtype=torch.float64)
        return float((self._profile(z) * math.hypot(d[0], d[1]) + z * d[2]).max())


@dataclass(frozen=True)
class SmoothUnion(Shape):
    """Smooth union of shapes: Quílez' polynomial minimum, which adds at most `blend` / 4 at a join."""

    parts: tuple[tuple[Shape, Vector], ...]
    """Pairs of shape and position of its centre."""
    blend: float
    convex: ClassVar[bool] = False

    def distance(self, x: PointValues, y: PointValues, z: PointValues) -> PointValues:
        """See `Shape`."""
        total: PointValues | None = None
        for shape, (a, b, c) in self.parts:
            d = shape.distance(x - a, y - b, z - c)
            if total is None:
                total = d
            else:
                overlap = (self.blend - (d - total).abs()).clamp_min(0.0)
                total = torch.minimum(total, d) - overlap**2 * (0.25 / self.blend)
        if total is None:
            raise ValueError("A union needs at least one shape.")
        return total

    def support(self, d: Vector) -> float:
        """See `Shape`; an upper bound."""
        reach = max(shape.support(d) + sum(p * q for p, q in zip(centre, d)) for shape, centre in self.parts)
        return reach + 0.25 * self.blend * math.hypot(*d)


def sphere(radius: float) -> Ellipsoid:
    """A ball."""
    return Ellipsoid((radius, radius, radius))


def cylinder(radius: float, half_height: float, rounding: float = 0.0) -> Frustum:
    """A cylinder around z."""
    return Frustum(radius, radius, half_height, rounding)


def euler(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Rotation:
    """Rotation by degrees about world x, then y, then z (rows of the matrix R = Rz Ry Rx)."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    return (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )


def _turn(rotation: Rotation, v: Vector) -> Vector:
    a, b, c = (sum(p * q for p, q in zip(row, v)) for row in rotation)
    return (a, b, c)


def _unturn(rotation: Rotation, v: Vector) -> Vector:
    a, b, c = (sum(rotation[i][j] * v[i] for i in range(3)) for j in range(3))
    return (a, b, c)


@dataclass(frozen=True)
class Part:
    """A shape in the world: p_world = scale · rotation · p_shape + position; its texture moves with it."""

    shape: Shape
    texture: Texture
    position: Vector = (0.0, 0.0, 0.0)
    rotation: Rotation = IDENTITY
    scale: float = 1.0

    def extent(self, d: Vector) -> float:
        """Largest p · d over the part's points in the world."""
        return sum(p * q for p, q in zip(self.position, d)) + self.scale * self.shape.support(_unturn(self.rotation, d))

    def moved(self, rotation: Rotation = IDENTITY, position: Vector = (0.0, 0.0, 0.0), scale: float = 1.0) -> "Part":
        """The part after p -> scale · rotation · p + position."""
        x, y, z = (scale * p + q for p, q in zip(_turn(rotation, self.position), position))
        columns = [_turn(rotation, (row[0], row[1], row[2])) for row in zip(*self.rotation)]
        a, b, c = ((row[0], row[1], row[2]) for row in zip(*columns))
        return replace(self, position=(x, y, z), rotation=(a, b, c), scale=scale * self.scale)


def bounding_box(parts: tuple[Part, ...]) -> tuple[Vector, Vector]:
    """Lowest and highest corner of a box around all parts (tight, but for smooth unions and lathes)."""
    axes: Rotation = IDENTITY
    x, y, z = (max(part.extent(axis) for part in parts) for axis in axes)
    u, v, w = (-max(part.extent((-axis[0], -axis[1], -axis[2])) for part in parts) for axis in axes)
    return (u, v, w), (x, y, z)
