"""Pictures of scenes made of parts: sphere tracing, one light with soft shadows, ambient occlusion, a sky.

Vocabulary
    ray          origin + t · direction (unit), t the distance along the ray in scene units
    rows         points and directions are (3, rays): x, y and z each lie in one piece
    candidates   the rays that meet a part's bounding ball before anything nearer: the only ones traced against it
    penumbra     how far around a shadow's edge the light fades: tan of its half angle is 1 / `SHADOW_SHARPNESS`

Each part is traced on its own, in its own frame, by the rays that can meet it at all; the nearest hit wins. That is the same
picture as marching through the minimum of all parts, but the work grows with the area that parts cover, not with their
number, and no ray creeps past one part's edge on its way to another. Shadow and occlusion are the minimum over parts, too.

Light is computed in linear intensities, then brought to display values in [0, 1] by a power of 1 / 2.2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eschernet_prior import cameras
from eschernet_prior.sdf import Part, Vector
from eschernet_prior.textures import Colour, Texture, albedo

Points = Float[Tensor, "3 rays"]

RENDERER_VERSION = 1
"""Goes up whenever the same scene would give another picture: caches of renders are keyed by it."""
HIT_DISTANCE = 2e-4
"""A ray closer than this to a surface (scene units) has met it; two more steps then put it onto the surface."""
MAX_STEPS = 96
SHADOW_STEPS = 20
SHADOW_SHARPNESS = 14.0
OCCLUSION_TAPS = (0.02, 0.05, 0.10, 0.17)
"""How far above a surface (scene units) the room around a point is probed."""
FAR = 9.0
"""Distance at which the ground ends in haze."""
CHUNK = 1 << 16
"""Rays traced at a time: what bounds the memory (about 100 bytes a ray and part of a step)."""
GAMMA = 2.2


@dataclass(frozen=True)
class Scene:
    """Parts under one light. Without `ground` it is an object in the void; with it, ground and sky fill every pixel."""

    parts: tuple[Part, ...]
    ground: Texture | None = None
    """What the plane z = `ground_height` is painted with, or nothing."""
    ground_height: float = -0.5
    light: Vector = (0.45, -0.35, 0.82)
    """Direction towards the light, any length."""
    light_colour: Colour = (1.0, 0.95, 0.86)
    """The light's linear intensity."""
    light_strength: float = 0.85
    ambient_strength: float = 0.42
    sky: tuple[Colour, Colour] = ((0.93, 0.94, 0.95), (0.42, 0.63, 0.90))
    """Display colours at the horizon and overhead; the sky's light on surfaces follows them."""


@dataclass(frozen=True)
class Rendering:
    """Pictures of one scene; all float32."""

    colour: Float[Tensor, "views height width 3"]
    """Display colour in [0, 1], over `background` where nothing is."""
    depth: Float[Tensor, "views height width 1"]
    """z-depth in scene units of what the ray through the pixel's centre meets; 0 where it meets nothing (or sky)."""
    alpha: Float[Tensor, "views height width 1"]
    """Share of the pixel's sample rays that meet something, in [0, 1]; ground and sky count."""
    normal: Float[Tensor, "views height width 3"]
    """Unit outward normal in the world where there is depth; 0 elsewhere."""


@dataclass(frozen=True)
class Hits:
    """What rays meet first."""

    distance: Float[Tensor, "rays"]
    """Along the ray; infinite where nothing is met."""
    part: Int[Tensor, "rays"]
    """Index of the part, `GROUND` or `NOTHING`."""


GROUND = -1
NOTHING = -2


def _into_frame(part: Part, vectors: Points, direction: bool = False) -> Points:
    """World points (or directions) in a part's own frame; spelled out, so that no GPU rounds it to TF32."""
    x, y, z = vectors
    if not direction:
        x, y, z = ((v - p) / part.scale for v, p in zip((x, y, z), part.position))
    rotation = part.rotation
    return torch.stack([rotation[0][j] * x + rotation[1][j] * y + rotation[2][j] * z for j in range(3)])


