"""Prepare photos, or frames of a video, for the search of their poses: upright, 8-bit, of bounded size.

On disk: `images/IMG_0001.jpg` …, named like the photos, or `images/frame_00001.jpg` … for a video, and
`pictures.json`, which describes each picture and is written last. JPEG files that need no conversion are copied
unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from PIL import ExifTags, Image

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, write_json
from eschernet_prior.base.images import RAW, SUFFIXES, picture_info, read_pixels
from eschernet_prior.data.video_frames import write_sharp_frames

MIN_PHOTOS = 3
"""Fewest photos: errors in a scene reconstructed from two photos are only detected by a third."""
MIN_SIDE = 64
"""Least length of a photo's shorter side in pixels."""
DIAGONAL_35MM = math.hypot(36.0, 24.0)
"""Diagonal in millimetres of the film to which EXIF's focal length in 35 mm film refers."""
JPEG_QUALITY = 95
MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
"""Millimetres by EXIF's unit of the focal plane's resolution."""
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")
"""Suffixes of video files, in lower case, for messages; other files are tried as well."""
PICTURES_FILE = "pictures.json"


@dataclass(frozen=True)
class Picture:
    """A prepared photo or frame."""

    name: str
    """File name in `images/`."""
    source: str
    """File name of the photo, or the time in the video."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    lens: str
    """Camera, lens and focal length in the EXIF data; empty if there are none."""
    focal: float | None
    """Focal length in pixels of this picture according to the EXIF data; None if unknown."""
    alpha: bool
    """Whether some pixels are transparent."""


def is_video(data: Path) -> bool:
    """Whether the path is a file other than a picture."""
    return data.is_file() and data.suffix.lower() not in {*SUFFIXES, *RAW}


def list_photos(folder: Path) -> list[Path]:
    """List the photos of a folder in the order of their names, with numbers compared by value.

    Raises:
        UserError: If there is no such folder, or it contains fewer than three photos or a capture with poses.
    """
    if not folder.exists():
        raise UserError(f"There is no {folder}: set --data to a folder of photos or a video file.")
    if folder.is_file():
        raise UserError(f"{folder} is a single picture: set --data to the folder with all photos of the scene.")
    if (folder / "transforms.json").is_file():
        raise UserError(
            f"{folder} is a capture that already has poses (transforms.json): read it with nerfstudio-data instead of "
            f"photos-data, or set --data to the folder of its photos, such as {folder / 'images'}."
        )
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    photos = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=_by_number)
    if len(photos) < MIN_PHOTOS:
        _refuse_few(folder, files, len(photos))
    return photos


def _refuse_few(folder: Path, files: Sequence[Path], count: int) -> None:
    raw = sum(path.suffix.lower() in RAW for path in files)
    if raw:
        raise UserError(f"{folder} contains {raw} raw files of a camera, which are not supported: save them as JPEG.")
    if not count:
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        full = next((each for each in inside if any(p.suffix.lower() in SUFFIXES for p in each.iterdir())), None)
        videos = [path for path in sorted(files) if path.suffix.lower() in VIDEOS]
        hint = (
            f"the folder {full} contains some, so set --data to that folder"
            if full
            else f"for the video set --data to {videos[0]}"
            if videos
            else "set --data to a folder of JPEG, PNG, HEIC or WebP files"
        )
        raise UserError(f"There are no photos in {folder}: {hint}.")
    raise UserError(
        f"There {'is 1 photo' if count == 1 else f'are {count} photos'} in {folder}: poses need at least {MIN_PHOTOS}, "
        "a whole scene about 30, taken from all sides."
    )


def _by_number(path: Path) -> tuple[Any, ...]:
    """Sort key that puts IMG_2 before IMG_10; names that compare equal are ordered as text."""
    parts = re.split(r"(\d+)", path.stem.lower())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), path.name


def content_digest(files: Sequence[Path], options: dict[str, Any]) -> str:
    """Compute a digest of the names and contents of files, and of options.

    Raises:
        UserError: If a file cannot be read.
    """

    def digest(path: Path) -> str:
        content = hashlib.blake2b(digest_size=16)
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): change its permissions or copy it again."
            ) from None
        return content.hexdigest()

    with ThreadPoolExecutor(_threads()) as pool:
        digests = list(pool.map(digest, files))
    content = json.dumps([options, [[path.name, each] for path, each in zip(files, digests)]], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def read_pictures(folder: Path) -> list[Picture] | None:
    """Read the list of pictures prepared in a folder; None if they are not complete."""
    path = folder / PICTURES_FILE
    if not path.is_file():
        return None
    return [Picture(**each) for each in json.loads(path.read_text("utf8"))]


def prepare_pictures(data: Path, folder: Path, max_size: int, video_frames: int) -> list[Picture]:
    """Convert photos, or selected frames of a video, to pictures; pictures already written are kept.

    Args:
        data: A folder of photos, or a video file.
        folder: Output folder of `images/` and `pictures.json`.
        max_size: Largest length of the longer side in pixels; larger photos are reduced.
        video_frames: Number of frames of a video to use.

    Raises:
        UserError: If a photo cannot be read or the video cannot be decoded.
    """
    done = read_pictures(folder)
    if done is not None:
        return done
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if is_video(data):
        times = write_sharp_frames(data, folder / "images", video_frames, max_size)
        pictures = []
        for name, time in times.items():
            width, height = picture_info(folder / "images" / name).size
            pictures.append(Picture(name, f"{time:.2f} s", width, height, "video", None, False))
    else:
        photos = _without_copies(list_photos(data))
        stems = picture_stems([photo.name for photo in photos])
        with ThreadPoolExecutor(_threads()) as pool, get_progress("Reading the photos", suffix="photos") as progress:
            task = progress.add_task("", total=len(photos))

            def prepared(index: int) -> Picture:
                picture = _prepare(photos[index], folder / "images", stems[index], max_size)
                progress.advance(task)
                return picture

            pictures = list(pool.map(prepared, range(len(photos))))
    write_json(folder / PICTURES_FILE, [asdict(picture) for picture in pictures])
    return pictures


def _without_copies(photos: Sequence[Path]) -> list[Path]:
    """Remove photos that are exact copies of others.

    Raises:
        UserError: If fewer than three photos remain.
    """
    kept: dict[tuple[int, bytes], Path] = {}
    for path in photos:
        kept.setdefault((path.stat().st_size, hashlib.blake2b(path.read_bytes()).digest()), path)
    if len(kept) < len(photos):
        copies = sorted({path.name for path in photos} - {path.name for path in kept.values()})
        CONSOLE.print(f"Ignored, because they are copies of other photos: {', '.join(copies)}", markup=False)
    if len(kept) < MIN_PHOTOS:
        raise UserError(
            f"Of the {len(photos)} photos in {photos[0].parent} only {len(kept)} differ: poses need at least "
            f"{MIN_PHOTOS} photos, taken from different places."
        )
    return list(kept.values())


def picture_stems(names: Sequence[str]) -> list[str]:
    """Choose unique file names without suffix: those of the photos, without blanks and special characters.

    Args:
        names: File names of the photos, which may differ only in suffix or capitalisation.
    """
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = stem = re.sub(r"[^\w.-]", "_", Path(name).stem)
        number = 2
        while stem.lower() in taken:
            stem, number = f"{plain}_{number}", number + 1
        taken.add(stem.lower())
        stems.append(stem)
    return stems


def _prepare(photo: Path, folder: Path, stem: str, max_size: int) -> Picture:
    """Write one photo as a picture, unless it exists."""
    info = picture_info(photo)
    if min(info.size) < MIN_SIDE:
        raise UserError(
            f"{photo} has {info.size[0]} × {info.size[1]} pixels, too few to match it with other photos: use photos "
            f"of at least {MIN_SIDE} pixels per side, preferably 500."
        )
    with Image.open(photo) as image:
        exif, kind = image.getexif(), image.format
        turned = exif.get(ExifTags.Base.Orientation, 1) != 1
        as_shown = kind == "JPEG" and image.mode == "RGB" and not turned and not image.info.get("icc_profile")
    scale = min(1.0, max_size / max(info.size))
    size = (round(info.size[0] * scale), round(info.size[1] * scale))
    written = next((name for name in (f"{stem}.jpg", f"{stem}.png") if (folder / name).is_file()), None)
    pixels = read_pixels(photo if written is None else folder / written)
    alpha = pixels.shape[-1] == 4
    if alpha and not pixels[..., 3].any():
        raise UserError(f"{photo} is completely transparent: save it with its object opaque, or remove it.")
    if written is None:
        lossless = kind == "PNG" and scale == 1.0
        written = f"{stem}.png" if lossless or alpha else f"{stem}.jpg"
        if as_shown and scale == 1.0:
            with atomic_path(folder / written) as partial:
                shutil.copyfile(photo, partial)
        else:
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            write_picture(picture if scale == 1.0 else picture.resize(size, Image.Resampling.LANCZOS), folder / written)
    lens, focal = _lens(exif, max(info.size), math.hypot(*info.size))
    return Picture(written, photo.name, *size, lens, None if focal is None else focal * scale, alpha)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the path's suffix, atomically."""
    with atomic_path(path) as partial:
        picture.save(partial, quality=JPEG_QUALITY, subsampling=0)


