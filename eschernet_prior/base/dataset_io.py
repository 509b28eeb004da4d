"""Rendered or generated views written down as a dataset that nerfstudio reads: transforms.json, images/, depth/.

Frames: a nerfstudio dataparser turns, centres and scales the poses of a capture. What is written here is turned back,
so that new views lie in the frame of the capture's own transforms.json and can be mixed with its photos.
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
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, write_json
from eschernet_prior.base.images import write_image

DEPTH_UNIT = 1e-3
"""Depth files hold thousandths of the capture's unit of length, nerfstudio's default."""
OBJECT_FRAME = "object_frame"
"""Key of a dataparser's metadata: True where the object's centre is the origin and its longest side about 1."""
CAMERA_MODELS = {CameraType.PERSPECTIVE.value: "OPENCV", CameraType.FISHEYE.value: "OPENCV_FISHEYE"}
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's order of distortion parameters."""


class CaptureFrame:
    """The way from nerfstudio's training frame back to the frame of the capture's transforms.json."""

    def __init__(self, outputs: DataparserOutputs, data: Path) -> None:
        """Read what the dataparser did, and what ns-process-data had done before it.

        Args:
            outputs: the dataparser's outputs of the capture.
            data: the capture's folder or transforms.json; one without such a file has no earlier transform.
        """
        path = data if data.suffix == ".json" else data / "transforms.json"
        meta = json.loads(path.read_text("utf8")) if path.is_file() else {}
        self.applied_transform: list | None = meta.get("applied_transform")
        self.applied_scale = float(meta.get("applied_scale", 1.0))
        self.scale = outputs.dataparser_scale / self.applied_scale
        """Training units per capture unit."""
        self._outputs = outputs

    def poses(self, cameras: Cameras) -> Float[np.ndarray, "views 4 4"]:
        """Camera-to-world matrices, OpenGL axes, in the frame and the units of the capture's transforms.json."""
        original = self._outputs.transform_poses_to_original_space(
            cameras.camera_to_worlds.detach().cpu(), camera_convention="opengl"
        ).numpy()
        poses = np.tile(np.eye(4), (len(original), 1, 1))
        poses[:, :3] = original
        if self.applied_transform is not None:
            poses[:, :3] = np.asarray(self.applied_transform, dtype=np.float64)[:3, :3] @ poses[:, :3]
            poses[:, :3, 3] += np.asarray(self.applied_transform, dtype=np.float64)[:3, 3]
        poses[:, :3, 3] *= self.applied_scale
        return poses


def camera_intrinsics(camera: Cameras) -> dict[str, Any]:
    """One camera's size, focal lengths, principal point and distortion under transforms.json's names.

    Raises:
        UserError: the camera is neither a perspective nor a fisheye one.
    """
    kind = int(camera.camera_type.flatten()[0])
    if kind not in CAMERA_MODELS:
        raise UserError(
            "Only perspective and fisheye cameras can be restyled: convert 360° images with ns-process-data first."
        )
    intrinsics: dict[str, Any] = {
        "camera_model": CAMERA_MODELS[kind],
        "w": int(camera.width.flatten()[0]),
        "h": int(camera.height.flatten()[0]),
        "fl_x": float(camera.fx.flatten()[0]),
        "fl_y": float(camera.fy.flatten()[0]),
        "cx": float(camera.cx.flatten()[0]),
        "cy": float(camera.cy.flatten()[0]),
    }
    if camera.distortion_params is not None:
        intrinsics |= dict(zip(DISTORTION, camera.distortion_params.flatten().tolist()))
    return intrinsics


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
        folder: where transforms.json, images/ and depth/ go; it must not be the final place of something half done
            (see `eschernet_prior.base.files.atomic_path`).
        cameras: their cameras in the training frame, of shape (views,).
        frame: the way back to the capture's frame.
        names: one file name without suffix per view.
        images: RGB in [0, 1].
        depths: depth along the optical axis in training units, 0 where nothing is; written as float32 arrays in
            thousandths of the capture's unit.
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
    meta: dict[str, Any] = {"frames": frames}
    if frame.applied_transform is not None:
        meta |= {"applied_transform": frame.applied_transform, "applied_scale": frame.applied_scale}
    write_json(folder / "transforms.json", meta)


def read_depth(path: Path, frame: CaptureFrame) -> Float[Tensor, "1 height width"]:
    """Read a depth file of `write_dataset`: along the optical axis, training units, 0 where nothing is."""
    return torch.from_numpy(np.load(path) * (frame.scale * DEPTH_UNIT))[None].float()
