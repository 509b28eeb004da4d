"""Photos of the corner of a room whose walls and floor are papered with noise: quick to draw, and easy to match."""

import io
from functools import cache

import cv2
import numpy as np
import torch
from PIL import Image

from eschernet_prior.base.cameras import focal_length, look_at

FIELD = 60.0
"""Degrees across a photo's width."""


def room_poses(count: int, arc: float = 1.0) -> torch.Tensor:
    """Cameras on an arc around the corner, at two heights, camera to world, of shape (count, 4, 4), float64."""
    azimuth = torch.linspace(0.8 - arc / 2, 0.8 + arc / 2, count, dtype=torch.float64)
    height = torch.where(torch.arange(count) % 2 == 0, 1.0, 1.5).double()
    places = torch.stack([3.0 * azimuth.cos(), 3.0 * azimuth.sin(), height], -1)
    return look_at(places, target=(0.3, 0.3, 0.5))


def draw_room(pose: torch.Tensor, size: int = 256, height: int | None = None) -> np.ndarray:
    """What a camera sees of the planes x = 0, y = 0 and z = 0: (height, size, 3), uint8."""
    height = height or size
    focal = focal_length(FIELD, size)
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(columns - size / 2) / focal, (height / 2 - rows) / focal, -np.ones_like(rows)], -1)
    rays = rays @ pose[:3, :3].numpy().T
    place = pose[:3, 3].numpy()
    nearest = np.full((height, size), np.inf)
    picture = np.zeros((height, size, 3), np.uint8)
    for axis in range(3):
        with np.errstate(divide="ignore"):
            distance = -place[axis] / rays[..., axis]
        points = place + np.where(np.isfinite(distance), distance, 0.0)[..., None] * rays
        across = np.delete(points, axis, -1).astype(np.float32) * 120 + 256
        paper = cv2.remap(_paper(axis), across[..., 0], across[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        front = (distance > 0) & (distance < nearest)
        nearest[front], picture[front] = distance[front], paper[front]
    return picture


@cache
def _paper(seed: int) -> np.ndarray:
    """Blots of many sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.random((n, n, 3)), (1024, 1024), interpolation=cv2.INTER_CUBIC) for n in (32, 96, 256)]
    mean = sum(layers) / len(layers)
    return (((mean - 0.5) * 2.2 + 0.5).clip(0, 1) * 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, exif: Image.Exif | None = None) -> bytes:
    """A JPEG file of these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **({} if exif is None else {"exif": exif}))
    return file.getvalue()
