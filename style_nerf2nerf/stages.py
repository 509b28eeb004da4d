"""The stages of a run inside nerfstudio's training loop: measure the reconstruction, then begin and end each round.

The trainer's callbacks call :meth:`Stages.enter` before every step and :meth:`Stages.leave` after the last. Whatever is
finished is on disk, so that a killed run goes on: a checkpoint before each round, the renders view by view, the
denoising step by step (see :mod:`style_nerf2nerf.rounds`).
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from safetensors.torch import save_file
from torch import Tensor

from eschernet_prior.datasets import CaptureFrame, read_image, write_dataset, write_image
from eschernet_prior.errors import UserError
from eschernet_prior.files import atomic_path, read_json, write_json
from eschernet_prior.trainer import RunTrainer
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.gallery import contact_sheet
from style_nerf2nerf.hub import ensure_ip_adapter, ensure_models
from style_nerf2nerf.measures import (
    HeldOutViews,
    measure_held_out,
    measure_reconstruction,
    nearest_cameras,
    style_distance,
)
from style_nerf2nerf.rendering import render_for_training, render_view
from style_nerf2nerf.retraining import Retraining, StyleView
from style_nerf2nerf.rounds import RoundFolder, RoundRequest
from style_nerf2nerf.view_geometry import ViewCameras
from style_nerf2nerf.view_sources import ViewSources

RECONSTRUCTION = "reconstruction.safetensors"
"""The field as the photos made it, in the run folder: where another style starts from."""
HELD_OUT = "held_out.safetensors"
"""Held-out views of that field, in the run folder."""
SHOWN = 12
"""Views that a round's measurement and contact sheet look at, at most."""

if TYPE_CHECKING:
    from style_nerf2nerf.pipeline import StylePipeline
    from style_nerf2nerf.restyler import Restyler


