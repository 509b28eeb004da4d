"""Recreate the pictures of a run from its folder.

    python -m style_nerf2nerf.gallery RUN

- `previews/round_01.png` …: before | restyled | after, one contact sheet per round;
- `previews/turntable_02.webp`: a path through the views, before the first round | after the last (here the second).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import read_json
from eschernet_prior.base.images import read_image, write_image
from eschernet_prior.base.runs import check_run
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.evaluation.finished_runs import load_run
from style_nerf2nerf.pipeline import StylePipeline
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.rounds.report.page import write_report
from style_nerf2nerf.rounds.report.previews import (
    ROWS,
    TURNTABLE_SECONDS,
    contact_sheet,
    sheet_path,
    turntable_file,
    turntable_path,
    write_turntable,
)
from style_nerf2nerf.rounds.storage import RECONSTRUCTION, RoundFolder, finished_rounds, original_field

TURNTABLES = {"cpu": (128, 24), "cuda": (512, 36)}
"""By device: the longest side in pixels of each half of the turntable, at most, and its frames, where the command line
names none."""


@dataclass(frozen=True)
class GalleryOptions:
    """Options of the command line."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder: outputs/<data>/<method>/<time>."""
    frames: int | None = None
    """Number of frames of the turntable; default: 24, on a GPU 36."""
    frames_per_second: float | None = None
    """Frames of the turntable per second; default: a turn in three seconds."""
    size: int | None = None
    """Longest side in pixels of each half of a frame; default: twice that of the restyled views, at most 128, on a GPU
    at most 512."""

    def check(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            UserError: if the folder is not a run with a finished round, or a number is out of range.
        """
        check_run(self.run)
        if not finished_rounds(self.run) or not (self.run / RECONSTRUCTION).is_file():
            raise UserError(f"{self.run} has no finished round: resume the run first.")
        frames, size = (16 if given is None else given for given in (self.frames, self.size))
        a_second = 1.0 if self.frames_per_second is None else self.frames_per_second
        if frames < 2 or not 0 < a_second <= 50 or not 16 <= size <= 4096:
            raise UserError("A turntable has at least 2 --frames, at most 50 a second, and 16 to 4096 pixels a side.")


def starts_from_photos(run: Path, number: int) -> bool:
    """Whether a round (counted from 1) left what the one before it led to, and began with the photos' field again."""
    request = read_json(RoundFolder(run, number).path / "manifest.json")["request"]
    return request.get("start") == "photos"


def sheet_of_round(run: Path, number: int, pipeline: StylePipeline) -> Float[Tensor, "3 height width"]:
    """The contact sheet of a round (counted from 1), RGB in [0, 1].

    The views after a round are the renders of the next one; those of the last round are rendered now.
    """
    folder, following = RoundFolder(run, number), RoundFolder(run, number + 1)
    names, styles = folder.contents()
    names = [names[index] for index in evenly_spaced(ROWS, len(names))]
    columns = {"before": [folder.render(name) for name in names]}
    for style in range(styles):
        pictures = folder.style_folder(style) / "images"
        columns[f"restyled {style + 1}" if styles > 1 else "restyled"] = [
            read_image(pictures / f"{name}.png") for name in names
        ]
    if number + 1 in finished_rounds(run):
        columns["after"] = [following.render(name) for name in names]
    else:
        cameras = pipeline.datamanager.cameras_of(names)
        columns["after"] = [render_view(pipeline.model, cameras[i : i + 1]).colour for i in range(len(names))]
    return contact_sheet(columns)


def main(options: GalleryOptions, load: Callable[[Path], StylePipeline] = load_run) -> None:
    """Create all pictures of a run.

    Args:
        options: options of the command line.
        load: function that loads the run.

    Raises:
        UserError: if there is no such run, or it has no finished round.
    """
    options.check()
    pipeline = load(options.run)
    finished = finished_rounds(options.run)
    for number in finished:
        path = sheet_path(options.run, number)
        if number + 1 in finished and starts_from_photos(options.run, number + 1):
            continue  # what this round led to was looked at when it ended, and is not on disk any more
        write_image(path, sheet_of_round(options.run, number, pipeline))
        CONSOLE.print(f"Before | restyled | after: {path}", soft_wrap=True, markup=False)
    before = original_field(pipeline, options.run)
    assert before is not None, "options.check() has seen it"
    turntable = turntable_file(options.run, finished[-1])
    cameras = pipeline.datamanager.cameras_of(RoundFolder(options.run, 1).contents()[0])
    largest, frames = TURNTABLES["cuda" if pipeline.model.device.type == "cuda" else "cpu"]
    frames = options.frames or frames
    size = options.size or min(2 * max(int(cameras.height[0]), int(cameras.width[0])), largest)
    path = turntable_path(cameras, frames, size)
    write_turntable(turntable, before, pipeline.model, path, options.frames_per_second or frames / TURNTABLE_SECONDS)
    CONSOLE.print(f"Before | after: {turntable}", soft_wrap=True, markup=False)
    CONSOLE.print(f"All of it on one page: {write_report(options.run)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(GalleryOptions, description=cast(str, __doc__)))
