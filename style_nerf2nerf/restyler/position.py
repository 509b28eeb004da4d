"""World position of each pixel's surface, as sines and cosines.

Positions are written as sines and cosines of a few periods along the world's axes, and fade where a
period is too short for the pixels: the integrated positional encoding of mip-NeRF (Barron et al. 2021, equation 13).

The unit is the *picture height*: how much of the world a picture's height shows at the median depth of all views.
Patterns thus have the same size in pictures of any scene, whatever its units.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from style_nerf2nerf.reprojection import ViewCameras

PERIODS = (1 / 4, 1 / 8, 1 / 16)
"""Wavelengths in picture heights."""
CHANNELS = 6 * len(PERIODS)
"""Waves of a pixel: for every period the sines, then the cosines, along x, y and z."""
PIXEL_WIDTH = 0.5
"""Standard deviation of the window that a pixel averages over, in distances between neighbouring pixels."""
WITHOUT_CAMERAS_FOV = 50.0
"""Field of view in degrees that is assumed where no cameras are given."""


def surface_points(
    depths: Float[Tensor, "views 1 height width"],
    inside: Bool[Tensor, "views 1 height width"],
    cameras: ViewCameras | None,
) -> Float[Tensor, "views 3 height width"]:
    """World points of all pixels in picture heights.

    Where nothing is, points lie on a sphere of directions, with the median depth as its radius. Without cameras every
    view has its own world, with the camera at the origin.

    Args:
        depths: z-depth in the poses' units.
        inside: Where surfaces are.
        cameras: The views' cameras.
    """
    views, _, height, width = depths.shape
    if cameras is None:
        cameras = ViewCameras.from_fov(torch.eye(4).expand(views, 4, 4), WITHOUT_CAMERAS_FOV, height, width)
    cameras = cameras.resized(height, width)
    distance = depths[inside].median() if bool(inside.any()) else depths.new_tensor(1.0)
    focal = cameras.focal[:, 1].median() / height
    unit = distance / focal
    points = []
    for view in range(views):
        one = torch.where(inside[view, 0], depths[view, 0], distance)
        seen = cameras.unproject(view, one)
        towards = F.normalize(seen - cameras.camera_to_worlds[view, :3, 3].float(), dim=-1) * focal
        points.append(torch.where(inside[view, 0][..., None], seen / unit, towards))
    return torch.stack(points).movedim(-1, 1)


def waves(
    points: Float[Tensor, "views 3 height width"], pixels: float = 1.0
) -> Float[Tensor, "views channels height width"]:
    """Sines and cosines of the points in [-1, 1], faded towards 0 where pixels are too far apart for a period.

    Args:
        points: In picture heights.
        pixels: How many of the points' pixels one pixel of the picture is wide, where points are supersampled.
    """
    apart = pixels * torch.maximum(_step(points, 2), _step(points, 3))
    out = []
    for period in PERIODS:
        turn = 2 * math.pi / period
        fade = torch.exp(-0.5 * (turn * PIXEL_WIDTH * apart).square())
        out += [fade * torch.sin(turn * points), fade * torch.cos(turn * points)]
    return torch.cat(out, 1)


def _step(points: Float[Tensor, "views 3 height width"], dim: int) -> Float[Tensor, "views 3 height width"]:
    """Distance to the nearer of both neighbours along an axis of the picture, coordinate by coordinate."""
    if points.shape[dim] < 2:
        return torch.zeros_like(points)
    ahead = points.diff(dim=dim).abs()
    first, last = ahead.narrow(dim, 0, 1), ahead.narrow(dim, -1, 1)
    return torch.minimum(torch.cat([first, ahead], dim), torch.cat([ahead, last], dim))


def surface_normals(
    points: Float[Tensor, "views 3 height width"],
) -> Float[Tensor, "views 3 height width"]:
    """Unit world normals from neighbouring points, towards the camera; of two neighbours the nearer one counts."""
    across, down = _nearer(points, 3), _nearer(points, 2)
    return F.normalize(torch.linalg.cross(down, across, dim=1), dim=1)


def _nearer(points: Float[Tensor, "views 3 height width"], dim: int) -> Float[Tensor, "views 3 height width"]:
    """From each point to the next along an axis of the picture, as far as to the nearer of both neighbours."""
    ahead = points.diff(dim=dim)
    first, last = ahead.narrow(dim, 0, 1), ahead.narrow(dim, -1, 1)
    before, after = torch.cat([first, ahead], dim), torch.cat([ahead, last], dim)
    return torch.where(before.norm(dim=1, keepdim=True) < after.norm(dim=1, keepdim=True), before, after)
