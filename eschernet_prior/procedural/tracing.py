"""Trace rays through parts: nearest hits, soft shadows, ambient occlusion.

Vocabulary
    ray          origin + t · direction (unit), t the distance along the ray in scene units
    candidates   the rays that hit a part's bounding ball and box before a nearer surface; only they are traced against
    it

Each part is traced separately in its own frame by its candidates, and the nearest hit is kept. The picture is the same
as for marching through the minimum of all parts, but the work is proportional to the area of the parts, not to their
number, and no ray slows down at the edge of another part. Shadows and occlusion are minima over parts, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eschernet_prior.procedural.bounds import (
    Ball,
    Cluster,
    Placed,
    Points,
    RayRows,
    RayValues,
    Stage,
    dot,
    into_frame,
    squared_distance,
    weighted,
    where,
)
from eschernet_prior.procedural.sdf import Part, Shape, Vector

HIT_DISTANCE = 5e-5
"""Distance to a surface (scene units) that counts as a hit; one more step then refines it."""
MAX_STEPS = 96
FLATTEST_CHORD = 0.02
"""Least slope of chords that are used: smaller ones are dominated by rounding."""
SHADOW_STEPS = 24
GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)
GOLDEN_STEPS = 8
SHADOW_SHARPNESS = 14.0
"""1 / tan of half the angle of the penumbra, the zone at a shadow's edge where the light fades."""
OCCLUSION_TAPS = (0.02, 0.05, 0.10, 0.17)
"""Heights above a surface (scene units) at which occlusion is probed."""
OCCLUSION_WEIGHTS = (0.35, 0.30, 0.20, 0.15)
FAR = 9.0
"""Distance at which the ground ends, scene units."""
GROUND = -1
NOTHING = -2


def _trace_part(placed: Placed, rays: RayRows, limit: RayValues) -> tuple[Int[Tensor, "candidates"], RayValues]:
    """The candidates of one part before `limit`, and their distances of the hit, infinite for a miss."""
    part, radius = placed.part, placed.ball.radius
    along, squared = rays.passes(placed.ball)
    chosen = where((squared < radius**2) & (along > -radius) & (along < limit + radius))
    o = into_frame(part, rays.origins.index_select(1, chosen))
    d = into_frame(part, rays.directions.index_select(1, chosen), direction=True)
    enter, leave = placed.clip(o, d)
    enter, leave = enter.clamp_min(0.0), torch.minimum(leave, limit[chosen] / part.scale)
    inside = where(enter < leave)
    o, d = o.index_select(1, inside), d.index_select(1, inside)
    return chosen[inside], _march(part, o, d, enter[inside], leave[inside])


