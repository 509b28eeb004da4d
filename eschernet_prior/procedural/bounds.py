"""Bounding volumes of parts for tracing: balls, boxes and clusters, with cheap tests of rays and points.

Vocabulary
    rows         points and directions are (3, rays): x, y and z are each contiguous
    ball, box    bounds of a part in the world and in the part's own frame
    cluster      neighbouring parts with a common bounding ball
    stage        the bounds of all parts of a scene, and the height of its ground
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eschernet_prior.procedural.sdf import Part, Vector, bounding_box

Points = Float[Tensor, "3 rays"]
RayValues = Float[Tensor, "rays"]

CLUSTER_SIZE = 6
"""Largest number of parts in a cluster."""


@dataclass(frozen=True)
class Ball:
    """A bounding ball in the world."""

    centre: Vector
    radius: float

    @classmethod
    def around(cls, balls: Sequence["Ball"]) -> "Ball":
        """A ball around balls, centred on the box of their centres."""
        x, y, z = ((min(axis) + max(axis)) / 2.0 for axis in zip(*(ball.centre for ball in balls)))
        return cls((x, y, z), max(math.dist((x, y, z), ball.centre) + ball.radius for ball in balls))


@dataclass(frozen=True)
class Placed:
    """A part with its bounding ball and box."""

    index: int
    """Index of the part in the scene."""
    part: Part
    ball: Ball
    low: Vector
    """Lowest corner of a box around the part, in the part's own frame."""
    high: Vector
    """Highest corner."""

    @classmethod
    def of(cls, index: int, part: Part) -> "Placed":
        """Compute the bounds of a part."""
        (u, v, w), (x, y, z) = bounding_box((Part(part.shape, part.texture),))
        slack = 1e-3 * math.dist((u, v, w), (x, y, z))
        low, high = (u - slack, v - slack, w - slack), (x + slack, y + slack, z + slack)
        middle = Part(part.shape, part.texture, ((u + x) / 2.0, (v + y) / 2.0, (w + z) / 2.0))
        centre = middle.moved(part.rotation, part.position, part.scale).position
        return cls(index, part, Ball(centre, 0.5 * math.dist(low, high) * part.scale), low, high)

    def clip(self, o: Points, d: Points, slack: float | RayValues = 0.0) -> tuple[RayValues, RayValues]:
        """Distances at which rays enter and leave the part's box, enlarged by `slack`; for a miss, enter > leave."""
        enter, leave = o.new_full((), -math.inf), o.new_full((), math.inf)
        for axis in range(3):
            inverse = 1.0 / torch.where(d[axis].abs() < 1e-9, 1e-9, d[axis])
            a, b = (self.low[axis] - slack - o[axis]) * inverse, (self.high[axis] + slack - o[axis]) * inverse
            enter, leave = torch.maximum(enter, torch.minimum(a, b)), torch.minimum(leave, torch.maximum(a, b))
        return enter, leave


def weighted(vectors: Points, weights: Vector, start: RayValues | float = 0.0) -> RayValues:
    """start + vectors · weights, computed in place to save memory; no matrix product, which GPUs may round."""
    x, y, z = vectors
    return x.mul(weights[0]).add_(y, alpha=weights[1]).add_(z, alpha=weights[2]).add_(start)


def into_frame(part: Part, vectors: Points, direction: bool = False) -> Points:
    """World points (divided by the part's scale) or directions in a part's own frame."""
    scale = 1.0 if direction else 1.0 / part.scale
    origin = (0.0, 0.0, 0.0) if direction else part.position
    columns = [(a * scale, b * scale, c * scale) for a, b, c in zip(*part.rotation)]
    starts = (-math.fsum(p * q for p, q in zip(origin, column)) for column in columns)
    return torch.stack([weighted(vectors, column, start) for column, start in zip(columns, starts)])


def out_of_frame(part: Part, vectors: Points) -> Points:
    """Directions of a part's frame in the world."""
    return torch.stack([weighted(vectors, row) for row in part.rotation])


def dot(a: Points | Vector, b: Points | Vector) -> RayValues:
    """Scalar products of rows with rows or with one vector."""
    return torch.as_tensor(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def where(mask: Bool[Tensor, "rays"]) -> Int[Tensor, "chosen"]:
    """Indices of true elements."""
    return mask.nonzero().squeeze(1)


@dataclass(frozen=True)
class RayRows:
    """Rays with precomputed products for the tests against balls."""

    origins: Points
    directions: Points
    start: RayValues
    """-origin · direction."""
    squared: RayValues
    """origin · origin."""

    @classmethod
    def of(cls, origins: Points, directions: Points) -> "RayRows":
        """Prepares rays."""
        return cls(origins, directions, -dot(origins, directions), dot(origins, origins))

    def chosen(self, index: Int[Tensor, "chosen"]) -> "RayRows":
        """Some of them."""
        o, d = self.origins.index_select(1, index), self.directions.index_select(1, index)
        return RayRows(o, d, self.start[index], self.squared[index])

    def passes(self, ball: Ball) -> tuple[RayValues, RayValues]:
        """Distance along each ray to the point closest to the ball's centre, and its squared distance to the centre."""
        along = weighted(self.directions, ball.centre, self.start)
        return along, squared_distance(self.origins, self.squared, ball.centre).addcmul_(along, along, value=-1.0)


def squared_distance(points: Points, squared: RayValues, centre: Vector) -> RayValues:
    """|p - c|² from |p|²."""
    x, y, z = centre
    return weighted(points, (-2.0 * x, -2.0 * y, -2.0 * z), squared).add_(x * x + y * y + z * z)


@dataclass(frozen=True)
class Cluster:
    """Neighbouring parts that most rays miss in one test."""

    ball: Ball
    members: tuple[Placed, ...]

    @classmethod
    def all_of(cls, placed: Sequence[Placed]) -> list["Cluster"]:
        """Split parts recursively along the longest axis of their centres; large parts form their own clusters."""
        if not placed:
            return []
        whole = Ball.around([p.ball for p in placed])
        if len(placed) <= CLUSTER_SIZE:
            return [cls(whole, tuple(placed))]
        big = [p for p in placed if p.ball.radius > 0.5 * whole.radius]
        if big:
            rest = [p for p in placed if p.ball.radius <= 0.5 * whole.radius]
            return [cls(p.ball, (p,)) for p in big] + cls.all_of(rest)
        spread = [max(axis) - min(axis) for axis in zip(*(p.ball.centre for p in placed))]
        ordered = sorted(placed, key=lambda p: p.ball.centre[spread.index(max(spread))])
        half = len(ordered) // 2
        return cls.all_of(ordered[:half]) + cls.all_of(ordered[half:])


@dataclass(frozen=True)
class Stage:
    """The bounds of all parts of a scene."""

    clusters: tuple[Cluster, ...]
    ground_height: float | None
    """Height of the ground; None without a ground."""

    @classmethod
    def of(cls, parts: tuple[Part, ...], ground_height: float | None) -> "Stage":
        """Measures parts."""
        return cls(tuple(Cluster.all_of([Placed.of(*pair) for pair in enumerate(parts)])), ground_height)
