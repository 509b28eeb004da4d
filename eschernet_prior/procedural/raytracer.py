"""Render scenes: sphere tracing, one light with soft shadows, ambient occlusion, a sky.

Light is computed in linear intensities and converted to display values in [0, 1] by a power of 1 / 2.2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eschernet_prior.base import cameras
from eschernet_prior.procedural.bounds import Points, RayValues, Stage, dot, into_frame, out_of_frame, where
from eschernet_prior.procedural.sdf import Part, Vector
from eschernet_prior.procedural.textures import Colour, Texture, albedo
from eschernet_prior.procedural.tracing import FAR, GROUND, gradient, light_share, nearest_hits, open_room

RENDERER_VERSION = 1
"""Part of the key of cached renders: increase it when the pictures of a scene change."""
CHUNK = 1 << 18
"""Approximate number of rays traced at a time, which limits memory to a few hundred MB."""
GAMMA = 2.2
HAZE = 3.0
"""Distance from which the ground fades into the horizon, scene units."""


@dataclass(frozen=True)
class Scene:
    """Parts under one light; with `ground`, ground and sky fill the background."""

    parts: tuple[Part, ...]
    ground: Texture | None = None
    """Texture of the plane z = `ground_height`; None without a ground."""
    ground_height: float = -0.5
    light: Vector = (0.45, -0.35, 0.82)
    """Direction towards the light, any length."""
    light_colour: Colour = (1.0, 0.95, 0.86)
    """The light's linear intensity."""
    light_strength: float = 0.85
    ambient_strength: float = 0.5
    sky: tuple[Colour, Colour] = ((0.93, 0.94, 0.95), (0.42, 0.63, 0.90))
    """Display colours at the horizon and at the zenith, which also determine the sky's light on surfaces."""


@dataclass(frozen=True)
class Rendering:
    """Pictures of one scene; all float32."""

    colour: Float[Tensor, "views height width 3"]
    """Display colour in [0, 1], composed over `background`."""
    depth: Float[Tensor, "views height width 1"]
    """z-depth in scene units at the pixel's centre; 0 without a surface."""
    alpha: Float[Tensor, "views height width 1"]
    """Share of the pixel's sample rays that hit a surface, ground or sky, in [0, 1]."""
    normal: Float[Tensor, "views height width 3"]
    """Unit outward normal in the world; 0 without a surface."""

    def straight_rgba(self) -> Float[Tensor, "views height width 4"]:
        """Colour without the white background that shines through, and alpha: composed over white, `colour` again."""
        own = (self.colour - (1.0 - self.alpha)) / self.alpha.clamp(min=1e-4)
        return torch.cat((own.clamp(0.0, 1.0), self.alpha), dim=-1)


def _unit(v: Vector) -> Vector:
    norm = math.hypot(*v)
    return (v[0] / norm, v[1] / norm, v[2] / norm)


def _linear(colour: Colour) -> Colour:
    a, b, c = (channel**GAMMA for channel in colour)
    return (a, b, c)


def _sky(scene: Scene, height: RayValues) -> Points:
    """Display colour of the sky in directions of the given height (sine of the elevation)."""
    share = height.clamp(0.0, 1.0).pow(0.6)
    horizon, zenith = scene.sky
    return torch.stack([a + (b - a) * share for a, b in zip(horizon, zenith)])


@dataclass(frozen=True)
class _Surface:
    """Points on surfaces, and what determines their colour."""

    normals: Points
    paint: Points
    """Display albedo."""
    gloss: RayValues
    glow: RayValues


def _surface(scene: Scene, points: Points, owner: Int[Tensor, "rays"]) -> _Surface:
    """Material and geometry of points on surfaces."""
    normals, colours = torch.zeros_like(points), torch.zeros_like(points)
    gloss, glow = torch.zeros_like(points[0]), torch.zeros_like(points[0])
    if scene.ground is not None:
        rays = where(owner == GROUND)
        x, y = points[0, rays], points[1, rays]
        normals[2, rays] = 1.0
        colours[:, rays] = albedo(scene.ground, x, y, torch.zeros_like(x))
    for index in owner.unique().tolist():
        if index == GROUND:
            continue
        part, rays = scene.parts[index], where(owner == index)
        x, y, z = into_frame(part, points.index_select(1, rays))
        normals[:, rays] = out_of_frame(part, gradient(part, x, y, z))
        colours[:, rays] = albedo(part.texture, x, y, z)
        gloss[rays], glow[rays] = part.texture.gloss, part.texture.glow
    return _Surface(normals, colours, gloss, glow)


