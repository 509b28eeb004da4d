"""Reports of a finished round: metrics, a contact sheet and a turntable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.files import read_json, write_json
from eschernet_prior.base.images import write_image
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.features import StyleLoss
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.rounds.losses import Retraining
from style_nerf2nerf.rounds.report.measures import (
    HeldOutViews,
    least_style_distance,
    measure_held_out,
    nearest_cameras,
    style_distance,
)
from style_nerf2nerf.rounds.report.page import write_report
from style_nerf2nerf.rounds.report.previews import (
    TURNTABLE_SECONDS,
    contact_sheet,
    sheet_path,
    turntable_file,
    turntable_path,
    write_turntable,
)
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.rounds.storage import RoundFolder, RoundRequest, original_field

HELD_OUT_FILE = "held_out.safetensors"
"""File in the run folder: held-out views of the field before the first round."""
SHOWN = 12
"""Largest number of views in a round's metrics and contact sheet."""

TURNTABLE_SIZE = 256
"""Largest side in pixels of each half of a turntable."""


def set_aside(run_dir: Path, number: int) -> Path:
    """Take an undone round out of a run's reports and rename its pictures to `undone_NN`; can be repeated.

    Returns:
        The folder with the round's views.
    """
    folder = RoundFolder(run_dir, number)
    shutil.rmtree(folder.work, ignore_errors=True)
    aside = folder.path.with_name(f"undone_{number:02d}")
    if folder.path.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder.path, aside)
    for picture in (sheet_path(run_dir, number), turntable_file(run_dir, number)):
        if picture.is_file():
            os.replace(picture, picture.with_name(f"{aside.name}{picture.suffix}"))
    metrics = read_json(run_dir / "metrics.json") or {}
    if metrics.pop(folder.path.name, None) is not None:
        write_json(run_dir / "metrics.json", metrics)
    write_report(run_dir)
    return aside


class RoundReports:
    """Creates the reports of a run."""

    def __init__(self, pipeline: StyledRun, sources: ViewSources, style_loss: StyleLoss, run_dir: Path) -> None:
        """Set the parts of the run."""
        self.pipeline, self.sources, self.style_loss, self.run_dir = pipeline, sources, style_loss, run_dir

    def held_out(self) -> HeldOutViews:
        """The held-out views for the metrics of rounds."""
        names, cameras = self.pipeline.datamanager.held_out_views(self.pipeline.config.num_eval_views)
        return HeldOutViews(self.run_dir / HELD_OUT_FILE, names, cameras)

    def report(self, request: RoundRequest, retraining: Retraining, step: int) -> dict[str, Any]:
        """Measure a round on restyled and held-out views, and write its contact sheet and turntable.

        Args:
            request: The round's request.
            retraining: The targets of the round.
            step: Training step for the log.
        """
        cameras, names = self.pipeline.datamanager.style_cameras(), request.views
        folder = RoundFolder(self.run_dir, request.number)
        shown = evenly_spaced(SHOWN, len(names))
        views = [retraining.views[index] for index in shown]
        before = [folder.render(names[index]) for index in shown]
        after = [render_view(self.pipeline.model, cameras[index : index + 1]).colour for index in shown]
        columns = {"before": before}
        for style in range(len(views[0].restyled)):
            columns[f"restyled {style + 1}" if len(views[0].restyled) > 1 else "restyled"] = [
                view.restyled[style] for view in views
            ]
        path, sheet = sheet_path(self.run_dir, request.number), contact_sheet({**columns, "after": after})
        write_image(path, sheet)
        writer.put_image(f"Rounds/{request.number:02d}", sheet.permute(1, 2, 0), step)
        CONSOLE.print(f"Before | restyled | after: {path}", soft_wrap=True, markup=False)
        self._write_turntable(request.number, cameras)
        weights = self.pipeline.style_weights
        least = least_style_distance(self.style_loss, views, weights)
        if least:
            CONSOLE.print(f"No picture of this blend has a style distance below {least:.3f}.", markup=False)
        return {
            "style_views": [names[index] for index in shown],
            "style_weights": list(weights),
            "style_distance_before": style_distance(self.style_loss, before, views, weights),
            "style_distance_after": style_distance(self.style_loss, after, views, weights),
            "style_distance_least": least,
            "held_out": self._measure_held_out(request, retraining, cameras),
        }

    def _write_turntable(self, number: int, cameras: Cameras) -> None:
        frames = self.pipeline.config.turntable_frames
        if frames == 0:
            return
        before = original_field(self.pipeline, self.run_dir)
        assert before is not None, "the reconstruction has ended before the first round"
        path = turntable_file(self.run_dir, number)
        size = min(TURNTABLE_SIZE, max(int(cameras.height[0]), int(cameras.width[0])))
        way = turntable_path(cameras, frames, size)
        write_turntable(path, before, self.pipeline.model, way, frames / TURNTABLE_SECONDS)
        CONSOLE.print(f"Before | after: {path}", soft_wrap=True, markup=False)

    def _measure_held_out(self, request: RoundRequest, retraining: Retraining, cameras: Cameras) -> dict[str, Any]:
        """Compare held-out views with their own restyled pictures, or with those of the nearest restyled view."""
        held_out = self.held_out()
        if not held_out.names:
            return {"views": []}
        sizes = list(zip(*(side.flatten().tolist() for side in (held_out.cameras.height, held_out.cameras.width))))
        own = self.sources.held_out(held_out.names, sizes)
        nearest = nearest_cameras(held_out.cameras, cameras)
        targets = own or [retraining.views[index].restyled for index in nearest]
        masks = [self.sources.mask(name, size) for name, size in zip(held_out.names, sizes)]
        return {
            "views": held_out.names,
            "targets": "their own" if own else [request.views[index] for index in nearest],
            **measure_held_out(
                held_out.read(),
                held_out.views(self.pipeline),
                targets,
                masks,
                self.sources.styles if request.restyled_data else request.styles,
                self.style_loss,
            ),
        }