class Stages:
    """What a training of :class:`~style_nerf2nerf.pipeline.StylePipeline` does beside single steps.

    Not a module: the frozen networks it holds stay out of checkpoints and of the viewer's sight.
    """

    number: int
    """The round that is being retrained on, counted from 1; 0 while the field is reconstructed."""

    def __init__(self, pipeline: StylePipeline) -> None:
        """Check the options and get the style loss ready, so that what is missing shows before long work starts.

        Raises:
            UserError: an option that cannot work, or pictures or weights that cannot be had.
        """
        config, model = pipeline.config, pipeline.config.model
        if config.run_dir is None:
            raise UserError("This pipeline trains inside ns-train, whose configuration names the run folder.")
        if config.rounds.rounds > 0 and not config.restyled_data:
            ensure_models(config.restyle.source)
            if config.restyle.ip_adapter is not None:
                ensure_ip_adapter(config.restyle.ip_adapter)
        self.pipeline = pipeline
        self.config = config
        self.run_dir = config.run_dir
        self.number = 0
        self.sources = ViewSources(config, pipeline.datamanager)
        features = VGG19Features(
            model.vgg_weights, model.style_layers, torch.bfloat16 if model.style_half_precision else torch.float32
        ).to(pipeline.device)
        weights = dict(zip(model.style_layers, model.style_layer_weights)) or None
        self.style_loss = StyleLoss(features, model.style_directions, layer_weights=weights)
        self._retraining: Retraining | None = None
        self._restyler: Restyler | None = None
        self._stage_began = (0, time.monotonic())

    def enter(self, step: int, trainer: RunTrainer) -> None:
        """Called before every training step, with the training lock held: begin the step's round if it is a new one."""
        number = self.config.rounds.round_at(step)
        if number == self.number:
            return
        with trainer.unlocked():
            if step == self.config.rounds.begin_of(number):
                if step != trainer._start_step:
                    trainer.save_checkpoint(step - 1)
                self._end_stage(number - 1, step, trainer)
                self._restyle_once(number, trainer)
            self._show_round(number)
        self.pipeline.model.hold_geometry()
        self._stage_began = (step, time.monotonic())

    def leave(self, trainer: RunTrainer) -> None:
        """Called after the last step: measure and show what it led to."""
        if not trainer.stop_training:
            self._end_stage(self.config.rounds.round_at(trainer.step), trainer.step + 1, trainer)

    def retrain_losses(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """The losses of one retraining step: a whole view against its restyled ones, and the geometry's own terms.

        Returns:
            The outputs of the ray batch, the losses and the metrics, as nerfstudio's pipelines do.
        """
        assert self._retraining is not None
        pipeline, model = self.pipeline, self.pipeline.model
        index, camera = pipeline.datamanager.next_style_view(step)
        window = self._retraining.window(step, (int(camera.height[0]), int(camera.width[0])))
        view = render_for_training(model, camera, model.config.style_rays_per_chunk, window)
        rays, batch = pipeline.datamanager.next_train(step)
        outputs = pipeline._model(rays)
        losses = model.geometry_losses(outputs, batch)
        losses |= self._retraining.losses(index, view.colour, view.depth, pipeline.style_weights, window)
        return outputs, losses, {}

    def _restyle_once(self, number: int, trainer: RunTrainer) -> None:
        """Have the round's pictures on disk: make them, unless an interrupted run has."""
        folder, request = RoundFolder(self.run_dir, number), self._request(number)
        if not folder.is_done(request):
            self._restyle(folder, request, trainer)

    def _show_round(self, number: int) -> None:
        """Read the round's pictures and hand them to the data manager.

        Raises:
            UserError: they are not there although the field has been retrained on them.
        """
        datamanager, request = self.pipeline.datamanager, self._request(number)
        folder, first = RoundFolder(self.run_dir, number), RoundFolder(self.run_dir, 1)
        for each, wanted in ((folder, request), (first, self._request(1))):
            if not each.is_done(wanted):
                raise UserError(
                    f"{each.path} does not hold the views that this run was retraining on: give back the folder, or "
                    "start anew with another --timestamp."
                )
        frame, styles = self._frame(), len(request.styles)
        views = [
            StyleView(
                folder.restyled(name, styles),
                first.render(name),
                first.depth(name, frame),
                self.sources.mask(name, request.size),
            )
            for name in request.views
        ]
        self._retraining = Retraining(self.config.model, self.style_loss, views)
        datamanager.show_round(datamanager.style_cameras(), seed=number)
        self.number = number

    def _request(self, number: int) -> RoundRequest:
        cameras, model = self.pipeline.datamanager.style_cameras(), self.config.model
        return RoundRequest(
            number=number,
            step=self.config.rounds.begin_of(number),
            prompt=model.prompt,
            negative_prompt=model.negative_prompt,
            strength=self.config.rounds.strength_of(number),
            views=tuple(self.pipeline.datamanager.style_names()),
            size=(int(cameras.height[0]), int(cameras.width[0])),
            restyler=self.config.restyle.decisive(),
            more_prompts=tuple(model.more_prompts),
            restyled_data=tuple(str(folder) for folder in self.config.restyled_data),
            masks=self.config.masks,
        )

    def _frame(self) -> CaptureFrame:
        datamanager = self.pipeline.datamanager
        return CaptureFrame(datamanager.train_dataparser_outputs, datamanager.get_datapath())

    def _restyle(self, folder: RoundFolder, request: RoundRequest, trainer: RunTrainer) -> None:
        """Make a round's pictures: render, restyle all views together, write the dataset."""
        cameras = self.pipeline.datamanager.style_cameras()
        title = f"Round {request.number} of {self.config.rounds.rounds}"
        folder.open_work(request)
        began = time.monotonic()
        views = self._render(folder, request, cameras, title, trainer)
        rendered = time.monotonic()
        if request.restyled_data:
            restyled = [
                self.sources.restyled(style, request.views, request.size) for style in range(len(request.styles))
            ]
            provenance: dict[str, Any] = {"models": None}
        else:
            restyled, provenance = self._denoise(folder, request, views, title, trainer)
        seconds = {"render": round(rendered - began, 1), "restyle": round(time.monotonic() - rendered, 1)}
        frame, depths = self._frame(), [depth for _, depth in views]

        def write(path: Path) -> None:
            for style, pictures in enumerate(restyled):
                write_dataset(folder.style_folder(style, inside=path), cameras, frame, request.views, pictures, depths)
            for name, (colour, _) in zip(request.views, views):
                write_image(path / "renders" / f"{name}.png", colour)

        folder.finish(request, write, {**provenance, "seconds": seconds})
        styles = " and ".join(f"“{style}”" for style in request.styles)
        CONSOLE.print(f"{title}: {len(views)} views restyled as {styles} in {folder.path}", soft_wrap=True)

    def _render(
        self, folder: RoundFolder, request: RoundRequest, cameras: Cameras, title: str, trainer: RunTrainer
    ) -> list[tuple[Tensor, Tensor]]:
        """Colour and depth of every view of the round."""
        count = len(request.views)

        def render(index: int) -> tuple[Tensor, Tensor]:
            trainer.wait_or_stop()
            with trainer.train_lock:
                view = render_view(self.pipeline.model, cameras[index : index + 1])
            return view.colour, view.depth

        with get_progress(f"{title}: rendering {count} views", suffix="views") as progress:
            task = progress.add_task("", total=count)
            return folder.renders(request.views, render, lambda done: progress.update(task, completed=done))

    def _denoise(
        self,
        folder: RoundFolder,
        request: RoundRequest,
        views: list[tuple[Tensor, Tensor]],
        title: str,
        trainer: RunTrainer,
    ) -> tuple[list[list[Tensor]], dict[str, Any]]:
        """All views in each style, and what made them."""
        from style_nerf2nerf.restyler import Restyler

        options = self.config.restyle
        if self._restyler is None:
            self._restyler = Restyler.from_pretrained(options.source, device=self.pipeline.device)
        restyler = self._restyler
        if options.source == "embedded":
            CONSOLE.print("Restyling with the small embedded models: trained on ray-traced toys at 64², in ten styles.")
        colours, depths = torch.stack([colour for colour, _ in views]), torch.stack([depth for _, depth in views])
        cameras, masks = self.pipeline.datamanager.style_cameras(), self.sources.masks(request.views, request.size)
        reference = None if options.reference is None else read_image(options.reference)
        restyled = []
        for style, prompt in enumerate(request.styles):
            with get_progress(f"{title}: restyling {len(views)} views together", suffix="steps") as progress:
                task = progress.add_task("", total=None)

                def on_step(done: int, total: int) -> None:
                    progress.update(task, completed=done, total=total)  # noqa: B023
                    trainer.wait_or_stop()

                settings = options.settings(prompt, request.negative_prompt, request.strength)
                pictures = restyler.restyle(
                    colours,
                    depths,
                    **asdict(replace(settings, seed=options.seed + request.number)),
                    masks=masks,
                    reference=reference,
                    cameras=ViewCameras.from_nerfstudio(cameras) if options.warped_noise else None,
                    max_views_per_batch=options.max_views_per_batch,
                    on_step=on_step,
                    resume_dir=folder.work / f"restyle_{style + 1:02d}",
                )
            restyled.append(list(pictures))
        # The field has the GPU to itself while it is retrained.
        restyler.offload()
        return restyled, {"models": restyler.provenance()}

    def _end_stage(self, ended: int, steps: int, trainer: RunTrainer) -> None:
        """Measure what a stage led to, unless an interrupted run has.

        Args:
            ended: the round that ends here; 0 for the reconstruction.
            steps: the run's steps up to here.
            trainer: whose lock is taken while the field is looked at.
        """
        path = self.run_dir / "metrics.json"
        metrics = read_json(path) or {}
        name = f"round_{ended:02d}" if ended else "reconstruction"
        if name in metrics and metrics[name]["steps"] >= steps:
            return
        first_step, began = self._stage_began
        seconds = round(time.monotonic() - began, 1)
        if ended != self.number:
            self._show_round(ended)
        with trainer.train_lock:
            measured = self._measure_round() if ended else measure_reconstruction(self.pipeline)
            if ended == 0:
                self._held_out().keep(self.pipeline)
        if first_step >= trainer._start_step:
            # A stage that went on after an interruption took longer than this process knows.
            measured["seconds"] = seconds
        if ended == 0:
            with atomic_path(self.run_dir / RECONSTRUCTION) as partial:
                save_file(self.pipeline.model.field_state(), partial)
        write_json(path, {**metrics, name: {"steps": steps, **measured}})

    def _held_out(self) -> HeldOutViews:
        names, cameras = self.pipeline.datamanager.held_out_views(self.config.num_eval_views)
        return HeldOutViews(self.run_dir / HELD_OUT, names, cameras)

    def _measure_round(self) -> dict[str, Any]:
        """What the round did to restyled and to held-out views, and its contact sheet."""
        assert self._retraining is not None
        cameras, names = self.pipeline.datamanager.style_cameras(), self.pipeline.datamanager.style_names()
        folder = RoundFolder(self.run_dir, self.number)
        shown = np.unique(np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)).tolist()
        views = [self._retraining.views[index] for index in shown]
        before = [folder.render(names[index]) for index in shown]
        after = [render_view(self.pipeline.model, cameras[index : index + 1]).colour for index in shown]
        columns = {"before": before}
        for style in range(len(views[0].restyled)):
            columns[f"restyled {style + 1}" if len(views[0].restyled) > 1 else "restyled"] = [
                view.restyled[style] for view in views
            ]
        path = self.run_dir / "previews" / f"round_{self.number:02d}.png"
        write_image(path, contact_sheet({**columns, "after": after}))
        CONSOLE.print(f"Before | restyled | after: {path}", soft_wrap=True)
        return {
            "style_views": [names[index] for index in shown],
            "style_weights": list(self.pipeline.style_weights),
            "style_distance_before": style_distance(self.style_loss, before, views),
            "style_distance_after": style_distance(self.style_loss, after, views),
            "held_out": self._measure_held_out(cameras, names),
        }

    def _measure_held_out(self, cameras: Cameras, names: list[str]) -> dict[str, Any]:
        """Held-out views against their own restyled pictures, or else those of the nearest restyled view."""
        assert self._retraining is not None
        held_out = self._held_out()
        if not held_out.names:
            return {"views": []}
        size = (int(held_out.cameras.height[0]), int(held_out.cameras.width[0]))
        own = self.sources.held_out(held_out.names, size)
        nearest = nearest_cameras(held_out.cameras, cameras)
        targets = own or [self._retraining.views[index].restyled for index in nearest]
        masks = [self.sources.mask(name, size) for name in held_out.names]
        return {
            "views": held_out.names,
            "targets": "their own" if own else [names[index] for index in nearest],
            **measure_held_out(
                held_out.read(),
                held_out.views(self.pipeline),
                targets,
                masks,
                self.sources.styles,
                self.style_loss,
            ),
        }
