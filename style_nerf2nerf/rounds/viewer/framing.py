"""Choose the initial camera of the viewer, which is one of the capture's own cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nerfstudio.cameras.cameras import Cameras

from eschernet_prior.base.cameras import nearest_to_axes


@dataclass(frozen=True)
class Viewpoint:
    """A camera of the viewer, in the training frame."""

    position: np.ndarray
    """(3,)."""
    look_at: np.ndarray
    """(3,), the point around which the viewer's camera orbits."""
    up: np.ndarray
    """(3,), of length 1."""
    fov: float
    """Vertical angle of view in radians."""


def first_viewpoint(cameras: Cameras, aspect: float) -> Viewpoint:
    """Choose the capture's camera with the best view of the common centre; its whole picture fits into the window.

    Args:
        cameras: Cameras of the capture, of shape (views,), at least one.
        aspect: Width / height of the window.
    """
    poses = cameras.camera_to_worlds.double().cpu().numpy()
    places, forward, ups = poses[:, :, 3], -poses[:, :, 2], poses[:, :, 1]
    common = nearest_to_axes(cameras.camera_to_worlds, parallel=1e-3)
    centre = places[0] + forward[0] if common is None else common.cpu().numpy()
    ahead = np.einsum("vi,vi->v", centre - places, forward)
    off = np.linalg.norm(centre - places - ahead[:, None] * forward, axis=1)
    distance = np.median(np.linalg.norm(centre - places, axis=1))
    # The camera at a typical distance, with the centre near the middle of its picture.
    index = int(np.argmin(off / np.maximum(ahead, 1e-6) + np.abs(ahead - distance) / distance + 1e3 * (ahead <= 0)))
    reach = ahead[index] if ahead[index] > 0 else max(distance, 1e-3)
    up = ups.mean(0)
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 0.1 else ups[index]
    half_height = float(cameras.height[index]) / (2 * float(cameras.fy[index]))
    half_width = float(cameras.width[index]) / (2 * float(cameras.fx[index]))
    return Viewpoint(
        position=places[index],
        look_at=places[index] + reach * forward[index],
        up=up,
        fov=float(2 * np.arctan(max(half_height, half_width / aspect))),
    )
