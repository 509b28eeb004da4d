"""State machine of a run: reconstruct, then for each round render, restyle, retrain and report.

The trainer's callbacks call `RoundRunner.enter` before every step and `RoundRunner.leave` after the last; between
steps it calls `RoundRunner.act` to handle requests from the viewer. All finished work is on disk, so that an
interrupted run can be resumed: the schedule, a checkpoint before each round, and each finished picture of a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base.console import say
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, read_json, write_json
from eschernet_prior.base.run_folder import read_checkpoint
from eschernet_prior.base.trainer import RunTrainer
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.options import WORDS, StyledRun
from style_nerf2nerf.rendering import outputs_as_rendered, render_for_training
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.models.hub import locate_clipseg
from style_nerf2nerf.rounds.losses import Retraining, StyleView
from style_nerf2nerf.rounds.mask_shapes import MaskShape, masks_folder
from style_nerf2nerf.rounds.readiness import check_models, check_view_sizes
from style_nerf2nerf.rounds.report.measures import measure_reconstruction
from style_nerf2nerf.rounds.report.page import write_report
from style_nerf2nerf.rounds.report.reports import RoundReports, set_aside
from style_nerf2nerf.rounds.restyling import RoundRestyler
from style_nerf2nerf.rounds.schedule import BegunRound, RoundSchedule
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.rounds.storage import RECONSTRUCTION, RoundFolder, RoundRequest, RoundSettings, original_field
from style_nerf2nerf.rounds.viewer.panel import StageProgress, StylePanel, TextLine
from style_nerf2nerf.rounds.word_masks import check_clipseg


class PlanChange(Exception):
    """Leaves nerfstudio's training loop, at a step boundary or inside a stage, to handle a request from the viewer."""


