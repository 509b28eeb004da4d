"""Convert photos to references of the prior: the object on white, in the prior's field of view.

The object's outline is taken from the photo's alpha or from the capture's mask (white inside). The prior was trained
without backgrounds and would treat one as part of the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import on_white, read_mask, read_pixels
from eschernet_prior.frames import cut_window, fov_window

Background = Literal["refuse", "keep"]
"""Handling of photos without mask and alpha."""
NO_OUTLINE = (
    ", and the prior supports only objects on white: add masks (mask_path in transforms.json), use photos with alpha, "
    "or, if the background is already white, set --pipeline.datamanager.densify.background keep."
)
"""Second half of the message about photos without mask and alpha."""


@dataclass(frozen=True)
class References:
    """The photos of a capture as the prior's references."""

    images: Float[Tensor, "references 3 size size"]
    """On white, in [0, 1], in the prior's field of view."""
    silhouettes: Float[Tensor, "references 1 size size"] | None
    """1 inside the object; None if a photo has neither mask nor alpha."""
    camera_to_worlds: Float[Tensor, "references 3 4"]
    """In nerfstudio's training frame, float64."""


def read_references(outputs: DataparserOutputs, size: int, background: Background = "refuse") -> References:
    """Read all photos of a split.

    Args:
        outputs: The dataparser's outputs.
        size: Side of a reference in pixels.
        background: Handling of photos without mask and alpha.

    Raises:
        UserError: If a photo cannot be read, has no outline, or does not show the object.
    """
    images, silhouettes, known = [], [], True
    for index in range(len(outputs.image_filenames)):
        colour, inside = read_object(outputs, index, background)
        known = known and inside is not None
        inside = torch.ones_like(colour[:1]) if inside is None else inside
        camera = outputs.cameras[index]
        if camera.distortion_params is not None and bool(camera.distortion_params.any()):
            colour, inside = (_undistorted(picture, camera) for picture in (colour, inside))
        fx, fy, cx, cy = (float(value) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
        window = fov_window(fx, fy, cx, cy)
        images.append(cut_window(colour, window, size).clamp(0, 1))
        silhouettes.append(cut_window(inside, window, size, fill=0.0).clamp(0, 1))
        if not bool((silhouettes[-1] > 0.5).any()):
            raise UserError(
                f"{outputs.image_filenames[index]} does not show the object: its mask or alpha is empty in the middle "
                "of the picture, so remove the photo or correct its mask."
            )
    return References(
        images=torch.stack(images),
        silhouettes=torch.stack(silhouettes) if known else None,
        camera_to_worlds=outputs.cameras.camera_to_worlds.double().cpu(),
    )


def read_object(
    outputs: DataparserOutputs, index: int, background: Background = "keep"
) -> tuple[Float[Tensor, "3 height width"], Float[Tensor, "1 height width"] | None]:
    """A photo's object on white, and its outline, 1 inside; None if the photo has neither mask nor alpha.

    The outline is the product of the photo's alpha and its mask, as far as it has them.

    Raises:
        UserError: If the photo or its mask cannot be read, their sizes differ, or the outline is missing and
            `background` is "refuse".
    """
    path = outputs.image_filenames[index]
    pixels = torch.from_numpy(read_pixels(path).copy()).permute(2, 0, 1).float() / 255
    colour, inside = pixels[:3], pixels[3:] if len(pixels) == 4 else None
    mask_path = outputs.mask_filenames[index] if outputs.mask_filenames else None
    if mask_path is not None:
        mask = read_mask(mask_path)[None].float()
        if mask.shape[1:] != colour.shape[1:]:
            raise UserError(
                f"The mask {mask_path} has {mask.shape[2]} × {mask.shape[1]} pixels and its photo "
                f"{colour.shape[2]} × {colour.shape[1]}: masks must be as large as their photos."
            )
        inside = mask if inside is None else inside * mask
    if inside is not None:
        return on_white(colour, inside), inside
    if background == "refuse":
        raise UserError(f"{path} does not show where the object ends{NO_OUTLINE}")
    return colour, None


def _undistorted(picture: Float[Tensor, "channels height width"], camera: Cameras) -> Tensor:
    """Remove the lens distortion from a picture; border pixels are repeated outside.

    Raises:
        UserError: If the camera is not a perspective one of OpenCV's lens model.
    """
    assert camera.distortion_params is not None
    k1, k2, k3, k4, p1, p2 = camera.distortion_params.flatten().tolist()
    if int(camera.camera_type.flatten()[0]) != CameraType.PERSPECTIVE.value or k4:
        raise UserError("Only perspective photos of OpenCV's lens model can be densified: undistort the others first.")
    # OpenCV's pixel coordinates start at the centre of the first pixel.
    centre = (float(camera.cx) - 0.5, float(camera.cy) - 0.5)
    matrix = np.array([[float(camera.fx), 0, centre[0]], [0, float(camera.fy), centre[1]], [0, 0, 1]])
    size = (picture.shape[2], picture.shape[1])
    across, down = cv2.initUndistortRectifyMap(
        matrix, np.array([k1, k2, p1, p2, k3]), np.eye(3), matrix, size, cv2.CV_32FC1
    )
    planes = [
        cv2.remap(plane.numpy(), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for plane in picture
    ]
    return torch.from_numpy(np.stack(planes))
