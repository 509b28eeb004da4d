"""Check captures in other layouts: NeRF-synthetic sets, instant-ngp's transforms.json, COLMAP models.

nerfstudio's dataparsers for these layouts ignore some values and missing pictures without a message, or fail with a
stack trace. Captures that they would read wrongly are refused here with one sentence.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType
from nerfstudio.data.dataparsers.colmap_dataparser import MAX_AUTO_RESOLUTION, ColmapDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap

from eschernet_prior.base.captures.transforms_file import (
    DISTORTION,
    INTRINSICS,
    MIN_VIEWS,
    check_names,
    check_poses,
    is_number,
    read_poses,
)
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import check_picture

SAME_FOCAL = 0.01
"""Largest relative difference between the two focal lengths of a lens that are treated as equal."""
BLENDER_SPLITS = ("train", "val")
"""The NeRF-synthetic files that a training reads."""
LENSES = {
    **dict.fromkeys(("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"), "perspective"),
    **dict.fromkeys(("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE"), "fisheye"),
}
"""nerfstudio's type of camera for each of COLMAP's lens models."""
SPARSE = ("colmap/sparse/0", "sparse/0", "sparse")
"""Usual folders of COLMAP models."""


def check_blender(folder: Path) -> None:
    """Refuse a NeRF-synthetic folder that `blender-data` would read wrongly.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: set --data to the folder that contains transforms_train.json.")
    for split in BLENDER_SPLITS:
        path = folder / f"transforms_{split}.json"
        advice = "a NeRF-synthetic set has transforms_train.json, transforms_val.json and transforms_test.json"
        if split == "val" and (folder / "transforms_test.json").is_file():
            advice = "the views for evaluation are read from it, so copy transforms_test.json to transforms_val.json"
        meta = read_poses(path, advice, least=MIN_VIEWS if split == "train" else 1)
        check_names(path, meta["frames"], "file_path")
        angle: Any = meta.get("camera_angle_x")
        if not is_number(angle) or not 0 < angle < np.pi:
            raise UserError(
                f"{path} has no camera_angle_x between 0 and 3.14 (radians across the width of the pictures): add it."
            )
        check_poses(path, meta["frames"], apart=split == "train")
        for frame in meta["frames"]:
            name = frame["file_path"].replace("./", "")
            if not (folder / f"{name}.png").is_file():
                reason = (
                    "file_path must not end in .png, which blender-data adds"
                    if (folder / name).is_file()
                    else "add the picture, or remove the frame"
                )
                raise UserError(f"{path.name} lists {folder / name}.png, which does not exist: {reason}.")


