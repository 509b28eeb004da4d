"""Summarise a capture: a few lines for the console, and numbers that identify it when a run is resumed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from eschernet_prior.base.cameras import nearest_to_axes

OFF_CENTRE = 0.2
"""Distance of a principal point from the middle, as a share of the picture's side, above which a note is printed."""
WIDEST = 150.0
"""Field of view of a perspective camera in degrees above which a note is printed."""
BEHIND = 0.9
"""Share of cameras looking away from the point closest to all optical axes, above which a note is printed."""


@dataclass(frozen=True)
class Pictures:
    """Properties of the picture and mask files of a capture."""

    sizes: Counter[tuple[int, int]]
    """Number of pictures by (width, height)."""
    smaller: str
    """Reason why reduced pictures are read instead of the full-size ones; empty if they are not."""
    masked_share: float | None
    """Mean share of the photos inside their masks; None without masks."""
    transparent: bool | None
    """Whether some photo is partly transparent; None if no photo has an alpha channel."""
    turned: tuple[str, ...] = ()
    """Photos that are rotated by their EXIF orientation and have the same size before and after the rotation."""


@dataclass(frozen=True)
class CaptureAccount:
    """Summary of a checked capture."""

    lines: tuple[str, ...]
    """Lines for the console: views, sizes, lens, masks, split and frame, and possible mistakes."""
    pictures: Pictures
    """Properties of the files."""
    names: tuple[str, ...]
    """File names of the photos without suffix: the training photos, then those that are only held out."""
    identity: dict[str, Any]
    """Identity of the capture and of the options that read it (`capture_identity`), as read back from JSON."""

    @classmethod
    def of(
        cls,
        dataparser: DataParserConfig,
        data: Path,
        meta: dict[str, Any],
        outputs: dict[str, DataparserOutputs],
        pictures: Pictures,
    ) -> CaptureAccount:
        """Summarise a capture that was checked.

        Args:
            dataparser: The configuration that reads the capture.
            data: The folder or file of the capture.
            meta: The content of its transforms.json; empty for other layouts.
            outputs: The dataparser's outputs for the splits "train" and "val".
            pictures: Properties of the files.
        """
        train, held_out = outputs["train"], outputs["val"]
        lines = (
            f"Capture {data}: {len(train.image_filenames)} views to train on, {len(held_out.image_filenames)} held "
            f"out ({_split(dataparser, meta)}).",
            f"Pictures: {_sizes(pictures)}. {_outlines(pictures)}",
            f"Lens: {describe_lens(train.cameras)}. Frame: {_frame(dataparser, data, meta, train)}.",
            *(f"Note: {hint}" for hint in _hints(dataparser, data, meta, outputs, pictures)),
        )
        paths = dict.fromkeys([*train.image_filenames, *held_out.image_filenames])
        names = tuple(path.stem for path in paths)
        return cls(lines, pictures, names, capture_identity(dataparser, data, outputs))


def _split(dataparser: DataParserConfig, meta: dict[str, Any]) -> str:
    if any(f"{split}_filenames" in meta for split in ("train", "val", "test")):
        return "by the lists in transforms.json"
    if isinstance(dataparser, BlenderDataParserConfig):
        return "by transforms_train.json and transforms_val.json"
    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return f"by {type(dataparser).__name__.removesuffix('DataParserConfig')}"
    return {
        "fraction": f"--train-split-fraction {dataparser.train_split_fraction:g}",
        "filename": "by the names of the files",
        "interval": f"every {dataparser.eval_interval}th",
        "all": "the same ones: --eval-mode all",
    }[dataparser.eval_mode]


def _sizes(pictures: Pictures) -> str:
    each = [f"{width} × {height}" for (width, height), _ in pictures.sizes.most_common()]
    if len(each) > 1:
        each = [f"{count} of {size}" for size, (_, count) in zip(each, pictures.sizes.most_common())]
    listed = ", ".join(each[:3]) + (f" and {len(each) - 3} more sizes" if len(each) > 3 else "")
    return f"{listed} pixels" + (f", because of {pictures.smaller}" if pictures.smaller else "")


def _outlines(pictures: Pictures) -> str:
    masks = (
        "Masks: none."
        if pictures.masked_share is None
        else f"Masks: {pictures.masked_share:.0%} of the pictures are inside."
    )
    if pictures.transparent is None:
        return masks
    return masks + (" Alpha: partly transparent." if pictures.transparent else " Alpha: opaque, so it is ignored.")


def describe_lens(cameras: Cameras) -> str:
    """Describe a lens in words: its type, field of view and distortion."""
    kinds = sorted({CameraType(int(kind)) for kind in cameras.camera_type.flatten()}, key=lambda kind: kind.value)
    words = " and ".join(kind.name.lower() for kind in kinds)
    if kinds == [CameraType.PERSPECTIVE]:
        degrees = _fields_of_view(cameras)
        low, high = round(float(degrees.min())), round(float(degrees.max()))
        words += f", {low}° across" if low == high else f", {low}° to {high}° across"
    distorts = cameras.distortion_params is not None and bool(cameras.distortion_params.any())
    return words + (", with distortion" if distorts else ", without distortion")


def _fields_of_view(cameras: Cameras) -> np.ndarray:
    """Degrees across the width, for perspective cameras."""
    half = (cameras.width.double() / (2 * cameras.fx.double())).flatten().cpu().numpy()
    return np.degrees(2 * np.arctan(half))


