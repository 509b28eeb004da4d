"""Write rendered or generated views as a nerfstudio dataset (transforms.json, images/, depth/), and read depth back.

Frames: a nerfstudio dataparser rotates, centres and scales the poses of a capture. Views are written with the inverse
transform, in the frame of the capture's own transforms.json, so that they can be combined with its photos.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from torch import Tensor

from eschernet_prior.base.captures.transforms_file import CROP_RADIUS, DISTORTION
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, write_json
from eschernet_prior.base.images import write_image

DEPTH_UNIT = 1e-3
"""Unit of depth files, thousandths of the capture's unit of length: nerfstudio's default."""
OBJECT_FRAME = "object_frame"
"""Key of a dataparser's metadata: True if the object's centre is the origin and its longest side about 1."""
CAMERA_MODELS = {
    CameraType.PERSPECTIVE.value: "OPENCV",
    CameraType.FISHEYE.value: "OPENCV_FISHEYE",
    CameraType.FISHEYE624.value: "FISHEYE624",
}
"""Names in transforms.json of the lenses that can be written, by nerfstudio's camera type."""
ASSUMED_TRANSFORM = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
"""The `applied_transform` that nerfstudio assumes if a file has none and a folder `colmap/sparse/0` is next to it."""


def noted_in(dataparser: DataParserConfig, data: Path) -> Path | None:
    """Where a dataparser reads earlier transforms of the poses; None for dataparsers that ignore `applied_transform`.

    Args:
        dataparser: The dataparser's configuration.
        data: The capture's folder or transforms.json.
    """
    return data if isinstance(dataparser, (NerfstudioDataParserConfig, ColmapDataParserConfig)) else None


class CaptureFrame:
    """Transform from nerfstudio's training frame back to the frame of the capture's transforms.json.

    From the pose `P` of a camera in that file, nerfstudio's dataparser computes `P' = T P`, scales its position by `s`,
    and returns `T A` and `s a`, where `A` and `a` are the file's `applied_transform` and `applied_scale`.
    """

    def __init__(self, outputs: DataparserOutputs, data: Path | None) -> None:
        """Collect the transforms of the dataparser and of ns-process-data.

        Args:
            outputs: The dataparser's outputs of the capture.
            data: The capture's folder or transforms.json (see `noted_in`); with None, or without such a file, no
                transform was applied before.
        """
        path = None if data is None or data.suffix == ".json" else data / "transforms.json"
        path = data if path is None else path
        meta = json.loads(path.read_text("utf8")) if path is not None and path.is_file() else {}
        self.applied_transform: list | None = meta.get("applied_transform")
        if self.applied_transform is None and meta and data is not None and (data / "colmap/sparse/0").exists():
            self.applied_transform = ASSUMED_TRANSFORM
        self.applied_scale = float(meta.get("applied_scale", 1.0))
        self.scale = outputs.dataparser_scale / self.applied_scale
        """Training units per capture unit."""
        applied = np.eye(4)[:3] if self.applied_transform is None else np.asarray(self.applied_transform, np.float64)
        self._to_training = _square(outputs.dataparser_transform.double().numpy()) @ np.linalg.inv(_square(applied))

    def poses(self, cameras: Cameras) -> Float[np.ndarray, "views 4 4"]:
        """Camera-to-world matrices, OpenGL axes, in the frame and the units of the capture's transforms.json."""
        training = cameras.camera_to_worlds.detach().cpu().double().numpy()
        poses = np.stack([_square(pose) for pose in training])
        poses[:, :3, 3] /= self.scale
        return np.linalg.inv(self._to_training) @ poses


def _square(rows: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "4 4"]:
    return np.concatenate([rows[:3], [[0.0, 0.0, 0.0, 1.0]]])


def camera_model(cameras: Cameras) -> str:
    """The name of the cameras' lens in transforms.json.

    Raises:
        UserError: If the cameras have several types of lens, or one that is neither perspective nor fisheye.
    """
    kinds = set(cameras.camera_type.flatten().tolist())
    if len(kinds) > 1 or not kinds <= CAMERA_MODELS.keys():
        raise UserError(
            "A nerfstudio dataset can be written only for cameras that are all perspective or all fisheye: convert "
            "360° images with ns-process-data first."
        )
    return CAMERA_MODELS[kinds.pop()]


def camera_intrinsics(camera: Cameras) -> dict[str, Any]:
    """A camera's size, focal lengths, principal point and distortion under the names of transforms.json."""
    intrinsics: dict[str, Any] = {
        "w": int(camera.width.flatten()[0]),
        "h": int(camera.height.flatten()[0]),
        "fl_x": float(camera.fx.flatten()[0]),
        "fl_y": float(camera.fy.flatten()[0]),
        "cx": float(camera.cx.flatten()[0]),
        "cy": float(camera.cy.flatten()[0]),
    }
    if camera.distortion_params is None:
        return intrinsics
    numbers = camera.distortion_params.flatten().tolist()
    if len(numbers) == len(DISTORTION):
        return intrinsics | dict(zip(DISTORTION, numbers))
    return intrinsics | {"distortion_params": numbers}


def write_dataset(
    folder: Path,
    cameras: Cameras,
    frame: CaptureFrame,
    names: Sequence[str],
    images: Sequence[Float[Tensor, "3 height width"]],
    depths: Sequence[Float[Tensor, "1 height width"]] | None = None,
) -> None:
    """Write views as a nerfstudio dataset.

    Args:
        folder: For transforms.json, images/ and depth/; a temporary one (see `eschernet_prior.base.files.atomic_path`).
        cameras: The views' cameras in the training frame, of shape (views,).
        frame: Transform to the capture's frame.
        names: One file name without suffix per view.
        images: RGB in [0, 1].
        depths: Depth along the optical axis in training units, 0 where there is no surface; written as float32 arrays
            in thousandths of the capture's unit.

    Raises:
        UserError: If the cameras have several types of lens, or are neither perspective nor fisheye.
    """
    poses = frame.poses(cameras)
    frames = []
    for index, name in enumerate(names):
        entry = {"file_path": f"images/{name}.png", **camera_intrinsics(cameras[index : index + 1])}
        write_image(folder / entry["file_path"], images[index])
        if depths is not None:
            entry["depth_file_path"] = f"depth/{name}.npy"
            with atomic_path(folder / entry["depth_file_path"]) as partial:
                np.save(partial, (depths[index][0] / (frame.scale * DEPTH_UNIT)).numpy().astype(np.float32))
        frames.append({**entry, "transform_matrix": poses[index].tolist()})
    # nerfstudio reads the camera model only at the top, and prefers other values at the top to those of a frame.
    meta: dict[str, Any] = {"camera_model": camera_model(cameras)}
    if frame.applied_transform is not None:
        meta["applied_transform"] = frame.applied_transform
    if frame.applied_scale != 1.0:
        meta["applied_scale"] = frame.applied_scale
    metadata = cameras.metadata or {}
    if CROP_RADIUS in metadata:
        meta[CROP_RADIUS] = float(metadata[CROP_RADIUS])
    meta["frames"] = frames
    write_json(folder / "transforms.json", meta)


def read_depth(path: Path, frame: CaptureFrame) -> Float[Tensor, "1 height width"]:
    """Read a depth file of `write_dataset`: depth along the optical axis in training units, 0 without a surface."""
    return torch.from_numpy(np.load(path) * (frame.scale * DEPTH_UNIT))[None].float()
