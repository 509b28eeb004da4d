"""Two views of level ground, for tests of positions and patterns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base import cameras
from style_nerf2nerf.reprojection import ViewCameras

SIZE, FOV = 96, 50.0
"""Pixels a side, and the field of view in degrees."""
POSES = cameras.orbit(10, 2.0, 35.0)[:2]
LENSES = ViewCameras.from_fov(POSES, FOV, SIZE, SIZE)


def ground(poses: Float[Tensor, "views 4 4"], height: float = -0.3) -> Float[Tensor, "views 1 side side"]:
    """z-depth of a level plane, 0 above the horizon."""
    rays = cameras.rays(poses, FOV, SIZE, SIZE)
    distance = (height - rays.origins[..., 2:]) / rays.directions[..., 2:]
    seen = (distance > 0) & (distance < 6)
    return torch.where(seen, distance * rays.z_factors, 0.0).movedim(-1, 1).float()
