"""Check a file of camera poses, in most cases nerfstudio's `transforms.json`, before nerfstudio reads it.

nerfstudio makes assumptions without checking them: it reads one camera model for all frames, ignores values of a frame
if the top of the file has the same key, and does not validate poses. Files that it would read wrongly, or fail on with
a stack trace, are refused here with one sentence.
"""

from __future__ import annotations

import codecs
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import check_picture

MIN_VIEWS = 2
"""Fewest training views: a field needs parallax."""
RIGID_TOLERANCE = 0.02
"""Largest deviation of a pose's axes from unit length and right angles."""
POSITION_TOLERANCE = 1e-3
"""Largest error of a position by rounding to 32 bits, as a share of the cameras' extent."""
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's order of distortion parameters."""
DISTORTION_AT_TOP = ("k1", "k2", "k3", "p1", "p2", "distortion_params")
"""Keys that, at the top of the file, make nerfstudio ignore the distortion of every frame."""
NUM_DISTORTION = {CameraType.FISHEYE624: 12}
"""Number of values in `distortion_params`; 6 for lenses not listed."""
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (codecs.BOM_UTF8, "UTF-8 with a byte order mark"),
)
CROP_RADIUS = "fisheye_crop_radius"
"""Key of a fisheye camera's metadata and of transforms.json: pixels from the middle to the rim of the picture."""
ORIENTATIONS = ("pca", "up", "vertical", "none")


