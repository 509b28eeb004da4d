"""Check a capture before anything is built: exactly the files that nerfstudio will load, in a second or two.

The file of poses is checked first (`transforms_file`). Then nerfstudio's own dataparser reads the capture, and the
pictures, masks and lenses that it returns are compared with each other. A summary is printed (`account`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    MAX_AUTO_RESOLUTION,
    Nerfstudio,
    NerfstudioDataParserConfig,
)
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.captures.account import CaptureAccount, Pictures
from eschernet_prior.base.captures.other_layouts import check_blender, check_colmap, check_instant_ngp
from eschernet_prior.base.captures.transforms_file import (
    MIN_VIEWS,
    check_flat_names,
    check_transforms,
    is_rigid,
    other_suffix,
)
from eschernet_prior.base.dataset_io import CaptureFrame
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import PictureInfo, check_picture, read_mask, read_pixels

THREADS = 8
"""Number of files that are read in parallel."""
ORIENTATION_TOLERANCE = 1e-2
"""Largest error in an entry of a rotation after the dataparser's transform is inverted."""
SPLITS = ("train", "val")
"""The splits that a training reads."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class UsableLenses:
    """The lenses that a method supports."""

    kinds: frozenset[CameraType]
    eighth_order: bool
    """Whether the distortion may have an eighth-order term, k4."""
    advice: str
    """Reason why other lenses are refused, and what to do."""

    def check(self, cameras: Any, source: Path) -> None:
        """Refuse cameras with other lenses.

        Raises:
            UserError: If a camera has an unsupported lens.
        """
        for number in sorted(set(cameras.camera_type.flatten().tolist())):
            if CameraType(number) not in self.kinds:
                raise UserError(f"{source} has {CameraType(number).name.lower()} cameras: {self.advice}")
        distortion = cameras.distortion_params
        if not self.eighth_order and distortion is not None and bool(distortion[..., 3].any()):
            raise UserError(f"{source} has a lens with the distortion parameter k4: {self.advice}")


ANY_LENS = UsableLenses(frozenset(CameraType), True, "")


def check_capture(dataparser: DataParserConfig, data: Path, lenses: UsableLenses = ANY_LENS) -> CaptureAccount:
    """Refuse a capture that cannot be trained on, before anything is built.

    Args:
        dataparser: The configuration that will read the capture.
        data: The folder of the capture, or the transforms.json in it.
        lenses: The lenses that the method supports.

    Returns:
        A summary of the capture.

    Raises:
        UserError: If the folder or the poses are missing, a pose is impossible, nerfstudio would ignore a value, there
            are too few views, or a picture or mask is missing, damaged, of an unsupported format or of the wrong size.
            The first problem is reported.
    """
    if not data.exists():
        where = "" if data.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"There is no {data}{where}: set --data to the folder of a capture, or of photos.")
    meta: dict[str, Any] = {}
    path = data
    if isinstance(dataparser, NerfstudioDataParserConfig):
        if data.is_file() and data.suffix != ".json":
            raise UserError(
                f"{data} is a file: set --data to the folder of a capture or to its transforms.json, or for a video "
                "end the command with photos-data."
            )
        path = data if data.suffix == ".json" else data / "transforms.json"
        meta = check_transforms(path, dataparser)
    elif isinstance(dataparser, BlenderDataParserConfig):
        check_blender(data)
    elif isinstance(dataparser, InstantNGPDataParserConfig):
        check_instant_ngp(data if data.suffix == ".json" else data / "transforms.json")
    elif isinstance(dataparser, ColmapDataParserConfig):
        check_colmap(data, dataparser)
    parser, outputs = _read_splits(dataparser, data)
    for each in outputs.values():
        lenses.check(each.cameras, path)
        if isinstance(dataparser, NerfstudioDataParserConfig):
            check_orientation(each, data, meta["frames"])
        check_cameras(each, path)
    if isinstance(parser, Nerfstudio):
        check_flat_names(path, meta["frames"], parser.downscale_factor or 1)
    pictures = check_pictures(outputs, data, reason_of_sizes(parser))
    return CaptureAccount.of(dataparser, data, meta, outputs, pictures)


def check_cameras(outputs: DataparserOutputs, source: Path) -> None:
    """Refuse cameras with poses that are not rigid or with numbers that are not finite, from any dataparser.

    Args:
        outputs: The dataparser's outputs of a split.
        source: The folder or file of the capture, for the message.

    Raises:
        UserError: If a camera is wrong; the first one is reported.
    """
    scale = float(outputs.dataparser_scale)
    if not np.isfinite(scale) or scale <= 0:
        raise UserError(f"The dataparser scales the poses in {source} by {scale:g}: set its scale to a number above 0.")
    cameras = outputs.cameras
    poses = cameras.camera_to_worlds.double().numpy()
    lenses = np.stack([getattr(cameras, name).double().flatten().numpy() for name in ("fx", "fy", "cx", "cy")], -1)
    for file, pose, lens in zip(outputs.image_filenames, poses, lenses):
        if not np.isfinite(pose).all() or not is_rigid(pose):
            raise UserError(
                f"The pose of {file.name} in {source} is not rigid (NaN, or it stretches, skews or mirrors): it must "
                "be a rotation and a translation."
            )
        if not np.isfinite(lens).all() or not (lens[:2] > 0).all():
            raise UserError(f"The camera of {file.name} in {source} has no focal length above 0: correct its lens.")


def check_orientation(outputs: DataparserOutputs, data: Path, frames: Sequence[dict[str, Any]]) -> None:
    """Refuse poses that nerfstudio has rotated otherwise than its recorded transform.

    If `--orientation-method pca` turns a capture upside down, nerfstudio 1.1.5 mirrors two of its poses and leaves the
    others unchanged.

    Args:
        outputs: The dataparser's outputs for a split.
        data: The capture's folder, or the transforms.json in it.
        frames: The frames in that file.

    Raises:
        UserError: If inverting the recorded transform does not give the pose of the frame.
    """
    given = {Path(frame["file_path"]).name: np.asarray(frame["transform_matrix"], np.float64) for frame in frames}
    names = [path.name for path in outputs.image_filenames]
    if len(given) < len(frames) or not names:
        return  # files of one name in several folders
    turned_back = CaptureFrame(outputs, data).poses(outputs.cameras)
    for name, pose in zip(names, turned_back):
        if np.abs(pose[:3, :3] - given[name][:3, :3]).max() > ORIENTATION_TOLERANCE:
            raise UserError(
                f"--orientation-method pca makes nerfstudio mirror poses of {data}, and {name} does not have the pose "
                "that it records: choose up, vertical or none."
            )


def _read_splits(dataparser: DataParserConfig, data: Path) -> tuple[DataParser, dict[str, DataparserOutputs]]:
    """Read the splits with nerfstudio's dataparser."""
    try:
        parser = replace(dataparser, data=data).setup()
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"An option of {type(dataparser).__name__} cannot be used ({said}): correct or omit it."
        ) from None
    quiet, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        return parser, {split: read_split(parser, split) for split in SPLITS}
    finally:
        CONSOLE.quiet = quiet


