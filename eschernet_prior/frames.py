"""The prior's frame and field of view, and the transform of a capture's cameras and photos to them.

Vocabulary (camera conventions as in `eschernet_prior.base.cameras`)
    prior frame  the world translated and scaled so that the object is centred and the cameras are at the distances of
                 the prior's training; see `PriorFrame`
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.cameras import nearest_to_axes, to_4x4
from eschernet_prior.cape import RADIUS_RANGE

PRIOR_FOV_DEGREES = math.degrees(2.0 * math.atan(128.0 / 280.0))
"""Field of view of the prior's training renders: 280 pixels of focal length at 256×256, 49.13 degrees."""


def object_centre(camera_to_worlds: Float[Tensor, "views rows 4"]) -> Float[Tensor, "3"]:
    """The point closest to all optical axes (`nearest_to_axes`).

    Args:
        camera_to_worlds: c2w of at least two cameras with different viewing directions.

    Raises:
        ValueError: If all viewing directions agree within about a degree.
    """
    centre = nearest_to_axes(camera_to_worlds)
    if centre is None:
        raise ValueError(
            "All cameras look in the same direction, so the object's centre is undefined: pass its centre."
        )
    return centre


@dataclass(frozen=True)
class PriorFrame:
    """Transform between a world and the prior's frame: `prior = (world - centre) * scale`, with the same axes."""

    centre: Float[Tensor, "3"]
    """The object's centre in the world."""
    scale: float
    """Prior units per world unit."""

    @classmethod
    def around(
        cls, camera_to_worlds: Float[Tensor, "views rows 4"], centre: Float[Tensor, "3"] | None = None
    ) -> "PriorFrame":
        """The frame that puts cameras at the distances of the prior's training.

        The geometric mean of the nearest and the farthest distance is mapped to that of `RADIUS_RANGE`. All cameras are
        in the range if their distances differ by at most its ratio, 1.47; otherwise both ends exceed it equally.

        Args:
            camera_to_worlds: c2w of the reference views.
            centre: The object's centre; default: `object_centre`.
        """
        c2w = camera_to_worlds.double()
        centre = object_centre(c2w) if centre is None else centre.double()
        distances = (c2w[:, :3, 3] - centre).norm(dim=-1)
        if float(distances.min()) < 1e-9:
            raise ValueError("A camera is in the middle of the object.")
        return cls(centre, math.sqrt(RADIUS_RANGE[0] * RADIUS_RANGE[1] / float(distances.min() * distances.max())))

    def to_prior(self, camera_to_worlds: Float[Tensor, "views rows 4"]) -> Float[Tensor, "views 4 4"]:
        """c2w in the prior's frame of c2w in the world, float64."""
        c2w = camera_to_worlds.double()
        position = (c2w[..., :3, 3:] - self.centre[:, None]) * self.scale
        return to_4x4(torch.cat((c2w[..., :3, :3], position), dim=-1))

    def to_world(self, camera_to_worlds: Float[Tensor, "views rows 4"]) -> Float[Tensor, "views 4 4"]:
        """c2w in the world of c2w in the prior's frame, float64."""
        c2w = camera_to_worlds.double()
        position = c2w[..., :3, 3:] / self.scale + self.centre[:, None]
        return to_4x4(torch.cat((c2w[..., :3, :3], position), dim=-1))


class FovWindow(NamedTuple):
    """A rectangle of an image, in pixels from the upper left corner; it may extend beyond the image."""

    left: float
    top: float
    width: float
    height: float


def fov_window(fx: float, fy: float, cx: float, cy: float, fov_degrees: float = PRIOR_FOV_DEGREES) -> FovWindow:
    """The part of an image that a square camera with the given field of view sees from the same position.

    Cropped and resized to n×n pixels, it is the image of a camera with focal length `n / (2 tan(fov / 2))` and its
    principal point in the middle.

    Args:
        fx: Horizontal focal length in pixels.
        fy: Vertical focal length in pixels.
        cx: Principal point, pixels from the left.
        cy: Principal point, pixels from the top.
        fov_degrees: Field of view across width and height.
    """
    half = math.tan(math.radians(fov_degrees) / 2.0)
    return FovWindow(cx - fx * half, cy - fy * half, 2.0 * fx * half, 2.0 * fy * half)


def cut_window(
    image: Float[Tensor, "channels height width"], window: FovWindow, size: int, fill: float = 1.0
) -> Float[Tensor, "channels size size"]:
    """Resize a window of an image to size×size pixels, with a constant outside the image.

    Bilinear and antialiased; the borders of the window may be between pixels.

    Args:
        image: Picture with any number of channels.
        window: The part, see `fov_window`.
        size: Side of the result in pixels.
        fill: Value outside the image; white by default.
    """
    height, width = image.shape[-2:]
    rows = _resampling(window.top, window.height, size, height).to(image)
    columns = _resampling(window.left, window.width, size, width).to(image)
    covered = rows.sum(1)[:, None] * columns.sum(1)
    return rows @ image @ columns.mT + fill * (1.0 - covered)


def _resampling(start: float, length: float, size: int, pixels: int) -> Float[Tensor, "size pixels"]:
    """Weights of source pixels in each output pixel; a row sums to the share of its filter inside the image."""
    step = length / size
    reach = max(step, 1.0)
    centres = start + step * (torch.arange(size, dtype=torch.float64) + 0.5)
    taps = torch.arange(-math.ceil(reach), pixels + math.ceil(reach), dtype=torch.float64) + 0.5
    weights = (1.0 - (taps - centres[:, None]).abs() / reach).clamp(min=0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return weights[:, (taps > 0) & (taps < pixels)]