def _frame(dataparser: DataParserConfig, data: Path, meta: dict[str, Any], train: DataparserOutputs) -> str:
    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return f"scale {train.dataparser_scale:.4g}"
    orientation = meta.get("orientation_override", dataparser.orientation_method)
    words = f"orientation {orientation}, centre {dataparser.center_method}, scale {train.dataparser_scale:.4g}"
    if "applied_transform" in meta:
        return f"{words}, after the applied_transform of transforms.json"
    if (data / "colmap/sparse/0").exists():
        return f"{words}, after the applied_transform that nerfstudio assumes next to a colmap folder"
    return words


def _hints(
    dataparser: DataParserConfig,
    data: Path,
    meta: dict[str, Any],
    outputs: dict[str, DataparserOutputs],
    pictures: Pictures,
) -> list[str]:
    """Find settings that work but may be mistakes."""
    hints, cameras = [], outputs["train"].cameras
    if pictures.turned:
        hints.append(
            f"{len(pictures.turned)} of the photos, for example {pictures.turned[0]}, are rotated by their EXIF "
            "orientation: correct if the poses were found from upright pictures. COLMAP ignores the orientation: if "
            "the poses are from COLMAP, rotate the pixels and run ns-process-data again, or delete the orientation."
        )
    if isinstance(dataparser, BlenderDataParserConfig) and not (data / "transforms_test.json").is_file():
        hints.append("transforms_test.json is missing, which ns-eval and ns-render read: add it before using them.")
    if "train_filenames" in meta and "test_filenames" not in meta:
        hints.append("transforms.json has no test_filenames, which ns-eval and ns-render read: add the list before.")
    both = set(outputs["train"].image_filenames) & set(outputs["val"].image_filenames)
    if both and getattr(dataparser, "eval_mode", "") != "all":
        hints.append(f"{len(both)} views, for example {min(both).name}, are both held out and trained on.")
    width, height = cameras.width.flatten(), cameras.height.flatten()
    off = torch.maximum((cameras.cx.flatten() / width - 0.5).abs(), (cameras.cy.flatten() / height - 0.5).abs())
    if bool((off > OFF_CENTRE).any()):
        name = outputs["train"].image_filenames[int(off.argmax())].name
        hints.append(
            f"the principal point of {name} is far from the middle of its picture: correct for a cropped photo, wrong "
            "if fl_x, fl_y, cx and cy belong to another size."
        )
    perspective = bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())
    if perspective and float(_fields_of_view(cameras).max()) > WIDEST:
        hints.append("the focal length is so short that it may belong to smaller pictures or to a fisheye lens.")
    if _looks_away(cameras):
        hints.append(
            "the cameras look away from the point that they surround: correct for a room seen from its middle; if they "
            "surround an object, the poses have OpenCV's axes: negate columns 2 and 3 of each transform_matrix."
        )
    return hints


def _looks_away(cameras: Cameras) -> bool:
    """Whether the point closest to all optical axes is behind nearly all cameras."""
    poses = cameras.camera_to_worlds.double()
    centre = nearest_to_axes(poses, parallel=1e-2)
    if centre is None:
        return False
    ahead = ((centre - poses[:, :3, 3]) * -poses[:, :3, 2]).sum(-1)
    return float((ahead < 0).double().mean()) > BEHIND


def capture_identity(
    dataparser: DataParserConfig, data: Path, outputs: Mapping[str, DataparserOutputs]
) -> dict[str, Any]:
    """Compute the identity of a capture: files by name and size, cameras, and the dataparser's options.

    The path is recorded as well, but a moved capture counts as the same. Cameras are represented by means and mean
    squares of the poses, and by means of focal length and principal point as shares of the width, which are the same
    for reduced pictures.
    """
    digest = hashlib.sha256()
    for split, each in outputs.items():
        for path in each.image_filenames:
            digest.update(f"{split} {path.name} {path.stat().st_size}\n".encode())
    return {
        "data": str(data.resolve()),
        "dataparser": dataparser_options(dataparser),
        "files": digest.hexdigest()[:16],
        **camera_identity(outputs),
    }


def camera_identity(outputs: Mapping[str, DataparserOutputs]) -> dict[str, Any]:
    """Compute the part of `capture_identity` that depends on the cameras alone; no file is opened.

    Args:
        outputs: The dataparser's outputs for the splits "train" and "val".
    """
    numbers: list[float] = []
    for each in outputs.values():
        cameras = each.cameras
        if len(each.image_filenames):
            poses = cameras.camera_to_worlds.double().flatten(1)
            lenses = torch.stack(
                [getattr(cameras, name).double().flatten() / cameras.width.double().flatten() for name in ("fx", "cx")]
            )
            numbers += [*poses.mean(0).tolist(), *poses.square().mean(0).tolist(), *lenses.mean(1).tolist()]
    return {
        "cameras": [round(number, 6) for number in numbers],
        "transform": outputs["train"].dataparser_transform.tolist(),
        "scale": float(outputs["train"].dataparser_scale),
    }


def dataparser_options(dataparser: DataParserConfig) -> dict[str, Any]:
    """The options of a dataparser as read back from JSON: its class first, without the path of the data."""
    options = {each.name: _plain(getattr(dataparser, each.name)) for each in fields(dataparser)}
    return {"kind": type(dataparser).__name__} | {
        name: value for name, value in options.items() if name not in ("_target", "data")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) or not isinstance(value, (bool, int, float, str, type(None))):
        return str(value)
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