def check_transforms(path: Path, dataparser: NerfstudioDataParserConfig) -> dict[str, Any]:
    """Read a `transforms.json`; refuse content that `nerfstudio-data` would read wrongly.

    Args:
        path: The file.
        dataparser: The options with which it will be read.

    Returns:
        The content of the file.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    refuse_points(dataparser)
    meta = read_poses(path, _advice(path))
    frames = meta["frames"]
    check_names(path, frames, "file_path")
    for name in ("mask_path", "depth_file_path"):
        given = [frame for frame in frames if name in frame]
        if given and len(given) < len(frames):
            lacking = next(frame["file_path"] for frame in frames if name not in frame)
            raise UserError(
                f"{len(given)} of the {len(frames)} frames in {path} have a {name}, and {lacking} has none: add it to "
                "all frames, or remove it from all."
            )
        check_names(path, given, name)
    _check_lens(path, meta)
    _check_intrinsics(path, meta)
    check_poses(path, frames)
    _check_frame(path, meta)
    _check_split(path, meta, dataparser)
    _check_smaller(path, frames[0]["file_path"], dataparser.downscale_factor)
    return meta


def read_poses(path: Path, advice: str, least: int = MIN_VIEWS) -> dict[str, Any]:
    """Read a file with a list of frames.

    Args:
        path: The file.
        advice: What to do if there is no such file, for the message.
        least: Smallest number of frames.

    Raises:
        UserError: If the file is missing, has another encoding or layout than nerfstudio reads, or too few frames.
    """
    if not path.is_file():
        raise UserError(f"There are no poses: {path} is missing; {advice}.")
    content = path.read_bytes()
    for mark, name in ENCODINGS:
        if content.startswith(mark):
            raise UserError(f"{path} is encoded as {name}, which nerfstudio does not read: save it as plain UTF-8.")
    try:
        meta = json.loads(content.decode("utf8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not encoded as UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not a JSON file in nerfstudio's layout ({error}): run ns-process-data again."
        ) from None
    if not isinstance(meta, dict) or not isinstance(meta.get("frames", []), list):
        raise UserError(f"{path} is not a JSON file in nerfstudio's layout: run ns-process-data again.")
    frames = meta.setdefault("frames", [])
    if len(frames) < least:
        raise UserError(
            f"{path} has {len(frames)} views: a field needs at least {least}, and about 30 for a whole scene."
        )
    return meta


def _advice(path: Path) -> str:
    """Advice for a missing `transforms.json`."""
    folder = path.parent
    if (folder / "transforms_train.json").is_file():
        return "the folder contains transforms_train.json, so end the command with blender-data"
    if any((folder / model).is_dir() for model in ("colmap/sparse/0", "sparse/0", "sparse")):
        return "the folder contains a COLMAP model, so end the command with colmap"
    return "for a folder of photos, or a video, end the command with photos-data, which finds the poses"


def refuse_points(dataparser: NerfstudioDataParserConfig) -> None:
    """Refuse the option that loads a point cloud: no method uses one, and nerfstudio may ask to change the capture.

    Raises:
        UserError: If the option is on.
    """
    if dataparser.load_3D_points:
        raise UserError("No method of this project uses the points of a capture: omit --load-3D-points True.")


def check_names(path: Path, frames: Sequence[Any], key: str) -> None:
    """Refuse frames without a file name, with the same file, or with a path that this system cannot read.

    Args:
        path: The file of the frames.
        frames: Frames that must name a file.
        key: Key of the file name.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    if any(not isinstance(frame, dict) or not isinstance(frame.get(key), str) or not frame[key] for frame in frames):
        remedy = "run ns-process-data again" if key == "file_path" else f"set it to one path, or remove {key} from all"
        raise UserError(f"A frame in {path} has no {key}: {remedy}.")
    for frame in frames:
        name = frame[key]
        if re.match(r"[A-Za-z]:[\\/]", name):
            raise UserError(
                f"{path} contains {name}, a path of a Windows disk: replace such paths by ones relative to "
                f"{path.parent}."
            )
        if "\\" in name and not (path.parent / name).is_file():
            raise UserError(f"{path} contains {name}, a path with backslashes: replace them by / in all paths.")
    if key == "file_path":
        files = Counter(os.path.normpath(path.parent / frame[key]) for frame in frames)
        (name, count), *_ = files.most_common(1)
        if count > 1:
            photo = os.path.relpath(name, path.parent)
            raise UserError(f"{path} has {count} frames for the same photo, {photo}: keep one of them.")


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check_lens(path: Path, meta: dict[str, Any]) -> None:
    """Refuse unknown or mixed camera models, and distortion that nerfstudio would ignore."""
    top = meta.get("camera_model", "PINHOLE")
    for frame in ({"camera_model": top, "file_path": ""}, *meta["frames"]):
        model = frame.get("camera_model", top)
        if not isinstance(model, str) or model not in CAMERA_MODEL_TO_TYPE:
            raise UserError(
                f"{path} has the camera_model {model}, which nerfstudio does not support: undistort the photos, or use "
                f"one of {', '.join(CAMERA_MODEL_TO_TYPE)}."
            )
        if CAMERA_MODEL_TO_TYPE[model] != CAMERA_MODEL_TO_TYPE[top]:
            raise UserError(
                f"{frame['file_path']} in {path} has the camera_model {model}, and nerfstudio reads only the one at "
                f"the top of the file, {top if 'camera_model' in meta else 'which has none'}: write it there, or make "
                "a capture for each lens."
            )
    crop = meta.get(CROP_RADIUS)
    if crop is not None and not (is_number(crop) and crop > 0):
        raise UserError(f"{CROP_RADIUS} in {path} is not a number of pixels above 0: correct it, or leave it out.")
    at_top = [name for name in DISTORTION_AT_TOP if name in meta]
    count = NUM_DISTORTION.get(CAMERA_MODEL_TO_TYPE[top], len(DISTORTION))
    for owner in (meta, *meta["frames"]):
        numbers = [owner[name] for name in DISTORTION if name in owner]
        params = owner.get("distortion_params")
        if params is not None and (not isinstance(params, list) or len(params) != count):
            raise UserError(f"distortion_params in {path} must be {count} numbers for {top}: write all of them.")
        if not all(is_number(number) for number in [*numbers, *(params or [])]):
            raise UserError(
                f"{owner.get('file_path', 'The top')} in {path} has lens distortion (k1 … p2) that is not a number: "
                "correct or remove it."
            )
        if owner is not meta and at_top:
            for name in (*DISTORTION, "distortion_params"):
                _refuse_hidden(path, owner, name, meta.get(name, 0.0), at_top[0])
    if count != len(DISTORTION) and "distortion_params" not in meta:
        lacking = next((frame["file_path"] for frame in meta["frames"] if "distortion_params" not in frame), None)
        if lacking is not None:
            raise UserError(f"{lacking} in {path} lacks the {count} distortion_params of {top}: add them.")
    if meta.get("k4") and not at_top:
        raise UserError(f"{path} has k4 without k1 at its top, which makes nerfstudio ignore it: add k1, if need be 0.")


