"""One check of a capture before anything is built: exactly the files that nerfstudio will load, in a second or two.

The poses' file is looked at first (`transforms_file`), then nerfstudio's own dataparser reads the capture, and the
pictures, masks and lenses that it hands out are compared. The findings are printed in a few lines (`account`).
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
from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION, NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.captures.account import CaptureAccount, Pictures
from eschernet_prior.base.captures.transforms_file import MIN_VIEWS, check_blender, check_transforms
from eschernet_prior.base.dataset_io import CaptureFrame
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import PictureInfo, check_picture, read_mask, read_pixels

THREADS = 8
"""Files that are read at a time."""
ORIENTATION_TOLERANCE = 1e-2
"""How far the axes of a pose may be off once it is turned back."""
SPLITS = ("train", "val")
"""What a training reads."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class UsableLenses:
    """The cameras that a method can work with."""

    kinds: frozenset[CameraType]
    eighth_order: bool
    """Whether distortion may have a term of the eighth order, k4."""
    advice: str
    """Why others are refused, and what to do about it."""

    def check(self, cameras: Any, source: Path) -> None:
        """Refuse cameras of other kinds.

        Raises:
            UserError: One is.
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
        dataparser: The configuration that will read it.
        data: The folder, or the transforms.json in it.
        lenses: What the method can work with.

    Returns:
        What was found.

    Raises:
        UserError: The first thing that cannot work: no such folder, no poses or none that a camera can have, numbers
            that nerfstudio does not read, too few views, pictures or masks that are missing, damaged, of another size
            or of a kind that has no right reading.
    """
    if not data.exists():
        where = "" if data.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"There is no {data}{where}: give --data the folder of a capture, or of photos.")
    meta: dict[str, Any] = {}
    path = data
    if isinstance(dataparser, NerfstudioDataParserConfig):
        if data.is_file() and data.suffix != ".json":
            raise UserError(
                f"{data} is a file: give --data the folder of a capture or its transforms.json, or for a video end the "
                "command with photos-data."
            )
        path = data if data.suffix == ".json" else data / "transforms.json"
        meta = check_transforms(path, dataparser)
    elif isinstance(dataparser, BlenderDataParserConfig):
        check_blender(data)
    parser, outputs = _read_splits(dataparser, data)
    for each in outputs.values():
        lenses.check(each.cameras, path)
        if isinstance(dataparser, NerfstudioDataParserConfig):
            check_orientation(each, data, meta["frames"])
    pictures = check_pictures(outputs, data, reason_of_sizes(parser))
    return CaptureAccount.of(dataparser, data, meta, outputs, pictures)


def check_orientation(outputs: DataparserOutputs, data: Path, frames: Sequence[dict[str, Any]]) -> None:
    """Refuse poses that nerfstudio has not turned as it says: 1.1.5 does not where pca turns a capture over.

    It then mirrors two of them, and leaves the others as they were.

    Args:
        outputs: Of a split.
        data: The capture's folder, or the transforms.json in it.
        frames: Of that file.

    Raises:
        UserError: a pose is another than the frame's once it is turned back.
    """
    given = {Path(frame["file_path"]).name: np.asarray(frame["transform_matrix"]) for frame in frames}
    names = [path.name for path in outputs.image_filenames]
    if len(given) < len(frames) or not names:
        return  # files of one name in several folders
    turned_back = CaptureFrame(outputs, data).poses(outputs.cameras)
    for name, pose in zip(names, turned_back):
        if np.abs(pose[:3, :3] - given[name][:3, :3]).max() > ORIENTATION_TOLERANCE:
            raise UserError(
                f"nerfstudio turns the pose of {name} in {data} otherwise than it notes, and mirrors others, by "
                "--orientation-method pca: choose up, vertical or none."
            )


def _read_splits(dataparser: DataParserConfig, data: Path) -> tuple[DataParser, dict[str, DataparserOutputs]]:
    """What nerfstudio makes of the capture; what it stumbles over is a `UserError`."""
    parser = replace(dataparser, data=data).setup()
    quiet, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        return parser, {split: read_split(parser, split) for split in SPLITS}
    finally:
        CONSOLE.quiet = quiet