def read_split(parser: DataParser, split: str) -> DataparserOutputs:
    """Read a split with a dataparser.

    Raises:
        UserError: If the dataparser fails on the capture's files.
    """
    try:
        return parser.get_dataparser_outputs(split)
    except UserError:
        raise
    except Exception as error:  # nerfstudio's dataparsers raise all kinds of errors on unexpected files
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The dataparser {type(parser).__name__} cannot read the {split} views of {parser.config.data} "
            f"({type(error).__name__}: {reason}): correct the files, or put another dataparser after all other options."
        ) from None


def reason_of_sizes(parser: DataParser) -> str:
    """The reason why reduced pictures are read, as part of a sentence; empty if full-size pictures are read."""
    factor = getattr(parser, "downscale_factor", None) or getattr(parser, "_downscale_factor", None) or 1
    if factor == 1:
        return ""
    if getattr(parser.config, "downscale_factor", None) is not None:
        return f"--downscale-factor {factor}"
    return f"photos above {MAX_AUTO_RESOLUTION} pixels, which nerfstudio reads {factor} times smaller by itself"


def check_pictures(outputs: dict[str, DataparserOutputs], data: Path, smaller: str = "") -> Pictures:
    """Refuse pictures and masks that are damaged or do not fit their cameras.

    Args:
        outputs: The dataparser's outputs by split.
        data: The folder or file of the capture.
        smaller: Reason why reduced pictures are read, see `reason_of_sizes`.

    Returns:
        Properties of the files.

    Raises:
        UserError: If there are too few views, or a picture or mask cannot be used. The first problem is reported.
    """
    count = len(outputs["train"].image_filenames)
    if count < MIN_VIEWS:
        raise UserError(
            f"{data} leaves {count} views to train on, and a field needs at least {MIN_VIEWS}: hold out fewer views, "
            "with --train-split-fraction or the lists in transforms.json."
        )
    remedy = "make the reduced pictures again" if smaller else "run ns-process-data again"
    if smaller.startswith("photos"):
        remedy += ", or use --downscale-factor 1"
    elif smaller:
        remedy += ", or omit the option"

    def check(item: tuple[Path, Path | None, tuple[int, int]]) -> tuple[PictureInfo, float | None]:
        path, mask, size = item
        suffix = f" for {smaller}" if smaller else ""
        if not path.is_file():
            raise UserError(f"There is no picture {path}{suffix}: {other_suffix(path) or remedy}.")
        info = check_picture(path)
        if info.size != size:
            raise UserError(_other_size(path, info, size, smaller, remedy))
        if mask is None:
            return info, None
        if not mask.is_file():
            advice = remedy if smaller else "add the mask, or remove mask_path from all frames"
            raise UserError(f"There is no mask {mask}{suffix}: {advice}.")
        return info, _masked_share(mask, size)

    files = list(dict.fromkeys(item for each in outputs.values() for item in _files(each)))
    facts = _each(check, files)
    shares = [share for _, share in facts if share is not None]
    return Pictures(
        sizes=Counter(size for _, _, size in files),
        smaller=smaller,
        masked_share=sum(shares) / len(shares) if shares else None,
        transparent=_transparent(
            [path for (path, _, _), (info, _) in zip(files, facts) if info.alpha], len(files), data
        ),
        turned=tuple(
            path.name for (path, _, size), (info, _) in zip(files, facts) if info.turned and info.stored == size
        ),
    )