def _reflected(scene: Scene, surface: _Surface, view: Points, lit: RayValues, room: RayValues) -> Points:
    """Shade surfaces: Lambertian light and a highlight from the lamp, ambient light from sky and ground.

    Args:
        scene: The scene, which determines the lights.
        surface: The points.
        view: Unit directions of the viewing rays.
        lit: Visible share of the lamp.
        room: Visible share of the sky.
    """
    light, normals = _unit(scene.light), surface.normals
    halfway = torch.stack([a - b for a, b in zip(light, view)])
    highlight = (dot(normals, halfway) * dot(halfway, halfway).clamp_min(1e-6).rsqrt()).clamp_min(0.0).pow(40.0)
    key = scene.light_strength * lit * dot(normals, light).clamp_min(0.0)
    above = 0.5 + 0.5 * normals[2]
    zenith, floor = _linear(scene.sky[1]), _linear(scene.ground.colour if scene.ground else (0.75, 0.72, 0.68))
    channels: list[RayValues] = []
    for channel in range(3):
        ambient = (0.5 + 0.5 * zenith[channel]) * above + 0.55 * floor[channel] * (1.0 - above)
        light_here = key * scene.light_colour[channel] + scene.ambient_strength * room * ambient
        linear = surface.paint[channel].clamp(0.0, 1.0).pow(GAMMA) * (light_here + surface.glow)
        linear = linear + surface.gloss * 0.6 * lit * highlight
        channels.append(_tone(linear).pow(1.0 / GAMMA))
    return torch.stack(channels)


def _tone(linear: RayValues) -> RayValues:
    """Tone mapping: identity up to 0.8, above it a curve towards 1."""
    over = (linear - 0.8).clamp_min(0.0)
    return torch.where(linear > 0.8, 1.0 - 0.2 * torch.exp(-5.0 * over), linear.clamp_min(1e-6))


@dataclass(frozen=True)
class _Sample:
    """Traced and shaded rays."""

    distance: RayValues
    owner: Int[Tensor, "rays"]
    colour: Points
    normal: Points
    room: RayValues


def _sample(scene: Scene, stage: Stage, origins: Points, directions: Points, centre: _Sample | None) -> _Sample:
    """Trace and shade rays.

    Args:
        scene: The scene.
        stage: Its bounds.
        origins: Origins of the rays.
        directions: Unit directions.
        centre: Results of the rays through the centres of the same pixels, repeated as needed. The visible share of
            the sky changes slowly over a surface, so a ray that hits the same part reuses it.
    """
    hits = nearest_hits(stage, origins, directions)
    colour, normal, room = torch.zeros_like(origins), torch.zeros_like(origins), torch.ones_like(origins[0])
    if scene.ground is not None:
        colour = _sky(scene, directions[2])
    rays = where(hits.distance.isfinite())
    distance, owner, view = hits.distance[rays], hits.owner[rays], directions.index_select(1, rays)
    points = origins.index_select(1, rays) + distance * view
    surface = _surface(scene, points, owner)
    normals = surface.normals
    facing = where(dot(normals, _unit(scene.light)) > 0.0)
    lit = torch.zeros_like(distance)
    lit[facing] = light_share(stage, points[:, facing], normals[:, facing], owner[facing], _unit(scene.light))
    if centre is None:
        room[rays] = open_room(stage, points, normals)
    else:
        times = len(room) // len(centre.room)
        room = centre.room.repeat(times)
        fresh = where(owner != centre.owner.repeat(times)[rays])
        room[rays[fresh]] = open_room(stage, points[:, fresh], normals[:, fresh])
    shaded = _reflected(scene, surface, view, lit, room[rays])
    if scene.ground is not None:
        haze = ((distance - HAZE) / (FAR - HAZE)).clamp(0.0, 1.0) * (owner == GROUND)
        shaded += (_sky(scene, torch.zeros_like(distance)) - shaded) * (haze * haze * (3.0 - 2.0 * haze))
    colour[:, rays], normal[:, rays] = shaded.clamp(0.0, 1.0), normals
    return _Sample(hits.distance, hits.owner, colour, normal, room)


