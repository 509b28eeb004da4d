"""Read and write pictures and masks; no other module interprets the pixels of a file.

A picture is read as an image viewer shows it: rotated by its EXIF orientation, with palettes, 16-bit values and CMYK
converted to 8-bit RGB and embedded colour profiles to sRGB. Files without such an interpretation (high dynamic range,
raw files, animations) are refused by name.

A mask of any pixel format is read as in nerfstudio: every pixel that is not black is inside, including value 1 in a
mask of 0 and 1.
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
"""Suffixes of picture files, in lower case."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA", "AVIF", "HEIF", "JPEG2000")
"""Pillow's names of the supported formats."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
"""Formats that may contain several equivalent pictures; further pictures in an MPO or HEIC file are previews."""
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")
NOISE, WHITE = 16, 128
"""Grey values of a mask, of 255: the largest that may be noisy black, and the smallest that counts as white."""
LABELS = 8
"""Largest number of grey values, including black, that are interpreted as labels instead of noise."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
JPEG_END, TAIL = b"\xff\xd9", 64
"""End marker of a complete JPEG file, and the number of its last bytes that are searched for it."""
HEIF = {".heic", ".heif"}
HDR = {".exr", ".hdr", ".pfm", ".rgbe"}
RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"}
QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
ORIENTATION = 0x0112


class PictureInfo(NamedTuple):
    """Properties of a picture, read from its header."""

    size: tuple[int, int]
    """Width and height in pixels after the EXIF orientation is applied."""
    stored: tuple[int, int]
    """The same before the EXIF orientation is applied."""
    alpha: bool
    """Whether pixels can be transparent."""
    turned: bool
    """Whether an EXIF orientation changes what is stored."""


def picture_info(path: Path) -> PictureInfo:
    """Read the header of a picture.

    Raises:
        UserError: If the file is missing, is not a picture, or has an unsupported format.
    """
    with _opened(path) as picture:
        return _info(picture)


def check_picture(path: Path) -> PictureInfo:
    """Read the header of a picture, and check that the file is complete.

    PNG files are checked by their checksums, JPEG files by their last bytes; other files, and JPEG files without an end
    marker, are decoded.

    Raises:
        UserError: As in `picture_info`, or if the file is damaged or truncated.
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
    """Read a picture as a viewer shows it: RGB, or RGBA (not premultiplied) if some pixel is not fully opaque.

    Raises:
        UserError: If the file is missing, damaged, not a picture, or has an unsupported format.
    """
    with _opened(path) as picture:
        shown = _as_shown(picture)
    pixels = np.asarray(shown)
    return pixels[..., :3] if pixels.shape[-1] == 4 and pixels[..., 3].min() == 255 else pixels


def read_image(path: Path) -> Float[Tensor, "3 height width"]:
    """Read a picture as RGB in [0, 1], composed over white if it is transparent.

    Raises:
        UserError: As in `read_pixels`.
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

    Every pixel that is not black is inside, whether grey, coloured or from a palette; transparent pixels are outside.
    Values up to `NOISE` count as black if the mask contains white or has a lossy format. Otherwise, as in masks of 0
    and 1, they are inside; so are labels in a mask that also contains white, as in masks of 0, 1 and 255.

    Raises:
        UserError: As in `read_pixels`, or if it is a photo with a transparent background, whose dark pixels are
            ambiguous.
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
                f"The mask {path} has both colours and transparency: save it as a grey picture that is white inside "
                "and black outside."
            )
        inside &= opaque
    return torch.from_numpy(inside)


def _has_dark_label(shades: UInt8[np.ndarray, "height width"]) -> bool:
    """Whether a mask has at most `LABELS` values, including black, and one up to `NOISE` fills a 3 × 3 square."""
    (found,) = np.bincount(shades.ravel(), minlength=256).nonzero()
    if len(found) > LABELS or found[0] != 0 or not 0 < found[1:2].sum() <= NOISE or min(shades.shape) < 3:
        return False
    squares = np.lib.stride_tricks.sliding_window_view(shades, (3, 3))
    low, high = squares.min((2, 3)), squares.max((2, 3))
    return bool(((low == high) & (low > 0) & (low <= NOISE)).any())


def write_image(path: Path, image: Float[Tensor, "channels height width"]) -> None:
    """Write grey (one channel), RGB or RGBA in [0, 1] as an 8-bit image, atomically."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    with atomic_path(path) as partial:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(partial)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of a supported format; errors of reading it inside the block become a `UserError`."""
    suffix = path.suffix.lower()
    if suffix in HDR:
        raise UserError(f"{path} is a high dynamic range picture, which is not supported: save it as 8-bit PNG.")
    if suffix in RAW:
        raise UserError(f"{path} is a camera's raw file, which is not supported: convert it to PNG or JPEG.")
    if not path.is_file():
        raise UserError(f"There is no picture {path}: add the file, or correct its path.")
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
        raise UserError(f"{path} cannot be read: change its permissions.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more pixels than can be read safely: reduce its size.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}), because it is damaged or truncated: copy it "
            "again, or save it as PNG or JPEG."
        ) from None


@cache
def register_heif() -> None:
    """Enable HEIC files in Pillow for the whole process."""
    from pillow_heif import register_heif_opener

    register_heif_opener()


def _check_kind(path: Path, picture: Image.Image) -> None:
    """Refuse formats and pixel types without a unique interpretation."""
    if picture.format not in FORMATS:
        raise UserError(f"{path} has the format {picture.format}, which is not supported: save it as PNG or JPEG.")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format in ANIMATED:
        raise UserError(f"{path} contains {frames} pictures (an animation or pages): save one of them as PNG.")
    if picture.mode in ("F", "LAB", "HSV") or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise UserError(
            f"{path} has pixels of type {picture.mode}, whose brightness is not defined: save it as 8-bit PNG or JPEG."
        )


def _info(picture: Image.Image) -> PictureInfo:
    width, height = picture.size
    orientation = _orientation(picture)
    shown = (height, width) if orientation in QUARTER_TURNS else (width, height)
    if picture.format == "TIFF":
        orientation = picture.getexif().get(ORIENTATION)
    return PictureInfo(shown, (width, height), bool(picture.has_transparency_data), orientation not in (None, 1))


def _orientation(picture: Image.Image) -> int | None:
    """The EXIF orientation that has yet to be applied."""
    if picture.format == "TIFF":
        return None  # Pillow rotates TIFF files itself
    if picture.format == "PNG" and not {"exif", "xmp", "Raw profile type exif"} & set(picture.info):
        # Pillow would decode the whole picture to search for EXIF data after it.
        file = Path(picture.filename)  # pyright: ignore[reportAttributeAccessIssue]
        if b"eXIf" not in file.read_bytes():
            return None
    return picture.getexif().get(ORIENTATION)


def _ends_well(path: Path) -> bool:
    """Whether the last bytes of a JPEG file contain the end marker."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        return JPEG_END in file.read()


def _as_shown(picture: Image.Image, profile: bool = True) -> Image.Image:
    """Convert a picture to RGB or RGBA and rotate it as a viewer shows it.

    Args:
        picture: The opened picture.
        profile: Whether to convert colours from an embedded colour profile to sRGB.
    """
    picture.load()
    # Pillow rotates TIFF files itself while it loads them.
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
    """Convert colours to sRGB; a profile that is damaged or of another colour space is ignored, as in viewers."""
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