class RoundRunner:
    """State machine of a run: reconstruct, then for each round render, restyle, retrain and report.

    It is not a module, so that its frozen networks are neither in checkpoints nor searched for viewer elements.
    """

    number: int
    """The current round, counted from 1; 0 during the reconstruction."""
    retraining: Retraining | None
    """Targets and losses of the current round; None during the reconstruction."""
    training: bool
    """Whether a stage is being trained, which a new round would end early."""

    def __init__(self, pipeline: StyledRun, status: TextLine | None = None) -> None:
        """Check options, models and given pictures, and build the style loss.

        Args:
            pipeline: The capture, the field and the options.
            status: The viewer's status line; default: a new one.

        Raises:
            UserError: If an option cannot work, or pictures or weights are missing.
        """
        config, model = pipeline.config, pipeline.config.model
        if config.run_dir is None:
            raise UserError("This pipeline can only be trained by ns-train, whose configuration sets the run folder.")
        self.pipeline = pipeline
        self.config = config
        self.run_dir = config.run_dir
        self.number = 0
        self.retraining = None
        self.training = False
        self.schedule = RoundSchedule(config.run_dir, config.rounds)
        self.sources = ViewSources(config, pipeline.datamanager)
        pipeline.datamanager.restyled_names = self.sources.restyled_names
        self.sources.find_masks(pipeline.datamanager)
        if config.rounds.rounds > 0 and not config.restyled_data:
            if config.restyle.warped_noise:
                ViewCameras.from_nerfstudio(pipeline.datamanager.style_cameras())  # refuses other lenses
            # After all other checks, because models may have to be downloaded.
            check_models(pipeline)
        if config.rounds.rounds > 0 and config.masks == WORDS:
            check_clipseg(locate_clipseg(config.mask_model))
        dtype = torch.bfloat16 if model.style_half_precision else torch.float32
        features = VGG19Features(model.vgg_weights, model.loss_layers, dtype).to(pipeline.model.device)
        check_view_sizes(pipeline, features.min_size)
        shares = model.style_layer_weights or (1.0,) * len(model.style_layers)
        self.style_loss = StyleLoss(
            features,
            model.style_directions,
            layer_weights=dict(zip(model.style_layers, shares)),
            windows=model.style_windows,
        )
        self.panel = StylePanel(
            self.schedule.next_settings or self._configured_settings(),
            self.schedule.strength_of_next,
            config.check_round,
            prompts=not config.restyled_data,
            status=status,
        )
        self.panel.describe = self.describe
        self.on_change: Callable[[], None] = lambda: None
        """Called when the field has changed other than by a training step."""
        self._reports = RoundReports(pipeline, self.sources, self.style_loss, config.run_dir)
        self._progress = StageProgress(self.panel.tell)
        self._maker: RoundRestyler | None = None
        self._stage_began = (0, time.monotonic())
        self._process_began = 0

    def attach(self, trainer: RunTrainer) -> None:
        """Connect to the trainer after it has loaded its checkpoint, and complete an interrupted undo.

        Called once per process.
        """
        self._process_began = trainer._start_step
        self._maker = RoundRestyler(self.pipeline, self.sources, self._progress, lambda: self._keep_going(trainer))
        if self.schedule.undoing:
            self._undo(trainer._start_step, trainer)
        self.panel.num_begun = self._undoable
        self._progress.begin(self._title(self.schedule.number_at(trainer._start_step)))
        self.panel.refresh()

    def enter(self, step: int, trainer: RunTrainer) -> None:
        """Begin the round of a step if it is new; called before every training step, with the training lock held.

        Raises:
            PlanChange: If a request from the viewer is pending; the step has not been trained.
        """
        if self.panel.pending:
            raise PlanChange
        self.schedule.choose(self.panel.settings())
        while (due := self.schedule.next_begin) is not None and due <= step:
            settings = self._valid_settings()
            if settings.mask is not None and not self._draw_masks(due, settings.mask):
                settings = replace(settings, mask=None)
                say("No view shows anything inside the shape in the viewer: the round changes the whole scene.")
            self.schedule.begin(due, settings)
        number = self.schedule.number_at(step)
        if number != self.number:
            self._begin(number, step, trainer)
        elif not self.training:
            self.training = True
            self.panel.refresh()
        _, begin, end = self.stage_at(step)
        self._progress.update(step - begin, max(end, step + 1) - begin)

    def stage_at(self, step: int) -> tuple[str, int, int]:
        """The stage of a step: its title, its first step, and the first step after it."""
        number, rounds = self.schedule.number_at(step), self.config.rounds
        if number == 0:
            return self._title(0), rounds.first_step, self.schedule.reconstruction_end
        begin = self.schedule.begun[number - 1].begin
        return f"{self._title(number)}: retraining", begin, begin + rounds.retrain_steps

    def leave(self, trainer: RunTrainer) -> None:
        """Report the last round; called after the last step."""
        steps = trainer.step + 1
        if not trainer.stop_training and self.schedule.end != steps:
            self._end_stage(self.schedule.number_at(trainer.step), steps, trainer)
        # nerfstudio does not write its log again after the last step.
        writer.write_out_storage()
        done, self.training = len(self.schedule.begun), False
        self.panel.tell(f"Finished after {done} {'round' if done == 1 else 'rounds'}.")
        self.panel.refresh()
        self.on_change()

    def act(self, step: int, trainer: RunTrainer) -> bool:
        """Handle a request from the viewer; called between steps, with the training lock held.

        Args:
            step: The next step to train.
            trainer: The trainer, whose state is saved and loaded.

        Returns:
            Whether there was a request.
        """
        request = self.panel.take()
        if request is None:
            return False
        if request.button == "restyle":
            mask = request.settings.mask
            if mask is not None and not self._draw_masks(step, mask):
                self.panel.refuse("No view shows anything inside the shape: drag it over the scene.")
                return True
            self.schedule.begin(step, request.settings)
            self.number = min(self.number, len(self.schedule.begun) - 1)
        elif self._undoable:
            self.schedule.begin_undo()
            self._undo(step, trainer)
        self.panel.num_begun = self._undoable
        self.panel.refresh()
        self.on_change()
        return True

    def _draw_masks(self, step: int, shape: MaskShape) -> bool:
        """Write the masks of a round that begins at a step; return whether any view sees inside the shape."""
        assert self._maker is not None
        number = self.schedule.next_number(step)
        return self._maker.draw_masks(masks_folder(self.run_dir, number), shape, self.run_dir)

    def _use_masks(self, number: int) -> None:
        """Use the masks of a begun round's shape, or else the run's own masks."""
        drawn = self.schedule.begun[number - 1].settings.mask is not None
        self.sources.use_masks(masks_folder(self.run_dir, number) if drawn else None)

    def describe(self, settings: RoundSettings) -> str:
        """Say what the panel's buttons would do now.

        Args:
            settings: Settings of the next round.
        """
        number = len(self.schedule.begun)
        replaced = self.schedule.begun[-1].begin if self.panel.being_made else None
        plan = f"Restyle now: {self.schedule.describe(settings, replaced, words=not self.config.restyled_data)}"
        if replaced is not None:
            plan += f"; it replaces round {number}, which is being made"
        elif self.training:
            plan += f"; it ends {f'round {number}' if number else 'the reconstruction'} here"
        return f"{plan}.{f' Undo round: restores the state before round {self._undoable}.' if self._undoable else ''}"

    def retrain_losses(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Compute the losses of one retraining step: on rays of all restyled views, and at some steps on a whole view.

        Returns:
            The outputs of the ray batch, the losses and the metrics, as in nerfstudio's pipelines.
        """
        assert self.retraining is not None
        pipeline, model, retraining = self.pipeline, self.pipeline.model, self.retraining
        weights = pipeline.style_weights
        begin = self.schedule.begun[self.number - 1].begin
        rays, targets = retraining.rays(step, pipeline.datamanager.config.train_num_rays_per_batch)
        outputs = outputs_as_rendered(model, rays)
        losses = model.geometry_losses(outputs, targets.base)
        progress = (step - begin) / self.config.rounds.retrain_steps
        losses |= retraining.ray_losses(outputs["rgb"], targets, weights, progress)
        if retraining.looks_at_view(step - begin):
            index, camera = pipeline.datamanager.next_style_view(step // model.config.style_every)
            window = retraining.window(step, (int(camera.height[0]), int(camera.width[0])))
            view = render_for_training(model, camera, model.config.style_rays_per_chunk, window)
            losses |= retraining.losses(index, view.colour, view.depth, weights, window)
        error = F.mse_loss(outputs["rgb"].detach(), targets.base)
        return outputs, losses, {"psnr_to_base": -10 * error.clamp(min=1e-10).log10()}

    @property
    def _undoable(self) -> int:
        """Number of the last round if the state before it is on disk, else 0."""
        number = len(self.schedule.begun)
        return number if number and self.schedule.undo_path(number).is_file() else 0

    def _keep_going(self, trainer: RunTrainer) -> None:
        """Wait while training is paused, and raise if a request is pending; called between parts of a long stage."""
        trainer.wait_or_stop()
        if self.panel.pending:
            raise PlanChange

    def _begin(self, number: int, step: int, trainer: RunTrainer) -> None:
        """Begin a round, or resume it after an interruption."""
        assert self._maker is not None
        begun = self.schedule.begun[number - 1]
        with trainer.unlocked():
            if step == begun.begin:
                if step > 0 and not trainer.has_checkpoint(step - 1):
                    trainer.save_checkpoint(step - 1)
                trainer.write_state(self.schedule.undo_path(number), step - 1)
                self.panel.num_begun = self._undoable
                self._end_stage(number - 1, step, trainer)
                self._make(number, begun, trainer)
            self._show_round(number)
        if step == begun.begin and begun.start == "photos":
            self._start_from_photos(trainer)
        self.pipeline.model.hold_geometry()
        self._stage_began = (step, time.monotonic())
        self.panel.num_begun = self._undoable
        self.training = True
        self.panel.refresh()
        self._progress.begin(f"{self._title(number)}: retraining", step - begun.begin)
        self.on_change()

    def _make(self, number: int, begun: BegunRound, trainer: RunTrainer) -> None:
        """Make a round's pictures; a repeated request with the same settings meanwhile has no effect."""
        assert self._maker is not None
        field = original_field(self.pipeline, self.run_dir) if begun.start == "photos" else None
        self._use_masks(number)
        self.panel.being_made = self._settings_of(begun)
        self.panel.refresh()
        try:
            self._maker.make(
                RoundFolder(self.run_dir, number),
                self._request(number),
                self._title(number),
                trainer,
                field or self.pipeline.model,
            )
        finally:
            self.panel.being_made = None

    def _settings_of(self, begun: BegunRound) -> RoundSettings:
        """The panel's settings if the begun round has the same, apart from an unset strength; else the round's."""
        now, begun_with = self.panel.settings(), begun.settings
        if replace(now, strength=begun_with.strength, start=begun_with.start) != begun_with:
            return begun_with
        return now if now.strength in (None, begun_with.strength) else begun_with

    def _start_from_photos(self, trainer: RunTrainer) -> None:
        """Load the reconstructed field, and reset the optimizers' state."""
        path = self.run_dir / RECONSTRUCTION
        self.pipeline.model.load_field(load_file(path), str(path))
        for optimizer in trainer.optimizers.optimizers.values():
            optimizer.state.clear()

    def _undo(self, step: int, trainer: RunTrainer) -> None:
        """Undo the last round: restore the state before it, and set its pictures aside.

        All parts can be repeated, so that an interrupted undo is completed by the resumed run.
        """
        number = len(self.schedule.begun)
        path = self.schedule.undo_path(number)
        trainer.load_state(read_checkpoint(path), path)
        trainer.save_checkpoint(max(step - 1, 0))
        aside = set_aside(self.run_dir, number)
        self.schedule.finish_undo(step)
        path.unlink(missing_ok=True)
        self.number = 0
        self.retraining = None
        if number > 1:
            self._show_round(number - 1)
        CONSOLE.print(f"Round {number} is undone; its views are in {aside}", soft_wrap=True, markup=False)

    def _show_round(self, number: int) -> None:
        """Load the round's pictures as targets of the retraining.

        Raises:
            UserError: If they are missing although the field was retrained on them.
        """
        datamanager, request = self.pipeline.datamanager, self._request(number)
        self._use_masks(number)
        folder, first = RoundFolder(self.run_dir, number), RoundFolder(self.run_dir, 1)
        for each, wanted in ((folder, request), (first, self._request(1))):
            if not each.is_done(wanted):
                raise UserError(
                    f"{each.path} no longer holds the views that this run was trained on: restore the folder, or start "
                    "a new run with another --timestamp."
                )
        assert self._maker is not None
        frame, styles = self._maker.frame(), len(request.styles)
        views = [
            StyleView(
                folder.restyled(name, styles),
                first.render(name),
                first.depth(name, frame),
                self.sources.mask(name, request.size),
            )
            for name in request.views
        ]
        cameras = datamanager.style_cameras()
        self.retraining = Retraining(self.config.model, self.style_loss, views, cameras)
        datamanager.show_round(seed=number)
        self.number = number

    def _request(self, number: int) -> RoundRequest:
        cameras, begun = self.pipeline.datamanager.style_cameras(), self.schedule.begun[number - 1]
        return RoundRequest(
            number=number,
            step=begun.begin,
            settings=replace(begun.settings, mask=None),
            views=tuple(self.pipeline.datamanager.style_names()),
            size=(int(cameras.height[0]), int(cameras.width[0])),
            restyler={
                name: value for name, value in self.config.restyle.decisive().items() if name != "guidance_scale"
            },
            more_prompts=tuple(self.config.model.more_prompts),
            restyled_data=tuple(str(folder) for folder in self.config.restyled_data),
            masks=self._masks_request if begun.settings.mask is None else str(begun.settings.mask),
            start=begun.start,
        )

    @property
    def _masks_request(self) -> str | None:
        """What the change is limited by, as far as a round's pictures depend on it."""
        return self.config.masks_request or self.sources.masks_from

    def _configured_settings(self) -> RoundSettings:
        model = self.config.model
        return RoundSettings(
            model.prompt, model.negative_prompt, self.config.restyle.guidance_scale, None, self.config.rounds.start_from
        )

    def _valid_settings(self) -> RoundSettings:
        """The panel's settings, or, with a warning, those of the last round if they cannot be used."""
        settings = self.panel.settings()
        try:
            self.config.check_round(settings)
        except UserError as error:
            begun = self.schedule.begun
            settings = replace(begun[-1].settings, strength=None) if begun else self._configured_settings()
            CONSOLE.print(f"{error} The round uses “{settings.prompt}”.", style="bold yellow", markup=False)
        return settings

    def _title(self, number: int) -> str:
        return f"Round {number} of {self.schedule.rounds}" if number else "Reconstruction"

    def _end_stage(self, ended: int, steps: int, trainer: RunTrainer) -> None:
        """Report a finished stage, unless it has been reported before an interruption.

        Args:
            ended: Number of the round; 0 for the reconstruction.
            steps: Number of training steps so far.
            trainer: The trainer, whose lock is taken while the field is rendered.
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
        self._progress.begin(f"{self._title(ended)}: measuring")
        with trainer.train_lock:
            if ended:
                assert self.retraining is not None
                measured = self._reports.report(self._request(ended), self.retraining, steps - 1)
            else:
                measured = measure_reconstruction(self.pipeline)
                self._reports.held_out().keep(self.pipeline)
        if first_step >= self._process_began:
            # The duration of a resumed stage is unknown.
            measured["seconds"] = seconds
        if ended == 0:
            with atomic_path(self.run_dir / RECONSTRUCTION) as partial:
                save_file(self.pipeline.model.field_state(), partial)
        write_json(path, {**metrics, name: {"steps": steps, **measured}})
        report = write_report(self.run_dir)
        if ended:
            before, after = measured["style_distance_before"], measured["style_distance_after"]
            say(f"{self._title(ended)}: style distance {before:.3f} → {after:.3f}; report: {report}")