def check_instant_ngp(path: Path) -> None:
    """Refuse a file that `instant-ngp-data` would read wrongly: it reads one lens, and skips missing pictures.

    Args:
        path: The `transforms.json`.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    meta = read_poses(path, "instant-ngp's colmap2nerf.py writes it; for photos alone end the command with photos-data")
    frames = meta["frames"]
    check_names(path, frames, "file_path")
    with_mask = [frame for frame in frames if "mask_path" in frame]
    if with_mask and len(with_mask) < len(frames):
        raise UserError(
            f"{len(with_mask)} of the {len(frames)} frames in {path} have a mask_path: add it to all frames, or "
            "remove it from all."
        )
    check_names(path, with_mask, "mask_path")
    check_poses(path, frames)
    advice = "nerfstudio-data reads it, so end the command with that, with fl_x, fl_y, cx, cy, w, h in pixels"
    for frame in frames:
        name = frame["file_path"]
        if not any((path.parent / each).is_file() for each in (name, f"{name}.png")):
            raise UserError(f"There is no picture {path.parent / name}: add the file, or remove the frame.")
        for key in (*INTRINSICS, *DISTORTION):
            if key in frame and frame[key] != meta.get(key):
                raise UserError(f"{name} in {path} has its own {key}, which instant-ngp-data does not read: {advice}.")
    if any(f"{split}_filenames" in meta for split in ("train", "val", "test")):
        raise UserError(f"{path} has lists of files to train on, which instant-ngp-data does not read: {advice}.")
    if CAMERA_MODEL_TO_TYPE.get(meta.get("camera_model", "OPENCV")) != CameraType.PERSPECTIVE:
        raise UserError(f"{path} has a camera_model, which instant-ngp-data does not read: {advice}.")
    known = ("fl_x", "fl_y", "cx", "cy", "w", "h", "x_fov", "y_fov", "camera_angle_x", "camera_angle_y")
    for key in (*known, "aabb_scale", *DISTORTION):
        if key in meta and not (is_number(meta[key]) and (meta[key] > 0 or key in DISTORTION)):
            raise UserError(
                f"{path} has a {key} that is not a number{'' if key in DISTORTION else ' above 0'}: correct it."
            )
    if not any(key in meta for key in ("fl_x", "x_fov", "camera_angle_x")):
        raise UserError(f"{path} has no focal length: add fl_x in pixels, or camera_angle_x in radians.")
    focal: float = meta.get("fl_x", 1.0)
    other: float = meta.get("fl_y", focal)
    if "fl_x" in meta and abs(other / focal - 1) > SAME_FOCAL:
        raise UserError(
            f"{path} has fl_x = {focal:g} and fl_y = {other:g}, and instant-ngp-data uses fl_x for both: {advice}."
        )


def check_colmap(folder: Path, dataparser: ColmapDataParserConfig) -> None:
    """Refuse a COLMAP model that `colmap` cannot read, or that it would read only after a question to the user.

    Args:
        folder: The capture.
        dataparser: The options with which it will be read.

    Raises:
        UserError: If something is wrong; the first problem is reported.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: set --data to the folder of the photos and the COLMAP model.")
    model = folder / dataparser.colmap_path
    suffix = next((each for each in ("txt", "bin") if (model / f"cameras.{each}").is_file()), None)
    if suffix is None:
        found = next((each for each in SPARSE if any((folder / each).glob("cameras.*"))), None)
        advice = f"there is one in {found}, so add --colmap-path {found}" if found else "run COLMAP, or photos-data"
        raise UserError(f"There is no COLMAP model (cameras.bin, images.bin, points3D.bin) in {model}: {advice}.")
    cameras, images, points = (_read_model(model / f"{name}.{suffix}") for name in ("cameras", "images", "points3D"))
    remedy = "undistort the photos with COLMAP's image_undistorter"
    unknown = sorted({camera.model for camera in cameras.values()} - LENSES.keys())
    if unknown:
        raise UserError(f"The COLMAP model in {model} has an unsupported lens, {unknown[0]}: {remedy}.")
    lenses = sorted({LENSES[camera.model] for camera in cameras.values()})
    if len(lenses) > 1:
        raise UserError(f"The COLMAP model in {model} has {' and '.join(lenses)} cameras, not one type: {remedy}.")
    if any(camera.model == "OPENCV_FISHEYE" and camera.params[-1] for camera in cameras.values()):
        raise UserError(f"The COLMAP model in {model} has a fisheye lens with k4, which nerfstudio refuses: {remedy}.")
    if len(images) < MIN_VIEWS:
        raise UserError(f"The COLMAP model in {model} has {len(images)} photos: a field needs at least {MIN_VIEWS}.")
    if dataparser.load_3D_points and not points:
        raise UserError(f"The COLMAP model in {model} has no points, which are not needed: add --load-3D-points False.")
    names = sorted(image.name for image in images.values())
    _check_photos(folder, names, dataparser)
    listings = [folder / f"{split}_list.txt" for split in ("train", "val", "test")]
    given = [listing for listing in listings if listing.is_file()]
    for listing in given:
        others = sorted(set(listing.read_text("utf8").splitlines()) - set(names))
        if others:
            raise UserError(f"{listing} lists “{others[0]}”, and the COLMAP model has no such photo: remove it.")
    lacking = next((listing for listing in listings if given and listing not in given), None)
    if lacking is not None:
        raise UserError(f"There is {given[0]} and no {lacking.name} next to it: add it, or remove the lists.")


def _check_photos(folder: Path, names: list[str], dataparser: ColmapDataParserConfig) -> None:
    """Refuse missing folders of photos, or of the smaller photos that the options or nerfstudio's default select."""
    photos = folder / dataparser.images_path
    if not photos.is_dir():
        raise UserError(f"There is no folder {photos} with the photos of the COLMAP model: set --images-path.")
    factor = dataparser.downscale_factor
    if factor is not None and factor < 1:
        raise UserError("--downscale-factor must be at least 1.")
    if factor is None:
        longest, factor = max(check_picture(photos / names[0]).stored), 1
        while longest / factor > MAX_AUTO_RESOLUTION:
            factor *= 2
    if factor == 1:
        return
    smaller = photos.with_name(f"{photos.name}_{factor}")
    if not all((smaller / name).parent.is_dir() for name in names):
        why = "photos above 1600 pixels" if dataparser.downscale_factor is None else f"--downscale-factor {factor}"
        raise UserError(
            f"There is no folder {smaller} for {why}: write photos reduced by a factor of {factor} into it, or use "
            "--downscale-factor 1 after colmap."
        )


def _read_model(path: Path) -> dict[int, Any]:
    """Read a file of a COLMAP model with nerfstudio's reader; missing points give an empty dictionary."""
    readers = {
        "cameras": (colmap.read_cameras_text, colmap.read_cameras_binary),
        "images": (colmap.read_images_text, colmap.read_images_binary),
        "points3D": (colmap.read_points3D_text, colmap.read_points3D_binary),
    }
    if not path.is_file():
        if path.stem == "points3D":
            return {}
        raise UserError(f"The COLMAP model lacks {path}: export it again, all three files.")
    try:
        return readers[path.stem][path.suffix == ".bin"](path)
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError, MemoryError, AssertionError) as error:
        raise UserError(
            f"{path} cannot be read as a part of a COLMAP model ({type(error).__name__}): it is damaged, or from "
            "another version of COLMAP: export it again."
        ) from None
