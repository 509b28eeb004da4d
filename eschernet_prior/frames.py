"""The prior's frame and field of view: what a capture's cameras and photos become before EscherNet sees them.

Vocabulary (camera conventions as in `eschernet_prior.base.cameras`)
    prior frame  a world moved and scaled: its object centred, its cameras as far away as those that the prior was
                 trained on; see `PriorFrame`
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.cameras import to_4x4
from eschernet_prior.cape import RADIUS_RANGE

PRIOR_FOV_DEGREES = math.degrees(2.0 * math.atan(128.0 / 280.0))
"""Field of view of the renders that the prior was trained on: 280 pixels of focal length at 256×256, 49.13 degrees."""


def object_centre(camera_to_worlds: Float[Tensor, "views rows 4"]) -> Float[Tensor, "3"]:
    """The point closest, in the least squares sense, to where all cameras look.

    With unit viewing directions `d` and positions `o` it solves `sum (I - d d^T) (x - o) = 0`.

    Args:
        camera_to_worlds: c2w of two cameras or more that do not all look the same way.

    Raises:
        ValueError: they do, within about a degree: no point is closest.
    """
    c2w = camera_to_worlds.double()
    direction, origin = -c2w[:, :3, 2:3], c2w[:, :3, 3:]
    across = torch.eye(3, dtype=c2w.dtype, device=c2w.device) - direction @ direction.mT
    if torch.linalg.eigvalsh(across.mean(0))[0] < 1e-4:
        raise ValueError("Cameras that all look the same way do not tell where the object is: give its centre.")
    return torch.linalg.solve(across.sum(0), (across @ origin).sum(0))[:, 0]


@dataclass(frozen=True)
class PriorFrame:
    """The way from a world to the prior's frame and back: `prior = (world - centre) * scale`; the axes stay."""

    centre: Float[Tensor, "3"]
    """The object's centre in the world."""
    scale: float
    """Prior units per world unit."""

    @classmethod
    def around(
        cls, camera_to_worlds: Float[Tensor, "views rows 4"], centre: Float[Tensor, "3"] | None = None
    ) -> "PriorFrame":
        """The frame that puts the given cameras at the distances of the prior's training.

        The geometric middle of the nearest and the farthest distance goes to that of `RADIUS_RANGE`, so all cameras lie
        in the range whenever their distances differ by no more than its ratio, 1.47; else both ends stick out alike.

        Args:
            camera_to_worlds: c2w of the reference views.
            centre: the object's centre; by default where the cameras look, see `object_centre`.
        """
        c2w = camera_to_worlds.double()
        centre = object_centre(c2w) if centre is None else centre.double()
        distances = (c2w[:, :3, 3] - centre).norm(dim=-1)
        if float(distances.min()) < 1e-9:
            raise ValueError("A camera stands in the middle of the object.")
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
    """A rectangle of an image, in pixels from its upper left corner; parts of it may lie outside."""

    left: float
    top: float
    width: float
    height: float


def fov_window(fx: float, fy: float, cx: float, cy: float, fov_degrees: float = PRIOR_FOV_DEGREES) -> FovWindow:
    """The part of an image that a square camera of the given field of view sees from the same place.

    Cut out and resized to n×n pixels, it is the image of a camera with focal length `n / (2 tan(fov / 2))` and its
    principal point in the middle.

    Args:
        fx: focal length of the image, pixels, horizontally.
        fy: likewise, vertically.
        cx: principal point, pixels from the left.
        cy: likewise, from the top.
        fov_degrees: the wanted field of view, across width and height.
    """
    half = math.tan(math.radians(fov_degrees) / 2.0)
    return FovWindow(cx - fx * half, cy - fy * half, 2.0 * fx * half, 2.0 * fy * half)


def cut_window(
    image: Float[Tensor, "channels height width"], window: FovWindow, size: int, fill: float = 1.0
) -> Float[Tensor, "channels size size"]:
    """Resize a window of an image to size×size pixels, with a constant where it sticks out.

    Bilinear, with the filter as wide as the output's pixels where that is coarser (antialiased); window borders may
    fall between pixels.

    Args:
        image: any channels.
        window: which part, see `fov_window`.
        size: of the result.
        fill: what lies outside the image; white by default.
    """
    height, width = image.shape[-2:]
    rows = _resampling(window.top, window.height, size, height).to(image)
    columns = _resampling(window.left, window.width, size, width).to(image)
    covered = rows.sum(1)[:, None] * columns.sum(1)
    return rows @ image @ columns.mT + fill * (1.0 - covered)


def _resampling(start: float, length: float, size: int, pixels: int) -> Float[Tensor, "size pixels"]:
    """Weights of source pixels in each output pixel; a row's sum is the share of its filter inside the image."""
    step = length / size
    reach = max(step, 1.0)
    centres = start + step * (torch.arange(size, dtype=torch.float64) + 0.5)
    taps = torch.arange(-math.ceil(reach), pixels + math.ceil(reach), dtype=torch.float64) + 0.5
    weights = (1.0 - (taps - centres[:, None]).abs() / reach).clamp(min=0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return weights[:, (taps > 0) & (taps < pixels)]
