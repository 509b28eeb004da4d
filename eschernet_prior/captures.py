"""What can be said about a capture before anything is built: is it there, has it poses, has it enough views."""

from __future__ import annotations

import json
from pathlib import Path

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from eschernet_prior.dataparsers import ProceduralDataParserConfig
from eschernet_prior.errors import UserError

MIN_VIEWS = 2
"""A field needs parallax."""


def check_capture(dataparser: DataParserConfig, data: Path) -> None:
    """Refuse a capture that cannot be trained on, before anything is built.

    Captures of dataparsers other than nerfstudio-data and blender-data are only checked for being there.

    Args:
        dataparser: the configuration that will read it.
        data: the folder, or the transforms.json in it.

    Raises:
        UserError: no such folder, no poses, too few views, or no such embedded scene.
    """
    if isinstance(dataparser, ProceduralDataParserConfig):
        dataparser.check()
        return
    if not data.exists():
        raise UserError(f"There is no {data}: give --data the folder of a capture that ns-process-data made.")
    if isinstance(dataparser, NerfstudioDataParserConfig):
        _check_transforms(data if data.suffix == ".json" else data / "transforms.json", dataparser)
    elif isinstance(dataparser, BlenderDataParserConfig):
        _read_frames(data / "transforms_train.json")


def _check_transforms(path: Path, dataparser: NerfstudioDataParserConfig) -> None:
    frames = _read_frames(path)
    missing = sum(not (path.parent / frame.get("file_path", "")).is_file() for frame in frames)
    if missing:
        raise UserError(
            f"{missing} of the {len(frames)} images that {path} names are not there: run ns-process-data again."
        )
    factor = dataparser.downscale_factor
    if factor is not None and factor > 1 and not (path.parent / f"images_{factor}").is_dir():
        there = [p.name for p in sorted(path.parent.glob("images_*")) if p.is_dir()]
        raise UserError(
            f"There is no folder images_{factor} in {path.parent} for --downscale-factor {factor}"
            + (
                f": there is {', '.join(there)}."
                if there
                else ": leave the option out, or run ns-process-data to make it."
            )
        )


def _read_frames(path: Path) -> list[dict]:
    if not path.is_file():
        raise UserError(
            f"There are no poses: {path} is missing. Make it with "
            f"ns-process-data images --data PHOTOS --output-dir {path.parent}."
        )
    try:
        frames = json.loads(path.read_text("utf8")).get("frames", [])
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not a JSON file of nerfstudio's layout: run ns-process-data again.") from None
    if len(frames) < MIN_VIEWS:
        raise UserError(
            f"{path} has {len(frames)} views: a field needs at least {MIN_VIEWS}, and about 30 for a whole scene."
        )
    return frames
