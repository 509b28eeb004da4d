"""What can be said about a capture before anything is built: is it there, has it poses, can its pictures be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from eschernet_prior.base.capture_pictures import check_masks, check_pictures
from eschernet_prior.base.errors import UserError

MIN_VIEWS = 2
"""A field needs parallax."""
RIGID_TOLERANCE = 0.02
"""How far the axes of a pose may be from unit length and right angles."""
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")


def check_capture(dataparser: DataParserConfig, data: Path) -> None:
    """Refuse a capture that cannot be trained on, before anything is built.

    Captures of dataparsers other than nerfstudio-data and blender-data are only checked for being there.

    Args:
        dataparser: the configuration that will read it.
        data: the folder, or the transforms.json in it.

    Raises:
        UserError: no such folder, no poses or none that a camera can have, too few views, pictures or masks that are
            missing, damaged or of another size.
    """
    if not data.exists():
        raise UserError(f"There is no {data}: give --data the folder of a capture that ns-process-data made.")
    if isinstance(dataparser, NerfstudioDataParserConfig):
        _check_transforms(data if data.suffix == ".json" else data / "transforms.json", dataparser)
    elif isinstance(dataparser, BlenderDataParserConfig):
        _read_transforms(data / "transforms_train.json")


def _check_transforms(path: Path, dataparser: NerfstudioDataParserConfig) -> None:
    meta = _read_transforms(path)
    frames = meta["frames"]
    if any(not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str) for frame in frames):
        raise UserError(f"A frame in {path} names no file_path: run ns-process-data again.")
    _check_intrinsics(path, meta)
    _check_poses(path, frames)
    missing = sum(not (path.parent / frame["file_path"]).is_file() for frame in frames)
    if missing:
        raise UserError(
            f"{missing} of the {len(frames)} images that {path} names are not there: run ns-process-data again."
        )
    factor = dataparser.downscale_factor
    if factor is not None and factor > 1 and not (path.parent / f"images_{factor}").is_dir():
        there = [p.name for p in sorted(path.parent.glob("images_*")) if p.is_dir()]
        raise UserError(
            f"There is no folder images_{factor} in {path.parent} for --downscale-factor {factor}"
            + (
                f": there is {', '.join(there)}."
                if there
                else ": leave the option out, or run ns-process-data to make it."
            )
        )
    check_pictures(path.parent, meta, factor or 1)
    check_masks(path.parent, meta, factor or 1)


def _check_intrinsics(path: Path, meta: dict[str, Any]) -> None:
    for name in INTRINSICS:
        values = [meta[name]] if name in meta else [frame.get(name) for frame in meta["frames"]]
        if not all(isinstance(value, (int, float)) and np.isfinite(value) and value > 0 for value in values):
            raise UserError(
                f"The cameras in {path} have no {name} above 0: run ns-process-data again, or add the intrinsics "
                "(fl_x, fl_y, cx, cy, w, h, in pixels) to all frames."
            )


def _check_poses(path: Path, frames: Sequence[dict[str, Any]]) -> None:
    places = []
    for frame in frames:
        try:
            pose = np.asarray(frame.get("transform_matrix"), np.float64)
        except (TypeError, ValueError):
            pose = np.empty(0)
        name = frame["file_path"]
        if pose.shape != (4, 4):
            raise UserError(f"The pose of {name} in {path} is no 4×4 matrix: run ns-process-data again.")
        if not np.isfinite(pose).all():
            raise UserError(f"The pose of {name} in {path} has numbers that are none: take the frame out.")
        axes = pose[:3, :3]
        if np.abs(axes.T @ axes - np.eye(3)).max() > RIGID_TOLERANCE or np.linalg.det(axes) < 0:
            raise UserError(
                f"The pose of {name} in {path} is not rigid (it stretches, skews or mirrors): transform_matrix must be "
                "a rotation and a translation, camera to world."
            )
        places.append(pose[:3, 3])
    if np.ptp(np.asarray(places), axis=0).max() == 0:
        raise UserError(
            f"All cameras in {path} stand at one place: a field needs photos from several places, so walk around it."
        )


def _read_transforms(path: Path) -> dict[str, Any]:
    """A transforms file with a list of at least two frames."""
    if not path.is_file():
        raise UserError(
            f"There are no poses: {path} is missing. Make it with "
            f"ns-process-data images --data PHOTOS --output-dir {path.parent}."
        )
    try:
        meta = json.loads(path.read_text("utf8"))
    except ValueError:
        raise UserError(f"{path} is not a JSON file of nerfstudio's layout: run ns-process-data again.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("frames", []), list):
        raise UserError(f"{path} is not a JSON file of nerfstudio's layout: run ns-process-data again.")
    frames = meta.setdefault("frames", [])
    if len(frames) < MIN_VIEWS:
        raise UserError(
            f"{path} has {len(frames)} views: a field needs at least {MIN_VIEWS}, and about 30 for a whole scene."
        )
    return meta