def _lens(exif: Image.Exif, longest: int, diagonal: float) -> tuple[str, float | None]:
    """Read a name of camera and lens, and the focal length in pixels of the original photo.

    Args:
        exif: EXIF data of the photo.
        longest: Length of its longer side in pixels.
        diagonal: Length of its diagonal in pixels.
    """
    detail = exif.get_ifd(ExifTags.IFD.Exif)
    tags = ExifTags.Base
    film, focal = _number(detail.get(tags.FocalLengthIn35mmFilm)), _number(detail.get(tags.FocalLength))
    parts = [exif.get(tags.Make), exif.get(tags.Model), detail.get(tags.LensModel), focal, film]
    name = " ".join(str(part).strip("\0 ") for part in parts if part)
    if film:
        return name, film / DIAGONAL_35MM * diagonal
    density = _number(detail.get(tags.FocalPlaneXResolution))
    unit = MILLIMETRES.get(int(_number(detail.get(tags.FocalPlaneResolutionUnit)) or 2))
    across = _number(detail.get(tags.ExifImageWidth))
    down = _number(detail.get(tags.ExifImageHeight))
    if not (focal and density and unit and across and down):
        return name, None
    # The density is that of the sensor's pixels: a photo that was made smaller later has fewer.
    return name, focal * density / unit * longest / max(across, down)


def _number(value: Any) -> float | None:
    """Convert an EXIF value to a finite number above 0; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def write_smaller(folder: Path, names: Sequence[str], factors: Sequence[int], on_done: Callable[[], None]) -> None:
    """Write reduced pictures `images_2`, `images_4`, … whose pixels are means of `factor`² pixels of `images`.

    Remaining rows and columns are cut off: a reduced picture is `width // factor` pixels wide, as nerfstudio assumes,
    and its intrinsics are exactly those of the full-size picture divided by the factor.

    Args:
        folder: The folder of the dataset.
        names: Files in `images/`.
        factors: Factors of the reduction.
        on_done: Called after each picture.
    """

    def smaller(name: str) -> None:
        missing = [factor for factor in factors if not (folder / f"images_{factor}" / name).is_file()]
        if missing:
            with Image.open(folder / "images" / name) as image:
                image.load()
            for factor in missing:
                width, height = image.width // factor, image.height // factor
                box = (0, 0, width * factor, height * factor)
                write_picture(image.reduce(factor, box), folder / f"images_{factor}" / name)
        on_done()

    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(smaller, names))


def _threads() -> int:
    return min(8, os.cpu_count() or 1)
