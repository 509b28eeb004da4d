"""Reproject pixels between views of pinhole cameras by z-depth and poses, with visibility.

Conventions as in `eschernet_prior.base.cameras`: OpenGL axes, pixel centres at half numbers, x right and y down. Lens
distortion is OpenCV's with nerfstudio's order of numbers (k1, k2, k3, k4, p1, p2); with normalised coordinates x, y and
r = x² + y²: `x' = x (1 + k1 r + k2 r² + k3 r³ + k4 r⁴) + 2 p1 x y + p2 (r + 2 x²)`, and y' analogously.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from eschernet_prior.base.cameras import focal_length, world_to_camera
from eschernet_prior.base.errors import UserError

TOLERANCE = 0.02
"""Relative difference of depth up to which two views see the same surface."""
EDGE = 0.1
"""Relative difference of depth up to which neighbouring pixels belong to one surface."""


@dataclass(frozen=True)
class ViewCameras:
    """The pinhole cameras of some views of one size."""

    camera_to_worlds: Float[Tensor, "views rows 4"]
    """3×4 or 4×4, OpenGL axes."""
    focal: Float[Tensor, "views 2"]
    """Focal lengths in pixels along x and y."""
    centre: Float[Tensor, "views 2"]
    """Principal point in pixels from the upper left corner, x and y."""
    height: int
    """Height of the pictures in pixels."""
    width: int
    distortion: Float[Tensor, "views 6"] | None = None
    """k1, k2, k3, k4, p1, p2, if the lens has any."""

    def __len__(self) -> int:
        return len(self.camera_to_worlds)

    @classmethod
    def from_fov(
        cls, camera_to_worlds: Float[Tensor, "views rows 4"], fov_degrees: float, height: int, width: int
    ) -> ViewCameras:
        """Cameras with square pixels, the principal point in the middle and a field of view across the width."""
        views = len(camera_to_worlds)
        focal = torch.full((views, 2), focal_length(fov_degrees, width))
        centre = torch.tensor([width / 2, height / 2]).expand(views, 2)
        return cls(camera_to_worlds, focal, centre, height, width)

    @classmethod
    def from_nerfstudio(cls, cameras: Any) -> ViewCameras:
        """The cameras of nerfstudio's `Cameras`.

        Raises:
            UserError: If a camera is not perspective, or sizes differ.
        """
        from nerfstudio.cameras.cameras import CameraType

        if bool((cameras.camera_type != CameraType.PERSPECTIVE.value).any()):
            raise UserError("Views can only be compared between perspective cameras: convert the others first.")
        if len(cameras.height.unique()) > 1 or len(cameras.width.unique()) > 1:
            raise UserError("Views can only be compared at one size: bring all pictures of the capture to one size.")
        return cls(
            cameras.camera_to_worlds.detach().cpu(),
            torch.cat([cameras.fx, cameras.fy], -1).cpu(),
            torch.cat([cameras.cx, cameras.cy], -1).cpu(),
            int(cameras.height.flatten()[0]),
            int(cameras.width.flatten()[0]),
            None if cameras.distortion_params is None else cameras.distortion_params.cpu(),
        )

    def resized(self, height: int, width: int) -> ViewCameras:
        """The same cameras with pictures of another size."""
        scale = torch.tensor([width / self.width, height / self.height])
        return replace(self, focal=self.focal * scale, centre=self.centre * scale, height=height, width=width)

    def unproject(self, view: int, depth: Float[Tensor, "height width"]) -> Float[Tensor, "height width 3"]:
        """World points of a view's pixels at the given z-depth."""
        x, y = torch.arange(self.width) + 0.5, torch.arange(self.height) + 0.5
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        flat = (pixels - self.centre[view]) / self.focal[view]
        if self.distortion is not None:
            flat = _undistorted(flat, self.distortion[view])
        rays = torch.stack([flat[..., 0], -flat[..., 1], -torch.ones_like(flat[..., 0])], -1)
        pose = self.camera_to_worlds[view].float()
        return (rays * depth[..., None]) @ pose[:3, :3].mT + pose[:3, 3]

    def project(
        self, view: int, points: Float[Tensor, "*points 3"]
    ) -> tuple[Float[Tensor, "*points 2"], Float[Tensor, "*points"]]:
        """Project points to pixel coordinates (x, y) and z-depth, which is not positive behind the camera."""
        pose = world_to_camera(self.camera_to_worlds[view]).float()
        x, y, z = (points @ pose[:3, :3].mT + pose[:3, 3]).unbind(-1)
        flat = torch.stack([x, -y], -1) / (-z).clamp(min=1e-6)[..., None]
        if self.distortion is not None:
            flat = _distorted(flat, self.distortion[view])
        return flat * self.focal[view] + self.centre[view], -z