def _check_intrinsics(path: Path, meta: dict[str, Any]) -> None:
    for name in INTRINSICS:
        values = [meta[name]] if name in meta else [frame.get(name) for frame in meta["frames"]]
        if not all(is_number(value) and value > 0 for value in values):
            if "camera_angle_x" in meta and name not in meta:
                raise UserError(
                    f"{path} has camera_angle_x and no {name}, like files of NeRF-synthetic and instant-ngp: end the "
                    "command with blender-data or instant-ngp-data, or add fl_x, fl_y, cx, cy, w, h in pixels."
                )
            raise UserError(
                f"The cameras in {path} have no {name} above 0: run ns-process-data again, or add the intrinsics "
                "(fl_x, fl_y, cx, cy, w, h, in pixels) to all frames."
            )
        for frame in meta["frames"]:
            if name in meta:
                _refuse_hidden(path, frame, name, meta[name], name)
    for frame in meta["frames"]:
        for centre, side in (("cx", "w"), ("cy", "h")):
            point, length = (meta.get(name, frame.get(name)) for name in (centre, side))
            if point >= length:
                raise UserError(
                    f"{frame['file_path']} in {path} has {centre} = {point:g} outside its picture, with {side} = "
                    f"{length:g}: scale fl_x, fl_y, cx and cy to pictures of this size."
                )


def _refuse_hidden(path: Path, frame: dict[str, Any], name: str, read: Any, because: str) -> None:
    """Refuse a value of a frame that nerfstudio ignores, unless the value that it reads at the top is the same."""
    if name in frame and frame[name] != read:
        raise UserError(
            f"{frame['file_path']} in {path} has {name} = {frame[name]}, which nerfstudio ignores because of {because} "
            f"at the top of the file: remove {because} there, and add it to every frame."
        )