def _sample_offsets(supersampling: int) -> list[tuple[float, float]]:
    """Offsets of the rays of a pixel: its centre, then a regular grid (without its centre)."""
    steps = [(i + 0.5) / supersampling for i in range(supersampling)]
    return [(0.5, 0.5)] + [(x, y) for y in steps for x in steps if (x, y) != (0.5, 0.5)]


def _pixels(
    scene: Scene, stage: Stage, bundles: list[cameras.Rays], chunk: slice, backdrop: Points
) -> tuple[Points, RayValues, RayValues, Points]:
    """Colour, distance (0 for a miss), alpha and normal of pixels; the rays through their centres are `bundles[0]`."""
    rows = [[v.reshape(-1, 3)[chunk].T for v in (bundle.origins, bundle.directions)] for bundle in bundles]
    centre = _sample(scene, stage, rows[0][0].contiguous(), rows[0][1].contiguous(), None)
    samples = [centre]
    if len(rows) > 1:
        origins, directions = (torch.cat(vectors, 1) for vectors in zip(*rows[1:]))
        samples.append(_sample(scene, stage, origins, directions, centre))
    met = torch.cat([sample.distance.isfinite() for sample in samples])
    covered = met | (scene.ground is not None)
    colour = torch.where(covered, torch.cat([sample.colour for sample in samples], 1), backdrop)
    colour, alpha = colour.view(3, len(bundles), -1).mean(1), covered.view(len(bundles), -1).float().mean(0)
    return colour, torch.where(centre.distance.isfinite(), centre.distance, 0.0), alpha, centre.normal


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
    """Render a scene from several cameras, deterministically.

    Args:
        scene: The scene.
        camera_to_worlds: c2w, 3×4 or 4×4, OpenGL axes; rendered on their device.
        height: Image height in pixels.
        width: Image width in pixels.
        fov_degrees: Field of view across the width.
        supersampling: Rays along each side of a pixel, in addition to the one through its centre (1: only that one).
            Colour and alpha are means over all; depth and normal are those of the centre.
        background: Display colour behind the object.

    Returns:
        Colour, depth, alpha and normals.

    Raises:
        ValueError: If there is no view, or a size or `supersampling` is below 1.
    """
    if min(height, width, supersampling, len(camera_to_worlds)) < 1:
        raise ValueError(
            f"Cannot render {len(camera_to_worlds)} views of {height}×{width} with {supersampling}² samples."
        )
    c2w = camera_to_worlds.float()
    backdrop = c2w.new_tensor(background)[:, None]
    stage = Stage.of(scene.parts, scene.ground_height if scene.ground else None)
    offsets, pixels = _sample_offsets(supersampling), height * width
    at_a_time = max(1, CHUNK // supersampling**2)
    done: list[tuple[Points, RayValues, RayValues, Points]] = []
    for views in c2w.split(max(1, at_a_time // pixels)):
        bundles = [cameras.rays(views, fov_degrees, height, width, offset) for offset in offsets]
        chunks = (slice(first, first + at_a_time) for first in range(0, len(views) * pixels, at_a_time))
        done.extend(_pixels(scene, stage, bundles, chunk, backdrop) for chunk in chunks)
    colour, distance, alpha, normal = (torch.cat(rows, -1) for rows in zip(*done))
    shape = (len(c2w), height, width)
    z_factors = cameras.rays(c2w[:1], fov_degrees, height, width).z_factors
    return Rendering(
        colour=colour.T.reshape(*shape, 3).contiguous(),
        depth=distance.view(*shape, 1) * z_factors,
        alpha=alpha.view(*shape, 1),
        normal=normal.T.reshape(*shape, 3).contiguous(),
    )
