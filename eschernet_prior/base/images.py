"""Read and write pictures and masks: the one place that decides what the pixels of a file mean.

A picture is read as a viewer shows it: turned by its EXIF orientation, palette entries as their colours, 16 bits as
shades and not as low bytes, inks as colours, colours of an embedded profile as sRGB. What has no such reading, as
high dynamic range, raw files and animations, is refused with the name of the file.

A mask is read as nerfstudio means it, whatever its pixel format: all but black is inside, also 1 where the rest is 0.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in [0, 1] that networks trained on ImageNet are normalised with."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
"""What files of pictures are called, in lower case."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA", "AVIF", "HEIF", "JPEG2000")
"""Pillow's names of the formats that are read."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
"""Formats that may hold several pictures of equal rank; the further ones in an MPO or HEIC file are previews."""
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")
NOISE, WHITE = 16, 128
"""Shades of 255: how far black may be off in a mask, and from where on a mask has white."""
LABELS = 8
"""Up to so many different shades, black among them, can be labels; noise has more."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
JPEG_END, TAIL = b"\xff\xd9", 64
"""What a whole JPEG file has among so many of its last bytes."""
HEIF = {".heic", ".heif"}
HDR = {".exr", ".hdr", ".pfm", ".rgbe"}
RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"}
QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
ORIENTATION = 0x0112


class PictureInfo(NamedTuple):
    """What the header of a picture says."""

    size: tuple[int, int]
    """Width and height in pixels, as shown."""
    stored: tuple[int, int]
    """The same before the EXIF orientation is applied."""
    alpha: bool
    """Whether pixels can be transparent."""


def picture_info(path: Path) -> PictureInfo:
    """Read the header of a picture.

    Raises:
        UserError: The file is missing, is no picture, or is of a kind that is not read.
    """
    with _opened(path) as picture:
        return _info(picture)


def check_picture(path: Path) -> PictureInfo:
    """Read the header of a picture, and make sure that the file is whole.

    PNG files are judged by their checksums, JPEG files by their last bytes; others, and JPEG files without the right
    ones, are decoded.

    Raises:
        UserError: As `picture_info`, or the file is damaged or cut off.
    """
    with _opened(path) as picture:
        info = _info(picture)
        kind = picture.format
        if kind != "PNG" and not (kind == "JPEG" and _ends_well(path)):
            picture.load()
    if kind == "PNG":
        with _opened(path) as picture:
            picture.verify()
    return info


def read_pixels(path: Path) -> UInt8[np.ndarray, "height width channels"]:
    """Read a picture as it is shown: RGB, or RGBA (not premultiplied) where some pixel is not fully opaque.

    Raises:
        UserError: The file is missing, damaged, no picture, or of a kind that is not read.
    """
    with _opened(path) as picture:
        shown = _as_shown(picture)
    pixels = np.asarray(shown)
    return pixels[..., :3] if pixels.shape[-1] == 4 and pixels[..., 3].min() == 255 else pixels


def read_image(path: Path) -> Float[Tensor, "3 height width"]:
    """Read a picture as RGB in [0, 1]; what is transparent is white.

    Raises:
        UserError: As `read_pixels`.
    """
    pixels = torch.from_numpy(read_pixels(path).copy()).permute(2, 0, 1).float() / 255
    return pixels if len(pixels) == 3 else on_white(pixels[:3], pixels[3:])


def on_white(
    colour: Float[Tensor, "3 height width"], alpha: Float[Tensor, "1 height width"]
) -> Float[Tensor, "3 height width"]:
    """Compose a picture with straight alpha over white; all values in [0, 1]."""
    return colour * alpha + (1.0 - alpha)


def read_mask(path: Path) -> Bool[Tensor, "height width"]:
    """Read a mask: True inside.

    All but black is inside: shades, colours, entries of a palette. Shades up to `NOISE` are black in masks that have
    white in them, or are of a lossy format; in others, as those of 0 and 1, they are inside, and also where they are
    labels beside white, as in masks of 0, 1 and 255. What is transparent is outside.

    Raises:
        UserError: As `read_pixels`, or it is a photo with a transparent background, whose dark pixels say nothing.
    """
    with _opened(path) as picture:
        lossy, palette = picture.format in LOSSY, picture.mode in ("P", "PA")
        if picture.mode in (*SIXTEEN_BITS, "I"):
            return torch.from_numpy(np.asarray(ImageOps.exif_transpose(picture)) > 0)
        shown = np.asarray(_as_shown(picture, profile=False))
    shades = shown[..., :3].max(-1)
    noisy = lossy or (not palette and shades.max() >= WHITE and not _has_dark_label(shades))
    inside = shades > (NOISE if noisy else 0)
    if shown.shape[-1] == 4 and shown[..., 3].min() < 255:
        opaque = shown[..., 3] > NOISE
        between = (shades[opaque] > NOISE) & (shades[opaque] < 255 - NOISE)
        if between.any():
            raise UserError(
                f"The mask {path} has both colours and transparency: save it as a grey picture, white inside and "
                "black outside."
            )
        inside &= opaque
    return torch.from_numpy(inside)


