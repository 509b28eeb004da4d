"""Pictures of a capture's views that others have made: restyled views and masks, found by the photos' names.

A *view folder* is a nerfstudio dataset (its transforms.json names the pictures) or a folder of pictures; a picture
belongs to the view whose photo has the same file name, whatever the suffix. It may have any resolution and has the
view's aspect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from eschernet_prior.base.images import SUFFIXES, read_image

ASPECT_TOLERANCE = 0.02
"""How far a picture's aspect may be from the view's, as a share."""


def find_pictures(folder: Path, option: str) -> dict[str, Path]:
    """All pictures of a view folder by name without suffix.

    Args:
        folder: a nerfstudio dataset, or a folder of pictures.
        option: the command line's option that names it, for the message.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give {option} a folder of pictures named like the photos.")
    meta = read_json(folder / "transforms.json")
    if meta is not None:
        paths = [folder / frame["file_path"] for frame in meta["frames"]]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found = {path.stem: path for path in paths if path.is_file()}
    if not found:
        raise UserError(f"{folder} holds no pictures: give {option} a folder of pictures named like the photos.")
    return found


def names_in_all(folders: Mapping[Path, Mapping[str, Path]], names: Sequence[str], option: str) -> list[str]:
    """Those of the names that every folder has a picture of.

    Raises:
        UserError: there is none.
    """
    common = [name for name in names if all(name in found for found in folders.values())]
    if not common:
        folder = next((folder for folder, found in folders.items() if not set(found) & set(names)), next(iter(folders)))
        raise UserError(
            f"No picture in {folder} is named like a photo of the capture, {names[0]} for example: give {option} a "
            "folder whose file names match."
        )
    return common


def read_view(path: Path, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Read a picture as RGB in [0, 1] at a view's size.

    Args:
        path: the picture.
        size: height and width of the view.

    Raises:
        UserError: it cannot be read, or has another aspect.
    """
    picture = _read(path, size)
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _read(path: Path, size: tuple[int, int]) -> Float[Tensor, "3 _ _"]:
    picture = read_image(path)
    height, width = picture.shape[1:]
    if abs(width * size[0] / (height * size[1]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{path} is {width} × {height} and its view {size[1]} × {size[0]}: pictures must have the aspect of the "
            "photos that they are named like."
        )
    return picture
