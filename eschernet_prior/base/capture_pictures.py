"""Whether the pictures and masks of a capture can be used, told before anything is built.

Files are looked at from their first and last bytes, and decoded only where these leave a doubt: a capture of hundreds
of photos is checked in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eschernet_prior.base.errors import UserError

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What a whole file has among its last bytes."""
TAIL = 64
"""How many bytes these are."""


def check_pictures(folder: Path, meta: dict[str, Any], factor: int) -> None:
    """Refuse pictures that cannot be read, are of another size than their cameras, or show nothing at all.

    Args:
        folder: of the capture.
        meta: its transforms.json.
        factor: how many times smaller the pictures are that will be read.

    Raises:
        UserError: the first of them.
    """
    see_through = 0
    for frame in meta["frames"]:
        width, height = (int(frame.get(name, meta.get(name))) for name in ("w", "h"))
        path = folder / frame["file_path"]
        size, alpha = _look_at(path)
        if size != (width, height):
            raise UserError(
                f"{path} has {size[0]} × {size[1]} pixels and its camera {width} × {height}: run ns-process-data "
                "again, or give the frame its own w, h and intrinsics."
            )
        if factor > 1:
            _look_at(folder / f"images_{factor}" / path.name)
        see_through += alpha is not None and not alpha()
    if see_through == len(meta["frames"]):
        raise UserError(
            f"All photos in {folder} are fully transparent (alpha 0 everywhere): save them with the object opaque, or "
            "without alpha."
        )


def check_masks(folder: Path, meta: dict[str, Any], factor: int) -> None:
    """Refuse masks that are missing, damaged, of another size than their photos, or black all over.

    Args:
        folder: of the capture.
        meta: its transforms.json.
        factor: how many times smaller the masks are that will be read.

    Raises:
        UserError: the first of them.
    """
    frames = [frame for frame in meta["frames"] if "mask_path" in frame]
    if frames and len(frames) < len(meta["frames"]):
        raise UserError(
            f"{len(frames)} of the {len(meta['frames'])} frames in {folder} have a mask_path: give all frames one, or "
            "none."
        )
    for frame in frames:
        path = folder / frame["mask_path"]
        if not path.is_file():
            raise UserError(f"There is no mask {path}: give the frame its mask, or take mask_path out of all frames.")
        size, _ = _look_at(path)
        wanted = tuple(int(frame.get(name, meta.get(name))) for name in ("w", "h"))
        if size != wanted:
            raise UserError(
                f"The mask {path} has {size[0]} × {size[1]} pixels and its photo {wanted[0]} × {wanted[1]}: masks must "
                "be as large as their photos."
            )
        with Image.open(path) as mask:
            extrema = mask.convert("L").getextrema()
        if extrema[1] == 0:
            raise UserError(
                f"The mask {path} is black all over, which leaves nothing of its photo: paint white what shall be seen."
            )
        if factor > 1 and not (folder / f"masks_{factor}" / path.name).is_file():
            raise UserError(
                f"There is no mask {folder / f'masks_{factor}' / path.name} for --downscale-factor {factor}: make the "
                "smaller masks, or leave the option out."
            )


def _look_at(path: Path) -> tuple[tuple[int, int], Callable[[], bool] | None]:
    """Width and height of a picture, and a way to ask whether anything of it is opaque; None without alpha."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: copy the photo again.")
        with Image.open(path) as image:
            size, kind, bands = image.size, image.format or "", image.getbands()
        if not _ends_well(path, kind):
            with Image.open(path) as image:
                image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}): it is damaged or cut off, so copy it again."
        ) from None
    if "A" not in bands:
        return size, None

    def opaque() -> bool:
        with Image.open(path) as image:
            return bool(np.asarray(image.getchannel("A")).any())

    return size, opaque


def _ends_well(path: Path, kind: str) -> bool:
    """Whether a picture of a kind that says so is whole, by its last bytes."""
    if kind not in ENDS:
        return False
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        return ENDS[kind] in file.read()