def _has_dark_label(shades: UInt8[np.ndarray, "height width"]) -> bool:
    """Whether a mask has few shades, black among them, and one up to `NOISE` fills some square of 3 × 3 pixels."""
    (found,) = np.bincount(shades.ravel(), minlength=256).nonzero()
    if len(found) > LABELS or found[0] != 0 or not 0 < found[1:2].sum() <= NOISE or min(shades.shape) < 3:
        return False
    squares = np.lib.stride_tricks.sliding_window_view(shades, (3, 3))
    low, high = squares.min((2, 3)), squares.max((2, 3))
    return bool(((low == high) & (low > 0) & (low <= NOISE)).any())


def write_image(path: Path, image: Float[Tensor, "channels height width"]) -> None:
    """Write grey (one channel), RGB or RGBA in [0, 1] as an 8-bit image, whole or not at all."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    with atomic_path(path) as partial:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(partial)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of a kind that is read; whatever goes wrong with it inside the block is a `UserError`."""
    suffix = path.suffix.lower()
    if suffix in HDR:
        raise UserError(f"{path} is a high dynamic range picture, which is not read: save it as 8-bit PNG or JPEG.")
    if suffix in RAW:
        raise UserError(f"{path} is a camera's raw file, which is not read: develop it to PNG or JPEG.")
    if not path.is_file():
        raise UserError(f"There is no picture {path}: put it there, or correct the path that names it.")
    if suffix in HEIF:
        register_heif()
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: copy the picture again.")
        with Image.open(path) as picture:
            _check_kind(path, picture)
            yield picture
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more pixels than are read safely: save it smaller.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}): it is damaged or cut off, so copy it "
            "again, or save it as PNG or JPEG."
        ) from None


@cache
def register_heif() -> None:
    """Let Pillow open HEIC files, also where others call it."""
    from pillow_heif import register_heif_opener

    register_heif_opener()


def _check_kind(path: Path, picture: Image.Image) -> None:
    """Refuse pictures without one right reading."""
    if picture.format not in FORMATS:
        raise UserError(f"{path} is a file of kind {picture.format}, which is not read: save it as PNG or JPEG.")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format in ANIMATED:
        raise UserError(f"{path} holds {frames} pictures (an animation or pages): save the one that is meant as PNG.")
    if picture.mode in ("F", "LAB", "HSV") or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise UserError(
            f"{path} has pixels of kind {picture.mode}, whose brightness is not defined: save it as 8-bit PNG or JPEG."
        )


def _info(picture: Image.Image) -> PictureInfo:
    width, height = picture.size
    turned = _orientation(picture) in QUARTER_TURNS
    return PictureInfo(
        (height, width) if turned else (width, height), (width, height), bool(picture.has_transparency_data)
    )


def _orientation(picture: Image.Image) -> int | None:
    """The EXIF orientation that is left to apply."""
    if picture.format == "TIFF":
        return None  # Pillow turns TIFF files itself
    if picture.format == "PNG" and not {"exif", "xmp", "Raw profile type exif"} & set(picture.info):
        # Pillow would decode the whole picture to look for EXIF behind it.
        file = Path(picture.filename)  # pyright: ignore[reportAttributeAccessIssue]
        if b"eXIf" not in file.read_bytes():
            return None
    return picture.getexif().get(ORIENTATION)


def _ends_well(path: Path) -> bool:
    """Whether a JPEG file is whole, by its last bytes."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        return JPEG_END in file.read()


def _as_shown(picture: Image.Image, profile: bool = True) -> Image.Image:
    """The picture in mode RGB or RGBA, turned as it is shown.

    Args:
        picture: As opened.
        profile: Whether colours of an embedded colour profile are brought to sRGB.
    """
    picture.load()
    # Pillow turns TIFF files itself while it loads them.
    shown: Any = picture if picture.format == "TIFF" else ImageOps.exif_transpose(picture)
    if shown.mode in (*SIXTEEN_BITS, "I"):
        shades = np.asarray(shown).astype(np.float32).clip(0, 65535) / 257
        return Image.fromarray(shades.round().astype(np.uint8)).convert("RGB")
    transparent = shown.has_transparency_data
    if shown.mode not in ("RGB", "RGBA", "CMYK"):
        shown = shown.convert("RGBA" if transparent else "RGB")
    if profile and shown.info.get("icc_profile"):
        shown = _in_srgb(shown)
    return shown.convert("RGBA" if transparent else "RGB")


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The picture's colours in sRGB; a profile that is damaged or of another colour space is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        profile: Any = source.profile
        space = profile.xcolor_space.strip()
        if space != ("CMYK" if picture.mode == "CMYK" else "RGB"):
            return picture
        if "sRGB" in (profile.profile_description or ""):
            return picture
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        made = ImageCms.profileToProfile(picture, source, _srgb(), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return picture
    return picture if made is None else made


@cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