def read_split(parser: DataParser, split: str) -> DataparserOutputs:
    """What a dataparser makes of a split.

    Raises:
        UserError: It cannot read the capture's files.
    """
    try:
        return parser.get_dataparser_outputs(split)
    except UserError:
        raise
    except Exception as error:  # whatever a parser of nerfstudio's does with files that it does not expect
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{type(parser).__name__}, the dataparser, cannot read the {split} views of {parser.config.data} "
            f"({type(error).__name__}: {said}): correct the files, or name another dataparser after all other options."
        ) from None


def reason_of_sizes(parser: DataParser) -> str:
    """Why smaller pictures are read than the capture's own, for a sentence; empty where they are not."""
    factor = getattr(parser, "downscale_factor", None) or getattr(parser, "_downscale_factor", None) or 1
    if factor == 1:
        return ""
    if getattr(parser.config, "downscale_factor", None) is not None:
        return f"--downscale-factor {factor}"
    return f"photos above {MAX_AUTO_RESOLUTION} pixels, which nerfstudio reads {factor} times smaller by itself"


def check_pictures(outputs: dict[str, DataparserOutputs], data: Path, smaller: str = "") -> Pictures:
    """Refuse pictures and masks of a capture that cannot be used as its cameras say.

    Args:
        outputs: Of its splits.
        data: Where it is.
        smaller: Why smaller pictures are read, see `reason_of_sizes`.

    Returns:
        What they are.

    Raises:
        UserError: The first of them.
    """
    count = len(outputs["train"].image_filenames)
    if count < MIN_VIEWS:
        raise UserError(
            f"{data} leaves {count} views to train on: a field needs at least {MIN_VIEWS}, so hold fewer out, with "
            "--train-split-fraction or the lists in transforms.json."
        )
    remedy = "make the smaller ones again" if smaller else "run ns-process-data again"
    if smaller.startswith("photos"):
        remedy += ", or give --downscale-factor 1"
    elif smaller:
        remedy += ", or leave the option out"

    def check(item: tuple[Path, Path | None, tuple[int, int]]) -> tuple[bool, float | None]:
        path, mask, size = item
        suffix = f" for {smaller}" if smaller else ""
        if not path.is_file():
            raise UserError(f"There is no picture {path}{suffix}: {remedy}.")
        info = check_picture(path)
        if info.size != size:
            raise UserError(_other_size(path, info, size, smaller, remedy))
        if mask is None:
            return info.alpha, None
        if not mask.is_file():
            advice = remedy if smaller else "give the frame its mask, or take mask_path out of all frames"
            raise UserError(f"There is no mask {mask}{suffix}: {advice}.")
        return info.alpha, _masked_share(mask, size)

    files = list(dict.fromkeys(item for each in outputs.values() for item in _files(each)))
    facts = _each(check, files)
    shares = [share for _, share in facts if share is not None]
    return Pictures(
        sizes=Counter(size for _, _, size in files),
        smaller=smaller,
        masked_share=sum(shares) / len(shares) if shares else None,
        transparent=_transparent([path for (path, _, _), (alpha, _) in zip(files, facts) if alpha], len(files), data),
    )


def _files(outputs: DataparserOutputs) -> list[tuple[Path, Path | None, tuple[int, int]]]:
    """Each view's picture, its mask, and its camera's width and height."""
    cameras, count = outputs.cameras, len(outputs.image_filenames)
    sizes = zip(cameras.width.flatten().tolist(), cameras.height.flatten().tolist())
    masks: Sequence[Path | None] = outputs.mask_filenames or [None] * count
    return list(zip(outputs.image_filenames, masks, sizes))


def _each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results in order, of several items at a time; the first error in that order ends it."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def _other_size(path: Path, info: PictureInfo, size: tuple[int, int], smaller: str, remedy: str) -> str:
    """What to say of a picture of another size than its camera."""
    found, wanted = (f"{width} × {height}" for width, height in (info.size, size))
    if info.stored == size:
        return (
            f"{path} is shown turned by its EXIF orientation, as {found} pixels, and its camera has {wanted}, as the "
            "file is stored: turn the pixels and run ns-process-data again, or delete the orientation from the file."
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
            f"The mask {path} is black all over, which leaves nothing of its photo: paint white what should be seen."
        )
    return float(mask.float().mean())


def _transparent(with_alpha: Sequence[Path], count: int, data: Path) -> bool | None:
    """Whether some photo is partly transparent; None where none has an alpha channel.

    Raises:
        UserError: All photos are fully transparent.
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
