"""Read scenes in NeRF's synthetic layout in the prior's frame and field of view.

`transforms_train.json` and `transforms_test.json` hold `camera_angle_x` (radians across the width) and frames
with a camera-to-world matrix (OpenGL axes) and an image without its `.png`. References are taken from the first,
targets from the second. Poses are transformed to the prior's frame (`frames.PriorFrame`) of the training cameras;
images are cropped or padded with white to the prior's field of view.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.cameras import focal_length, world_to_camera
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import read_image
from eschernet_prior.base.sampling import evenly_spaced
from eschernet_prior.frames import PriorFrame, cut_window, fov_window

TRAIN, TEST = "transforms_train.json", "transforms_test.json"


def is_nerf_synthetic(folder: Path) -> bool:
    """Whether a folder is a scene in this layout."""
    return (folder / TRAIN).is_file()


def read_nerf_synthetic(
    folder: Path, size: int, references: int, targets: int
) -> tuple[Float[Tensor, "views 3 size size"], Float[Tensor, "views 4 4"]]:
    """Read evenly spaced training frames as references, then evenly spaced test frames as targets.

    Args:
        folder: The scene.
        size: Side of the views in pixels.
        references: Number of training frames.
        targets: Largest number of test frames.

    Returns:
        Images in [0, 1] on white and world-to-camera poses in the prior's frame.

    Raises:
        UserError: If a file is missing or there are too few frames.
    """
    train, test = _read_frames(folder, TRAIN), _read_frames(folder, TEST)
    if len(train["frames"]) < references or not test["frames"]:
        raise UserError(f"{folder} has {len(train['frames'])} training frames, fewer than {references} references.")
    frame = PriorFrame.around(_poses(train["frames"]))
    chosen = [(train, train["frames"][index]) for index in evenly_spaced(references, len(train["frames"]), closed=True)]
    chosen += [(test, test["frames"][index]) for index in evenly_spaced(targets, len(test["frames"]), closed=True)]
    images = torch.stack([_image(folder, split, each, size) for split, each in chosen])
    return images, world_to_camera(frame.to_prior(_poses([each for _, each in chosen])))


def _read_frames(folder: Path, name: str) -> dict:
    file = folder / name
    if not file.is_file():
        raise UserError(f"{file} is missing: a NeRF-synthetic scene needs it in addition to {TRAIN}.")
    return json.loads(file.read_text("utf8"))


def _poses(frames: list[dict]) -> Float[Tensor, "frames 4 4"]:
    return torch.tensor([each["transform_matrix"] for each in frames], dtype=torch.float64)


def _image(folder: Path, split: dict, each: dict, size: int) -> Float[Tensor, "3 size size"]:
    on_white = read_image(folder / f"{each['file_path']}.png")
    height, width = on_white.shape[-2:]
    focal = focal_length(math.degrees(split["camera_angle_x"]), width)
    return cut_window(on_white, fov_window(focal, focal, width / 2, height / 2), size).clamp(0, 1)