def _out_of_frame(part: Part, vectors: Points) -> Points:
    """Directions of a part's frame in the world."""
    x, y, z = vectors
    return torch.stack([row[0] * x + row[1] * y + row[2] * z for row in part.rotation])


def _bounding_ball(part: Part) -> tuple[Vector, float]:
    """Centre and radius, in the part's own frame, of a ball around its bounding box."""
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    high = [part.shape.support(axis) for axis in axes]
    low = [-part.shape.support((-axis[0], -axis[1], -axis[2])) for axis in axes]
    x, y, z = ((a + b) / 2.0 for a, b in zip(low, high))
    return (x, y, z), 0.5 * math.dist(low, high) * 1.001


def _dot(a: Points, b: Points | Vector) -> Float[Tensor, "rays"]:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _trace_part(part: Part, origins: Points, directions: Points, limit: Float[Tensor, "rays"]) -> Float[Tensor, "rays"]:
    """Distance along each ray to one part, infinite where it is missed or farther than `limit`."""
    centre, radius = _bounding_ball(part)
    world_centre = part.moved().position if centre == (0.0, 0.0, 0.0) else _world_point(part, centre)
    to_centre = torch.stack([o - c for o, c in zip(origins, world_centre)])
    along = -_dot(to_centre, directions)
    reach = (radius * part.scale) ** 2 - _dot(to_centre, to_centre) + along.square()
    half = reach.clamp_min(0.0).sqrt()
    rays = ((reach > 0.0) & (along + half > 0.0) & (along - half < limit)).nonzero().squeeze(1)
    found = torch.full_like(limit, math.inf)
    if len(rays) == 0:
        return found
    o, d = _into_frame(part, origins[:, rays]), _into_frame(part, directions[:, rays], direction=True)
    t = (along - half)[rays].clamp_min(0.0) / part.scale
    last = torch.minimum(along + half, limit)[rays] / part.scale
    epsilon = HIT_DISTANCE / part.scale
    for step in range(MAX_STEPS):
        distance = part.shape.distance(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        t = t + distance
        if step % 3 == 2:
            # The rows that are done leave, or a few slow rays would make all others pay.
            met = distance < epsilon
            if bool(met.any()):
                found[rays[met]] = t[met]
            keep = ((t < last) & ~met).nonzero().squeeze(1)
            if len(keep) == 0:
                break
            rays, o, d, t, last = rays[keep], o[:, keep], d[:, keep], t[keep], last[keep]
    met = found.isfinite().nonzero().squeeze(1)
    if len(met):
        o, d, t = _into_frame(part, origins[:, met]), _into_frame(part, directions[:, met], direction=True), found[met]
        for _ in range(2):
            t = t + part.shape.distance(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        found[met] = t * part.scale
    return found


def _world_point(part: Part, point: Vector) -> Vector:
    x, y, z = (part.scale * sum(r * p for r, p in zip(row, point)) + q for row, q in zip(part.rotation, part.position))
    return (x, y, z)


def _trace(scene: Scene, origins: Points, directions: Points) -> Hits:
    """The nearest hit of every ray."""
    distance = torch.full_like(origins[0], math.inf)
    part = torch.full_like(origins[0], NOTHING, dtype=torch.int64)
    if scene.ground is not None:
        t = (scene.ground_height - origins[2]) / directions[2].clamp_max(-1e-9)
        below = (directions[2] < 0.0) & (t > 0.0) & (t < FAR)
        distance, part = torch.where(below, t, distance), part.masked_fill(below, GROUND)
    for index, candidate in enumerate(scene.parts):
        found = _trace_part(candidate, origins, directions, distance)
        nearer = found < distance
        distance, part = torch.where(nearer, found, distance), part.masked_fill(nearer, index)
    return Hits(distance, part)


def _gradient(part: Part, x: Tensor, y: Tensor, z: Tensor) -> Points:
    """Unit normal in the part's frame by four taps at the corners of a tetrahedron."""
    h = 1e-3 / part.scale
    total = torch.zeros((3, len(x)), dtype=x.dtype, device=x.device)
    for a, b, c in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        distance = part.shape.distance(x + a * h, y + b * h, z + c * h)
        total += torch.stack((a * distance, b * distance, c * distance))
    return total / _dot(total, total).sqrt().clamp_min(1e-12)


def _shadow(scene: Scene, points: Points, normals: Points, owner: Int[Tensor, "rays"]) -> Float[Tensor, "rays"]:
    """Share of the light that reaches each point: 0 in the shadow, 1 in the light, between in the penumbra.

    min over t of sharpness · f(t) / t along the ray to the light (Quílez).
    """
    light = _unit(scene.light)
    lit = torch.ones_like(points[0])
    start = points + 2e-3 * normals
    for index, part in enumerate(scene.parts):
        centre, radius = _bounding_ball(part)
        radius *= part.scale
        offset = torch.stack([s - c for s, c in zip(start, _world_point(part, centre))])
        along = -_dot(offset, light)
        squared = _dot(offset, offset) - along.square()
        widest = radius + (along + radius).clamp_min(0.0) / SHADOW_SHARPNESS
        near = (along > -radius) & (squared < widest.square())
        if part.shape.convex:
            near &= owner != index
        rays = near.nonzero().squeeze(1)
        if len(rays) == 0:
            continue
        o = _into_frame(part, start[:, rays])
        d = _into_frame(part, start.new_tensor(light)[:, None], direction=True)
        t = ((along[rays] - widest[rays]) / part.scale).clamp_min(4e-3 / part.scale)
        last = (along[rays] + widest[rays]) / part.scale
        least = torch.ones_like(t)
        step = 2.0 * radius / part.scale / SHADOW_STEPS
        for _ in range(SHADOW_STEPS):
            distance = part.shape.distance(o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
            inside = t < last
            least = torch.where(inside, torch.minimum(least, SHADOW_SHARPNESS * distance / t), least)
            t = t + distance.clamp_min(step)
        lit[rays] = torch.minimum(lit[rays], least.clamp_min(0.0))
    return lit * lit * (3.0 - 2.0 * lit)


def _occlusion(scene: Scene, points: Points, normals: Points) -> Float[Tensor, "rays"]:
    """Share of the sky's light that reaches each point, from how much room there is above it."""
    taps = points.new_tensor(OCCLUSION_TAPS)[:, None]
    x, y, z = (p + taps * n for p, n in zip(points, normals))
    room = taps.expand(len(OCCLUSION_TAPS), points.shape[1]).clone()
    if scene.ground is not None:
        room = torch.minimum(room, (z - scene.ground_height).clamp_min(0.0))
    for part in scene.parts:
        centre, radius = _bounding_ball(part)
        reach = radius * part.scale + OCCLUSION_TAPS[-1]
        offset = torch.stack([p - c for p, c in zip(points, _world_point(part, centre))])
        rays = (_dot(offset, offset) < reach**2).nonzero().squeeze(1)
        if len(rays) == 0:
            continue
        near = torch.stack((x[:, rays], y[:, rays], z[:, rays])).flatten(1)
        u, v, w = _into_frame(part, near)
        distance = (part.shape.distance(u, v, w) * part.scale).clamp_min(0.0).view(len(OCCLUSION_TAPS), -1)
        room[:, rays] = torch.minimum(room[:, rays], distance)
    missing = (taps - room) / taps
    weights = points.new_tensor((0.35, 0.30, 0.20, 0.15))[:, None]
    return (1.0 - 0.9 * (weights * missing).sum(0)).clamp(0.0, 1.0)


def _unit(v: Vector) -> Vector:
    norm = math.hypot(*v)
    return (v[0] / norm, v[1] / norm, v[2] / norm)


def _linear(colour: Colour) -> Colour:
    a, b, c = (channel**GAMMA for channel in colour)
    return (a, b, c)


def _sky(scene: Scene, height: Float[Tensor, "rays"]) -> Points:
    """Display colour of the sky in directions of the given height (sine of the elevation)."""
    share = height.clamp(0.0, 1.0).pow(0.6)
    horizon, zenith = scene.sky
    return torch.stack([a + (b - a) * share for a, b in zip(horizon, zenith)])


def _surface(scene: Scene, points: Points, owner: Int[Tensor, "rays"]) -> tuple[Points, Points, Float[Tensor, "rays"]]:
    """Normals, display albedo and gloss of points on surfaces."""
    normals, colours, gloss = torch.zeros_like(points), torch.zeros_like(points), torch.zeros_like(points[0])
    if scene.ground is not None:
        rays = (owner == GROUND).nonzero().squeeze(1)
        if len(rays):
            x, y = points[0, rays], points[1, rays]
            normals[2, rays] = 1.0
            colours[:, rays] = albedo(scene.ground, x, y, torch.zeros_like(x))
    for index, part in enumerate(scene.parts):
        rays = (owner == index).nonzero().squeeze(1)
        if len(rays) == 0:
            continue
        x, y, z = _into_frame(part, points[:, rays])
        normals[:, rays] = _out_of_frame(part, _gradient(part, x, y, z))
        colours[:, rays] = albedo(part.texture, x, y, z)
        gloss[rays] = part.texture.gloss
    return normals, colours, gloss


def _shade(scene: Scene, origins: Points, directions: Points, hits: Hits) -> tuple[Points, Points]:
    """Display colour and normal of every ray that meets something (zero elsewhere), the sky's colour included."""
    colour, normal = torch.zeros_like(origins), torch.zeros_like(origins)
    if scene.ground is not None:
        colour = _sky(scene, directions[2])
    rays = hits.distance.isfinite().nonzero().squeeze(1)
    if len(rays) == 0:
        return colour, normal
    distance, owner, view = hits.distance[rays], hits.part[rays], directions[:, rays]
    points = origins[:, rays] + distance * view
    normals, paint, gloss = _surface(scene, points, owner)
    light = _unit(scene.light)
    facing = _dot(normals, light).clamp_min(0.0)
    towards = (facing > 0.0).nonzero().squeeze(1)
    lit = torch.zeros_like(facing)
    lit[towards] = _shadow(scene, points[:, towards], normals[:, towards], owner[towards])
    room = _occlusion(scene, points, normals)
    halfway = torch.stack([a - b for a, b in zip(light, view)])
    highlight = (_dot(normals, halfway) / _dot(halfway, halfway).sqrt().clamp_min(1e-6)).clamp_min(0.0).pow(40.0)
    key = scene.light_strength * lit * facing
    above = 0.5 + 0.5 * normals[2]
    zenith, floor = _linear(scene.sky[1]), _linear(scene.ground.colour if scene.ground else (0.75, 0.72, 0.68))
    shaded = torch.empty_like(points)
    for channel in range(3):
        ambient = (0.5 + 0.5 * zenith[channel]) * above + 0.55 * floor[channel] * (1.0 - above)
        diffuse = key * scene.light_colour[channel] + scene.ambient_strength * room * ambient
        linear = paint[channel].clamp(0.0, 1.0).pow(GAMMA) * diffuse + gloss * 0.6 * lit * highlight
        shaded[channel] = _tone(linear).pow(1.0 / GAMMA)
    if scene.ground is not None:
        haze = ((distance - 3.0) / (FAR - 3.0)).clamp(0.0, 1.0) * (owner == GROUND)
        shaded += (_sky(scene, torch.zeros_like(distance)) - shaded) * (haze * haze * (3.0 - 2.0 * haze))
    colour[:, rays], normal[:, rays] = shaded.clamp(0.0, 1.0), normals
    return colour, normal


def _tone(linear: Tensor) -> Tensor:
    """Leaves values up to 0.8 alone and bends what is brighter towards 1."""
    over = (linear - 0.8).clamp_min(0.0)
    return torch.where(linear > 0.8, 0.8 + 0.2 * (1.0 - torch.exp(-5.0 * over)), linear.clamp_min(1e-6))


def _sample_offsets(supersampling: int) -> list[tuple[float, float]]:
    """Where in a pixel rays go: its centre first, then a regular grid (whose own centre is not taken twice)."""
    steps = [(i + 0.5) / supersampling for i in range(supersampling)]
    return [(0.5, 0.5)] + [(x, y) for y in steps for x in steps if (x, y) != (0.5, 0.5)]


def _sample(scene: Scene, origins: Points, directions: Points) -> tuple[Points, Bool[Tensor, "rays"], Points, Hits]:
    """Colour, coverage, normal and hits of a chunk of rays."""
    hits = _trace(scene, origins, directions)
    colour, normal = _shade(scene, origins, directions, hits)
    met = hits.distance.isfinite()
    return colour, met | (scene.ground is not None), normal, hits


@torch.no_grad()
def render(
    scene: Scene,
    camera_to_worlds: Float[Tensor, "views rows 4"],
    height: int,
    width: int,
    fov_degrees: float = 49.13,
    supersampling: int = 2,
    background: Colour = (1.0, 1.0, 1.0),
) -> Rendering:
    """Renders a scene from several cameras; the same arguments always give the same picture.

    Args:
        scene: what is seen.
        camera_to_worlds: c2w, 3×4 or 4×4, OpenGL axes; the work happens on their device.
        height: image height in pixels.
        width: image width in pixels.
        fov_degrees: field of view across the width.
        supersampling: sample rays along each side of a pixel, beside the one through its centre (1: that one only).
            Colour and alpha are the mean of all; depth and normal are those of the centre.
        background: display colour where nothing is.

    Returns:
        Colour, depth, alpha and normals.

    Raises:
        ValueError: a size or `supersampling` below 1.
    """
    if min(height, width, supersampling) < 1:
        raise ValueError(f"Cannot render {height}×{width} pixels with {supersampling}² samples.")
    c2w = camera_to_worlds.float()
    pixels = len(c2w) * height * width
    backdrop = c2w.new_tensor(background)[:, None]
    colour, alpha = c2w.new_zeros((3, pixels)), c2w.new_zeros(pixels)
    depth, normal = c2w.new_zeros(pixels), c2w.new_zeros((3, pixels))
    offsets = _sample_offsets(supersampling)
    for sample, offset in enumerate(offsets):
        bundle = cameras.rays(c2w, fov_degrees, height, width, offset)
        z_factors = bundle.z_factors.flatten()
        origins, directions = (v.reshape(-1, 3).T.contiguous() for v in (bundle.origins, bundle.directions))
        for first in range(0, pixels, CHUNK):
            chunk = slice(first, first + CHUNK)
            seen, covered, facing, hits = _sample(scene, origins[:, chunk], directions[:, chunk])
            colour[:, chunk] += torch.where(covered, seen, backdrop)
            alpha[chunk] += covered
            if sample == 0:
                met = hits.distance.isfinite()
                depth[chunk] = torch.where(met, hits.distance, 0.0) * z_factors[chunk]
                normal[:, chunk] = facing
    shape = (len(c2w), height, width)
    return Rendering(
        colour=(colour / len(offsets)).T.reshape(*shape, 3).contiguous(),
        depth=depth.view(*shape, 1),
        alpha=(alpha / len(offsets)).view(*shape, 1),
        normal=normal.T.reshape(*shape, 3).contiguous(),
    )