def _distorted(flat: Float[Tensor, "*points 2"], lens: Float[Tensor, " 6"]) -> Float[Tensor, "*points 2"]:
    k1, k2, k3, k4, p1, p2 = lens
    square = flat.square().sum(-1, keepdim=True)
    radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
    across = 2 * flat.prod(-1, keepdim=True)
    tangential = across * torch.stack([p1, p2]) + (square + 2 * flat.square()) * torch.stack([p2, p1])
    return flat * radial + tangential


def _undistorted(
    flat: Float[Tensor, "*points 2"], lens: Float[Tensor, " 6"], iterations: int = 20
) -> Float[Tensor, "*points 2"]:
    """The fixed point of `u = flat - (distorted(u) - u)`, which the weak distortion of photographs contracts to."""
    guess = flat
    for _ in range(iterations):
        guess = flat - (_distorted(guess, lens) - guess)
    return guess


class Match(NamedTuple):
    """Positions of one view's pixels in another view."""

    pixels: Float[Tensor, "height width 2"]
    """Pixel coordinates (x, y) in the other view."""
    visible: Bool[Tensor, "height width"]
    """Whether the other view shows the same surface there."""


def match(cameras: ViewCameras, depths: Float[Tensor, "views 1 height width"], view: int, other: int) -> Match:
    """Find the pixels of a view in another view.

    A pixel is visible in the other view if its four neighbours there belong to one surface whose depth agrees with that
    of the pixel's point.

    Args:
        cameras: The views' cameras, at the size of the depths.
        depths: z-depth in the poses' units, 0 without a surface.
        view: Index of the view.
        other: Index of the other view.
    """
    depth = depths[view, 0]
    pixels, distance = cameras.project(other, cameras.unproject(view, depth))
    low = (pixels - 0.5).floor().long()
    inside = (low >= 0).all(-1) & (low[..., 0] + 1 < cameras.width) & (low[..., 1] + 1 < cameras.height)
    x, y = low[..., 0].clamp(0, cameras.width - 2), low[..., 1].clamp(0, cameras.height - 2)
    around = torch.stack([depths[other, 0][y + down, x + right] for down in (0, 1) for right in (0, 1)])
    nearest, farthest = around.amin(0), around.amax(0)
    surface = (nearest > 0) & (farthest - nearest <= EDGE * distance)
    near = (distance >= nearest - TOLERANCE * distance) & (distance <= farthest + TOLERANCE * distance)
    return Match(pixels, (depth > 0) & (distance > 0) & inside & surface & near)


def sample(
    picture: Float[Tensor, "channels height width"],
    pixels: Float[Tensor, "tall wide 2"],
    mode: str = "bilinear",
) -> Float[Tensor, "channels tall wide"]:
    """Sample a picture at pixel coordinates (x, y); outside, the border values are used."""
    size = torch.tensor([picture.shape[-1], picture.shape[-2]])
    grid = (2 * pixels / size - 1)[None]
    return F.grid_sample(picture[None], grid, mode, padding_mode="border", align_corners=False)[0]