def check_poses(path: Path, frames: Sequence[dict[str, Any]], apart: bool = True) -> None:
    """Refuse camera-to-world matrices that are not rigid or not finite.

    Args:
        path: The file of the frames.
        frames: Frames with a `transform_matrix`.
        apart: Whether to refuse cameras that are all at the same position, too.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    places = []
    for frame in frames:
        try:
            pose = np.asarray(frame.get("transform_matrix"), np.float64)
        except (TypeError, ValueError):
            pose = np.empty(0)
        name = frame["file_path"]
        if pose.shape != (4, 4):
            raise UserError(f"The pose of {name} in {path} is not a 4×4 matrix: run ns-process-data again.")
        if not np.isfinite(pose).all():
            raise UserError(f"The pose of {name} in {path} contains NaN or infinite values: remove the frame.")
        if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
            raise UserError(
                f"The pose of {name} in {path} has a last row other than 0 0 0 1: transform_matrix must be camera to "
                "world with the translation in its last column, so transpose it if the translation is in the last row."
            )
        if not is_rigid(pose):
            raise UserError(
                f"The pose of {name} in {path} is not rigid (it stretches, skews or mirrors): transform_matrix must be "
                "a rotation and a translation, camera to world."
            )
        places.append(pose[:3, 3])
    if not apart:
        return
    extent, farthest = np.ptp(np.asarray(places), axis=0).max(), np.abs(places).max()
    if extent == 0:
        raise UserError(f"All cameras in {path} have the same position: a field needs photos from several positions.")
    if farthest * np.finfo(np.float32).eps > POSITION_TOLERANCE * extent:
        raise UserError(
            f"The cameras in {path} are {farthest:.3g} from the origin and only {extent:.3g} apart, which exceeds the "
            "precision of nerfstudio's 32-bit numbers: subtract the mean position from all of them."
        )


def is_rigid(pose: Float[np.ndarray, "rows columns"]) -> bool:
    """Whether the axes of a pose are of unit length, at right angles and right-handed."""
    axes = pose[:3, :3]
    return np.abs(axes.T @ axes - np.eye(3)).max() <= RIGID_TOLERANCE and np.linalg.det(axes) > 0


def _check_frame(path: Path, meta: dict[str, Any]) -> None:
    """Check the transform that was applied to the poses before they were written."""
    if "applied_transform" in meta:
        try:
            applied = np.asarray(meta["applied_transform"], np.float64)
        except (TypeError, ValueError):
            applied = np.empty(0)
        good = applied.shape == (3, 4) and np.isfinite(applied).all()
        if not good or abs(np.linalg.det(applied[:, :3])) < 1e-9:
            raise UserError(f"applied_transform in {path} is not an invertible 3×4 matrix: correct or remove it.")
    scale = meta.get("applied_scale", 1.0)
    if not is_number(scale) or scale <= 0:
        raise UserError(f"applied_scale in {path} is not a number above 0: correct or remove it.")
    if meta.get("orientation_override", "none") not in ORIENTATIONS:
        raise UserError(f"orientation_override in {path} must be one of {', '.join(ORIENTATIONS)}: correct it.")


def _check_split(path: Path, meta: dict[str, Any], dataparser: NerfstudioDataParserConfig) -> None:
    """Check the lists of files of the splits, if the file has any, else the options of the split."""
    keys = [f"{split}_filenames" for split in ("train", "val", "test")]
    given = [key for key in keys if key in meta]
    if not given:
        if not 0 < dataparser.train_split_fraction <= 1:
            raise UserError("--train-split-fraction, the share of photos to train on, must be above 0 and at most 1.")
        if dataparser.eval_interval < 1:
            raise UserError("--eval-interval, the number of photos per held-out one, must be at least 1.")
        return
    names = {path.parent / frame["file_path"] for frame in meta["frames"]}
    for key in given:
        listed = meta[key]
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{key} in {path} is not a list of file paths: correct it, or remove the lists.")
        unknown = [name for name in listed if path.parent / name not in names]
        if unknown:
            raise UserError(
                f"{key} in {path} lists {unknown[0]}, and no frame has that file_path: write it as in the frames, or "
                "remove it."
            )
    for key in keys[:2]:
        if key not in given:
            raise UserError(f"{path} has {given[0]} and no {key}: add it, or remove the lists.")
    if len(meta[keys[0]]) < MIN_VIEWS:
        raise UserError(
            f"{keys[0]} in {path} lists {len(meta[keys[0]])} views: a field needs at least {MIN_VIEWS} training views."
        )


def check_flat_names(path: Path, frames: Sequence[dict[str, Any]], factor: int) -> None:
    """Refuse files with the same name in different folders if smaller ones are read, all from one folder.

    Args:
        path: The file of the frames.
        frames: Its frames.
        factor: How many times smaller the pictures are that nerfstudio reads.

    Raises:
        UserError: If two frames would get the same smaller picture or mask.
    """
    if factor == 1:
        return
    for key, folder in (("file_path", f"images_{factor}"), ("mask_path", f"masks_{factor}")):
        files: dict[str, str] = {}
        for name in dict.fromkeys(frame[key] for frame in frames if key in frame):
            other = files.setdefault(Path(name).name, name)
            if other != name:
                raise UserError(
                    f"nerfstudio reads {folder}/{Path(name).name} for both {other} and {name} in {path}: give the "
                    "files names that differ, or read them at full size with --downscale-factor 1."
                )


def other_suffix(path: Path) -> str | None:
    """Advice for a file that does not exist, if there is one with the same name and another suffix; else None."""
    near = next((each for each in sorted(path.parent.glob(f"{glob.escape(path.stem)}.*")) if each.is_file()), None)
    return None if near is None else f"there is {near.name}, so correct the name in the capture, or rename the file"


def _check_smaller(path: Path, first: str, factor: int | None) -> None:
    """Check the folder of reduced pictures, or the picture whose size determines whether one is used."""
    if factor is None:
        advice = None if (path.parent / first).is_file() else other_suffix(path.parent / first)
        if advice is not None:
            raise UserError(f"There is no picture {path.parent / first}: {advice}.")
        check_picture(path.parent / first)
        return
    if factor < 1:
        raise UserError("--downscale-factor must be at least 1.")
    if factor > 1 and not (path.parent / f"images_{factor}").is_dir():
        there = [each.name for each in sorted(path.parent.glob("images_*")) if each.is_dir()]
        raise UserError(
            f"There is no folder images_{factor} in {path.parent} for --downscale-factor {factor}"
            + (
                f": available are {', '.join(there)}."
                if there
                else ": omit the option, or run ns-process-data to make it."
            )
        )
