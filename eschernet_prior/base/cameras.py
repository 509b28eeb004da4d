"""Pose algebra: frames, fields of view and viewpoints around an object.

Vocabulary
    world        right-handed, z up, in scene units; the object's centre is the origin
    camera       OpenGL axes, as in nerfstudio: x right, y up, z backwards; a camera looks along its own -z
    c2w          camera to world, (4, 4): its columns are the camera's axes and position in the world
    w2c          world to camera, (4, 4), the inverse of c2w; the input of the prior
    elevation    degrees above the horizon; azimuth: radians from world x towards world y
    field        degrees across the image's *width*, as `camera_angle_x`; pixels are square
    pixel        row i, column j has its centre at (j + 0.5, i + 0.5), x right, y down; principal point in the middle
    z-depth      distance along the optical axis; distance along the ray = z-depth / (direction · optical axis)
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
"""Radians between consecutive points of a golden spiral, no two of which have the same azimuth."""


class Rays(NamedTuple):
    """One ray per pixel."""

    origins: Float[Tensor, "views height width 3"]
    """Start points of the rays in the world."""
    directions: Float[Tensor, "views height width 3"]
    """Unit directions in the world."""
    z_factors: Float[Tensor, "views height width 1"]
    """Direction · optical axis, in (0, 1]: z-depth = distance along the ray × this."""


def focal_length(fov_degrees: float, width: int) -> float:
    """Focal length in pixels of an image `width` pixels wide that spans `fov_degrees`."""
    if not 0.0 < fov_degrees < 180.0:
        raise ValueError(f"A field of view must be between 0 and 180 degrees, not {fov_degrees}.")
    return 0.5 * width / math.tan(math.radians(fov_degrees) / 2.0)


def look_at(
    position: Float[Tensor, "*batch 3"],
    target: Float[Tensor, "*batch 3"] | tuple[float, float, float] = (0.0, 0.0, 0.0),
    up: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Float[Tensor, "*batch 4 4"]:
    """Cameras at `position` whose optical axis goes through `target`, upright with respect to `up`.

    For a camera that looks along `up`, world y (x, if `up` is y) is used instead.

    Args:
        position: Camera centres in the world.
        target: The points they look at; broadcasts against `position`.
        up: World direction that is vertical in the image.

    Returns:
        c2w matrices.

    Raises:
        ValueError: If a camera is at its target.
    """
    target = torch.as_tensor(target, dtype=position.dtype, device=position.device)
    backward = position - target
    distance = backward.norm(dim=-1, keepdim=True)
    if bool((distance < 1e-9).any()):
        raise ValueError("A camera cannot look at its own position.")
    backward = backward / distance
    upright = position.new_tensor(up).expand_as(backward)
    spare = position.new_tensor((0.0, 1.0, 0.0) if abs(up[1]) < 0.9 * math.hypot(*up) else (1.0, 0.0, 0.0))
    right = torch.linalg.cross(upright, backward)
    right = torch.where(
        right.norm(dim=-1, keepdim=True) < 1e-6, torch.linalg.cross(spare.expand_as(backward), backward), right
    )
    right = right / right.norm(dim=-1, keepdim=True)
    columns = torch.stack((right, torch.linalg.cross(backward, right), backward, position), dim=-1)
    return to_4x4(columns)


def on_sphere(
    radius: Float[Tensor, "*batch"], elevation_degrees: Float[Tensor, "*batch"], azimuth: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3"]:
    """World positions at the given distance from the origin, elevation (degrees) and azimuth (radians)."""
    elevation = torch.deg2rad(elevation_degrees)
    x, y = elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin()
    return radius[..., None] * torch.stack((x, y, elevation.sin()), dim=-1)


def orbit(
    num_views: int,
    radius: float,
    elevation_degrees: float | tuple[float, float] = 20.0,
    azimuth_offset: float = 0.0,
) -> Float[Tensor, "views 4 4"]:
    """Evenly spaced cameras around the origin, looking at it.

    Args:
        num_views: Number of cameras.
        radius: Distance from the origin.
        elevation_degrees: One elevation for all, or (lowest, highest): a closed orbit from the lowest to the highest
            and back.
        azimuth_offset: Azimuth of the first view, radians.

    Returns:
        c2w matrices.
    """
    turn = torch.arange(num_views, dtype=torch.float64) / max(num_views, 1)
    low, high = elevation_degrees if isinstance(elevation_degrees, tuple) else (elevation_degrees, elevation_degrees)
    elevation = low + (high - low) * 0.5 * (1.0 - torch.cos(2.0 * math.pi * turn))
    position = on_sphere(torch.full_like(turn, radius), elevation, azimuth_offset + 2.0 * math.pi * turn)
    return look_at(position).float()


def spherical_views(
    num_views: int,
    radius_range: tuple[float, float] = (1.5, 2.2),
    elevation_range: tuple[float, float] = (-10.0, 70.0),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "views 4 4"]:
    """Cameras spread over a band of the sphere around the origin, looking at it: a golden spiral with jitter.

    The band is divided into `num_views` rings of equal area with one view each; the place in the ring, the distance and
    the rotation of the spiral are random.

    Args:
        num_views: Number of cameras.
        radius_range: (nearest, farthest) distance from the origin.
        elevation_range: (lowest, highest) elevation in degrees.
        generator: a CPU generator; the same seed gives the same views.

    Returns:
        c2w matrices, from the lowest ring to the highest.
    """
    jitter = torch.rand((3, num_views), generator=generator, dtype=torch.float64)
    turn = 2.0 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    index = torch.arange(num_views, dtype=torch.float64)
    low, high = (math.sin(math.radians(angle)) for angle in elevation_range)
    height = low + (high - low) * (index + jitter[0]) / max(num_views, 1)
    azimuth = turn + GOLDEN_ANGLE * index + (jitter[1] - 0.5) * GOLDEN_ANGLE / max(num_views, 1) ** 0.5
    radius = radius_range[0] + (radius_range[1] - radius_range[0]) * jitter[2]
    return look_at(on_sphere(radius, torch.rad2deg(torch.asin(height)), azimuth)).float()


def rays(
    camera_to_worlds: Float[Tensor, "views rows 4"],
    fov_degrees: float,
    height: int,
    width: int,
    offset: tuple[float, float] = (0.5, 0.5),
) -> Rays:
    """The ray through one point of every pixel.

    Args:
        camera_to_worlds: c2w, 3×4 or 4×4.
        fov_degrees: Field of view across the width.
        height: Image height in pixels.
        width: Image width in pixels.
        offset: (x, y) of that point inside the pixel, in pixels from its upper left corner.

    Returns:
        Origins, unit directions and z factors.
    """
    c2w = camera_to_worlds
    focal = focal_length(fov_degrees, width)
    x = (torch.arange(width, dtype=c2w.dtype, device=c2w.device) + offset[0] - width / 2.0) / focal
    y = (height / 2.0 - torch.arange(height, dtype=c2w.dtype, device=c2w.device) - offset[1]) / focal
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    z_factors = (x.square() + y.square() + 1.0).rsqrt()[None, ..., None]
    axes = c2w[:, None, None, :3, :3]
    directions = (x[..., None] * axes[..., 0] + y[..., None] * axes[..., 1] - axes[..., 2]) * z_factors
    origins = c2w[:, None, None, :3, 3].expand_as(directions)
    return Rays(origins, directions, z_factors.expand(len(c2w), -1, -1, -1))


def world_to_camera(camera_to_worlds: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 4 4"]:
    """w2c of rigid c2w matrices (3×4 or 4×4), in float64."""
    c2w = camera_to_worlds.double()
    rotation = c2w[..., :3, :3].mT
    translation = -rotation @ c2w[..., :3, 3:]
    return to_4x4(torch.cat((rotation, translation), dim=-1))


def camera_to_world(world_to_cameras: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 4 4"]:
    """c2w of rigid w2c matrices (3×4 or 4×4), in float64."""
    return world_to_camera(world_to_cameras)  # a rigid transform is inverted the same way in both directions


def nearest_to_axes(
    camera_to_worlds: Float[Tensor, "views rows 4"], parallel: float = 1e-4
) -> Float[Tensor, "3"] | None:
    """Find the point closest to all optical axes in the least-squares sense, in float64.

    With unit viewing directions `d` and positions `o` it solves `sum (I - d d^T) (x - o) = 0`.

    Args:
        camera_to_worlds: c2w, 3×4 or 4×4.
        parallel: Least eigenvalue of the mean of `I - d d^T`, about the mean squared angle in radians between the axes
            and their mean, below which the axes count as parallel; by default about half a degree.

    Returns:
        The point in the world; None if the axes are parallel.
    """
    c2w = camera_to_worlds.double()
    direction, origin = -c2w[:, :3, 2:3], c2w[:, :3, 3:]
    across = torch.eye(3, dtype=c2w.dtype, device=c2w.device) - direction @ direction.mT
    if torch.linalg.eigvalsh(across.mean(0))[0] < parallel:
        return None
    return torch.linalg.solve(across.sum(0), (across @ origin).sum(0))[:, 0]


def to_4x4(rows: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 4 4"]:
    """3×4 transforms with the row that makes them 4×4."""
    bottom = rows.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*rows.shape[:-2], 1, 4)
    return torch.cat((rows, bottom), dim=-2)