def _files(outputs: DataparserOutputs) -> list[tuple[Path, Path | None, tuple[int, int]]]:
    """List each view's picture, its mask, and its camera's width and height."""
    cameras, count = outputs.cameras, len(outputs.image_filenames)
    sizes = zip(cameras.width.flatten().tolist(), cameras.height.flatten().tolist())
    masks: Sequence[Path | None] = outputs.mask_filenames or [None] * count
    return list(zip(outputs.image_filenames, masks, sizes))


def _each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to the items in parallel; the results, or the first error, are in the order of the items."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def _other_size(path: Path, info: PictureInfo, size: tuple[int, int], smaller: str, remedy: str) -> str:
    """The message about a picture whose size differs from that of its camera."""
    found, wanted = (f"{width} × {height}" for width, height in (info.size, size))
    if info.stored == size:
        return (
            f"{path} is rotated by its EXIF orientation to {found} pixels, and its camera has {wanted}, the size "
            "without rotation: rotate the pixels and run ns-process-data again, or delete the orientation in the file."
        )
    if smaller:
        return f"{path} has {found} pixels and its camera {wanted} for {smaller} (sizes are rounded down): {remedy}."
    return (
        f"{path} has {found} pixels and its camera {wanted}: {remedy}, or give the frame its own w, h and intrinsics."
    )


def _masked_share(path: Path, size: tuple[int, int]) -> float:
    """The share of a photo of that width and height that is inside its mask."""
    mask = read_mask(path)
    found = (mask.shape[1], mask.shape[0])
    if found != size:
        raise UserError(
            f"The mask {path} has {found[0]} × {found[1]} pixels and its photo {size[0]} × {size[1]}: masks must "
            "be as large as their photos."
        )
    if not bool(mask.any()):
        raise UserError(
            f"The mask {path} is completely black, which hides its whole photo: paint the visible region white."
        )
    return float(mask.float().mean())


def _transparent(with_alpha: Sequence[Path], count: int, data: Path) -> bool | None:
    """Whether some photo is partly transparent; None if no photo has an alpha channel.

    Raises:
        UserError: If all photos are fully transparent.
    """
    if not with_alpha:
        return None
    invisible = 0
    for path in with_alpha:
        pixels = read_pixels(path)
        if pixels.shape[-1] == 4:
            if pixels[..., 3].any():
                return True
            invisible += 1
    if invisible == count:
        raise UserError(
            f"All photos in {data} are fully transparent (alpha 0 everywhere): save them with the object opaque, or "
            "without alpha."
        )
    return invisible > 0