def _march(part: Part, o: Points, d: Points, t: RayValues, last: RayValues) -> RayValues:
    """Distances (in the world) at which rays of the part's frame hit its surface between t and last; else infinite.

    Sphere tracing steps by the distance to the surface. Along a ray to a convex shape the distance is a convex
    function: beyond two of its points their chord is below it, so that a step to the chord's root is safe, too, and
    longer; if the chord does not decrease, the ray has passed the shape.
    """
    shape, epsilon = part.shape, HIT_DISTANCE / part.scale
    level = shape.level if shape.convex else shape.distance
    found = torch.full_like(t, math.inf)
    rays = torch.arange(len(t), device=t.device)
    height = level(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
    step = height
    for count in range(MAX_STEPS):
        if len(rays) == 0:
            break
        t = t + step
        before, height = height, level(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        fall = (before - height) / step.clamp_min(1e-9)
        step = height / fall.clamp(FLATTEST_CHORD, 1.0) if shape.convex else height
        if count % 2 == 1:
            # Finished rays are removed, so that slow rays do not delay the others.
            met = height < epsilon
            arrived = where(met)
            found[rays[arrived]] = (t + step)[arrived] * part.scale
            ahead = (t < last) & ~met
            keep = where(ahead & (fall > 0.0) if shape.convex else ahead)
            rays, t, last, height, step = rays[keep], t[keep], last[keep], height[keep], step[keep]
            o, d = o.index_select(1, keep), d.index_select(1, keep)
    return found


Near = TypeVar("Near", Cluster, Placed)


@dataclass(frozen=True)
class Hits:
    """The nearest surfaces that rays hit."""

    distance: RayValues
    """Distance along the ray; infinite for a miss."""
    owner: Int[Tensor, "rays"]
    """Index of the part, `GROUND` or `NOTHING`."""


def nearest_hits(stage: Stage, origins: Points, directions: Points) -> Hits:
    """The nearest hit of every ray."""
    distance = torch.full_like(origins[0], math.inf)
    owner = torch.full_like(origins[0], NOTHING, dtype=torch.int64)
    if stage.ground_height is not None:
        t = (stage.ground_height - origins[2]) / directions[2].clamp_max(-1e-9)
        below = (directions[2] < 0.0) & (t > 0.0) & (t < FAR)
        distance, owner = torch.where(below, t, distance), owner.masked_fill(below, GROUND)
    rays = RayRows.of(origins, directions)
    for cluster in _front_to_back(stage.clusters, origins):
        along, squared = rays.passes(cluster.ball)
        radius = cluster.ball.radius
        chosen = where((squared < radius**2) & (along > -radius) & (along < distance + radius))
        towards, near, whose = rays.chosen(chosen), distance[chosen], owner[chosen]
        for placed in _front_to_back(cluster.members, origins):
            candidates, found = _trace_part(placed, towards, near)
            nearer = where(found < near[candidates])
            near[candidates[nearer]] = found[nearer]
            whose[candidates[nearer]] = placed.index
        distance[chosen], owner[chosen] = near, whose
    return Hits(distance, owner)


def _front_to_back(things: Sequence[Near], origins: Points) -> list[Near]:
    """Sort by the distance to the rays' common origin, so that hidden parts are rarely traced."""
    eye = origins.mean(1).tolist()
    return sorted(things, key=lambda thing: math.dist(eye, thing.ball.centre) - thing.ball.radius)


def gradient(part: Part, x: RayValues, y: RayValues, z: RayValues) -> Points:
    """Unit normal in the part's frame by four taps at the corners of a tetrahedron."""
    h = 1e-3 / part.scale
    total = torch.zeros((3, len(x)), dtype=x.dtype, device=x.device)
    for a, b, c in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        distance = part.shape.distance(x + a * h, y + b * h, z + c * h)
        total += torch.stack((a * distance, b * distance, c * distance))
    return total / dot(total, total).sqrt().clamp_min(1e-12)


def light_share(stage: Stage, points: Points, normals: Points, owner: Int[Tensor, "rays"], light: Vector) -> RayValues:
    """Visible share of a distant light at each point: 0 in the shadow, 1 in the light, between in the penumbra.

    min over t of sharpness · f(t) / t along the ray towards the light (Quílez), then smoothed.

    Args:
        stage: The parts that cast shadows.
        points: Points on surfaces, in the world.
        normals: Their unit normals.
        owner: Index of each point's part (convex ones do not shadow themselves).
        light: Unit direction towards the light.
    """
    share = torch.ones_like(points[0])
    rays = RayRows.of(points + 2e-3 * normals, points.new_tensor(light)[:, None].expand_as(points))
    for cluster in stage.clusters:
        chosen = _shadow_candidates(rays, cluster.ball, share)
        towards, left, whose = rays.chosen(chosen), share[chosen], owner[chosen]
        for placed in cluster.members:
            candidates = _shadow_candidates(towards, placed.ball, left)
            if placed.part.shape.convex:
                candidates = candidates[where(whose[candidates] != placed.index)]
            _darken(placed, towards, candidates, left)
        share[chosen] = left
    return share * share * (3.0 - 2.0 * share)


def _shadow_candidates(rays: RayRows, ball: Ball, share: RayValues) -> Int[Tensor, "candidates"]:
    """Rays to the light that are not dark yet and hit a ball, or miss it by less than the penumbra."""
    along, squared = rays.passes(ball)
    widest = along.add(ball.radius).clamp_min_(0.0).div_(SHADOW_SHARPNESS).add_(ball.radius)
    return where((along > -ball.radius) & (squared < widest.square_()) & (share > 0.0))


def _darken(placed: Placed, rays: RayRows, candidates: Int[Tensor, "candidates"], share: RayValues) -> None:
    """Reduce `share` of the given rays by the shadow of one part."""
    part = placed.part
    chosen = rays.chosen(candidates)
    o = into_frame(part, chosen.origins)
    d = into_frame(part, chosen.directions[:, :1], direction=True)
    farthest = weighted(chosen.directions, placed.ball.centre, chosen.start).add_(placed.ball.radius)
    t, last = placed.clip(o, d, farthest / (SHADOW_SHARPNESS * part.scale))
    t = t.clamp_min(4e-3 / part.scale)
    keep = where(t < last)
    if len(keep) == 0:
        return
    darkened = candidates[keep]
    least = _least_angle(part.shape, o.index_select(1, keep), d, t[keep], last[keep])
    share[darkened] = torch.minimum(share[darkened], (SHADOW_SHARPNESS * least).clamp_min(0.0))


def _least_angle(shape: Shape, o: Points, d: Points, t: RayValues, last: RayValues) -> RayValues:
    """The least ratio distance / t on rays of the shape's frame between t and last."""

    def angle(t: RayValues) -> RayValues:
        return shape.distance(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]) / t

    if shape.convex:
        # A convex function over t first decreases, then increases: golden-section search finds its minimum.
        inner, outer = last - GOLDEN * (last - t), t + GOLDEN * (last - t)
        low, high = angle(inner), angle(outer)
        for _ in range(GOLDEN_STEPS):
            left = low < high
            t, last = torch.where(left, t, inner), torch.where(left, outer, last)
            fresh = torch.where(left, last - GOLDEN * (last - t), t + GOLDEN * (last - t))
            inner, outer = torch.where(left, fresh, outer), torch.where(left, inner, fresh)
            seen = angle(fresh)
            low, high = torch.where(left, seen, high), torch.where(left, low, seen)
        return torch.minimum(low, high)
    least, shortest = torch.full_like(t, math.inf), (last - t) / SHADOW_STEPS
    for _ in range(SHADOW_STEPS):
        seen = angle(t)
        least = torch.where(t < last, torch.minimum(least, seen), least)
        t = t + torch.maximum(seen * t, shortest)
    return least


def open_room(stage: Stage, points: Points, normals: Points) -> RayValues:
    """Visible share of the sky at each point in [0, 1], from distances to surfaces slightly above it."""
    taps = points.new_tensor(OCCLUSION_TAPS)[:, None]
    room = taps.expand(len(OCCLUSION_TAPS), points.shape[1]).clone()
    if stage.ground_height is not None:
        room = torch.minimum(room, (points[2] + taps * normals[2] - stage.ground_height).clamp_min(0.0))
    reach, squared = OCCLUSION_TAPS[-1], dot(points, points)
    for cluster in stage.clusters:
        chosen = where(squared_distance(points, squared, cluster.ball.centre) < (cluster.ball.radius + reach) ** 2)
        around, up, square = points.index_select(1, chosen), normals.index_select(1, chosen), squared[chosen]
        for placed in cluster.members:
            near = where(squared_distance(around, square, placed.ball.centre) < (placed.ball.radius + reach) ** 2)
            rays, distance = _tap(placed, around.index_select(1, near), up.index_select(1, near), taps)
            rays = chosen[near[rays]]
            room[:, rays] = torch.minimum(room[:, rays], distance)
    weights = points.new_tensor(OCCLUSION_WEIGHTS)[:, None]
    return 1.0 - 0.9 * (weights * (1.0 - room / taps)).sum(0)


def _tap(
    placed: Placed, points: Points, normals: Points, taps: Float[Tensor, "taps 1"]
) -> tuple[Int[Tensor, "candidates"], Float[Tensor, "taps candidates"]]:
    """The points that may be near a part, and the distances (scene units) of the probes above them."""
    part, slack = placed.part, OCCLUSION_TAPS[-1] / placed.part.scale
    o = into_frame(part, points)
    near = [(c > a - slack) & (c < b + slack) for c, a, b in zip(o, placed.low, placed.high)]
    rays = where(near[0] & near[1] & near[2])
    n = into_frame(part, normals.index_select(1, rays), direction=True)
    x, y, z = (c + taps / part.scale * m for c, m in zip(o.index_select(1, rays), n))
    return rays, (part.shape.distance(x, y, z) * part.scale).clamp_min(0.0)
