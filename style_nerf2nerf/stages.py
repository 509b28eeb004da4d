"""The stages of a run inside nerfstudio's training loop: measure the reconstruction, then begin and end each round.

The trainer's callbacks call :meth:`Stages.enter` before every step and :meth:`Stages.leave` after the last. Whatever is
finished is on disk, so that a killed run goes on: a checkpoint before each round, the renders view by view, the
denoising step by step (see :mod:`style_nerf2nerf.rounds`).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from safetensors.torch import save_file
from torch import Tensor

from eschernet_prior.datasets import CaptureFrame, write_dataset, write_image
from eschernet_prior.errors import UserError
from eschernet_prior.files import atomic_path, read_json, write_json
from eschernet_prior.trainer import RunTrainer
from style_nerf2nerf.features import StyleLoss, StyleTargets, VGG19Features
from style_nerf2nerf.gallery import contact_sheet
from style_nerf2nerf.hub import ensure_models
from style_nerf2nerf.rendering import render_for_training, render_view
from style_nerf2nerf.rounds import RestyledView, RoundFolder, RoundRequest

RECONSTRUCTION = "reconstruction.safetensors"
"""The field as the photos made it, in the run folder: where another style starts from."""

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
            UserError: an option that cannot work, or weights that cannot be had.
        """
        config = pipeline.config
        config.rounds.check()
        if config.run_dir is None:
            raise UserError("This pipeline trains inside ns-train, whose configuration names the run folder.")
        if config.rounds.rounds > 0:
            config.model.check_style()
            config.restyle.check(config.rounds.strength_of(config.rounds.rounds))
            ensure_models(config.restyle.source)
        self.pipeline = pipeline
        self.config = config
        self.run_dir = config.run_dir
        self.number = 0
        features = VGG19Features(config.model.vgg_weights).to(pipeline.device)
        self.style_loss = StyleLoss(features, num_directions=config.model.style_directions)
        self._targets = StyleTargets(self.style_loss, [])
        self._views: list[RestyledView] = []
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
        self._stage_began = (step, time.monotonic())

    def leave(self, trainer: RunTrainer) -> None:
        """Called after the last step: measure and show what it led to."""
        if not trainer.stop_training:
            self._end_stage(self.config.rounds.round_at(trainer.step), trainer.step + 1, trainer)

    def retrain_losses(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """The losses of one retraining step: a whole view against its restyled one, and the geometry's own terms.

        Returns:
            The outputs of the ray batch, the losses and the metrics, as nerfstudio's pipelines do.
        """
        pipeline, model = self.pipeline, self.pipeline.model
        index, camera, target = pipeline.datamanager.next_style_view(step)
        image = render_for_training(model, camera, model.config.style_rays_per_chunk)[None]
        rays, batch = pipeline.datamanager.next_train(step)
        outputs = pipeline._model(rays)
        losses = model.geometry_losses(outputs, batch)
        if model.config.style_loss_mult > 0:
            losses["style_loss"] = model.config.style_loss_mult * self.style_loss(image, self._targets[index])
        if model.config.rgb_loss_mult > 0:
            losses["style_rgb_loss"] = model.config.rgb_loss_mult * F.mse_loss(image[0], target.to(image))
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
        folder, datamanager = RoundFolder(self.run_dir, number), self.pipeline.datamanager
        if not folder.is_done(self._request(number)):
            raise UserError(
                f"{folder.path} does not hold the views that this run was retraining on: give back the folder, or "
                "start anew with another --timestamp."
            )
        self._views = folder.read(datamanager.style_names())
        restyled = [view.restyled for view in self._views]
        self._targets = StyleTargets(self.style_loss, restyled)
        datamanager.show_round(datamanager.style_cameras(), restyled, seed=number)
        self.number = number

    def _request(self, number: int) -> RoundRequest:
        cameras = self.pipeline.datamanager.style_cameras()
        return RoundRequest(
            number=number,
            step=self.config.rounds.begin_of(number),
            prompt=self.config.model.prompt,
            negative_prompt=self.config.model.negative_prompt,
            strength=self.config.rounds.strength_of(number),
            views=tuple(self.pipeline.datamanager.style_names()),
            size=(int(cameras.height[0]), int(cameras.width[0])),
            restyler=asdict(self.config.restyle),
        )

    def _restyle(self, folder: RoundFolder, request: RoundRequest, trainer: RunTrainer) -> None:
        """Make a round's pictures: render, restyle all views together, write the dataset."""
        from style_nerf2nerf.restyler import Restyler

        datamanager, options = self.pipeline.datamanager, self.config.restyle
        cameras, count = datamanager.style_cameras(), len(request.views)
        title = f"Round {request.number} of {self.config.rounds.rounds}"
        folder.open_work(request)

        def render(index: int) -> tuple[Tensor, Tensor]:
            trainer.wait_or_stop()
            with trainer.train_lock:
                view = render_view(self.pipeline.model, cameras[index : index + 1])
            return view.colour, view.depth

        began = time.monotonic()
        with get_progress(f"{title}: rendering {count} views", suffix="views") as progress:
            task = progress.add_task("", total=count)
            views = folder.renders(request.views, render, lambda done: progress.update(task, completed=done))
        rendered = time.monotonic()

        if self._restyler is None:
            self._restyler = Restyler.from_pretrained(options.source, device=self.pipeline.device)
        restyler = self._restyler
        if options.source == "embedded":
            CONSOLE.print("Restyling with the small embedded models: trained on ray-traced toys at 64², in ten styles.")
        with get_progress(f"{title}: restyling {count} views together", suffix="steps") as progress:
            task = progress.add_task("", total=None)

            def on_step(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)
                trainer.wait_or_stop()

            restyled = restyler.restyle(
                torch.stack([colour for colour, _ in views]),
                torch.stack([depth for _, depth in views]),
                request.prompt,
                negative_prompt=request.negative_prompt,
                strength=request.strength,
                num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale,
                control_scale=options.control_scale,
                share_attention=options.share_attention,
                seed=options.seed + request.number,
                on_step=on_step,
                resume_dir=folder.work / "restyle",
            )
        provenance = {
            "models": restyler.provenance(),
            "seconds": {"render": round(rendered - began, 1), "restyle": round(time.monotonic() - rendered, 1)},
        }
        # The field has the GPU to itself while it is retrained.
        restyler.offload()

        frame = CaptureFrame(datamanager.train_dataparser_outputs, datamanager.get_datapath())

        def write(path: Path) -> None:
            write_dataset(path, cameras, frame, request.views, list(restyled), [depth for _, depth in views])
            for name, (colour, _) in zip(request.views, views):
                write_image(path / "renders" / f"{name}.png", colour)

        folder.finish(request, write, provenance)
        CONSOLE.print(f"{title}: {count} views restyled as “{request.prompt}” in {folder.path}", soft_wrap=True)

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
            measured = self._measure_round() if ended else self._measure_reconstruction()
        if first_step >= trainer._start_step:
            # A stage that went on after an interruption took longer than this process knows.
            measured["seconds"] = seconds
        if ended == 0:
            with atomic_path(self.run_dir / RECONSTRUCTION) as partial:
                save_file(self.pipeline.model.field_state(), partial)
        write_json(path, {**metrics, name: {"steps": steps, **measured}})

    def _measure_reconstruction(self) -> dict[str, Any]:
        """PSNR and SSIM of the field on held-out photos."""
        dataset = self.pipeline.datamanager.eval_dataset
        count = min(self.config.num_eval_views, len(dataset))
        if count == 0:
            return {"held_out_views": []}
        indices = torch.linspace(0, len(dataset) - 1, count).round().int().tolist()
        model, results = self.pipeline.model, []
        model.eval()
        for index in indices:
            camera = dataset.cameras[index : index + 1].to(self.pipeline.device)
            batch = {**dataset[index]}
            metrics, _ = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
            results.append(metrics)
        model.train()
        mean = {name: sum(result[name] for result in results) / count for name in results[0]}
        CONSOLE.print(f"The field shows {count} held-out views at {mean['psnr']:.2f} dB PSNR.")
        return {"held_out_views": [dataset.image_filenames[index].name for index in indices], **mean}

    def _measure_round(self) -> dict[str, Any]:
        """Style distance of the round's views before and after retraining, and their contact sheet."""
        cameras = self.pipeline.datamanager.style_cameras()
        after = [render_view(self.pipeline.model, cameras[i : i + 1]).colour for i in range(len(self._views))]
        sheet = contact_sheet(
            {
                "before": [view.before for view in self._views],
                "restyled": [view.restyled for view in self._views],
                "after": after,
            }
        )
        path = self.run_dir / "previews" / f"round_{self.number:02d}.png"
        write_image(path, sheet)
        CONSOLE.print(f"Before | restyled | after: {path}", soft_wrap=True)
        return {
            "style_views": self.pipeline.datamanager.style_names(),
            "style_distance_before": self._style_distance([view.before for view in self._views]),
            "style_distance_after": self._style_distance(after),
        }

    @torch.no_grad()
    def _style_distance(self, images: list[Tensor]) -> float:
        """Mean style loss of images to the round's restyled views."""
        device = self.pipeline.device
        losses = [self.style_loss(image[None].to(device), self._targets[i]) for i, image in enumerate(images)]
        return float(torch.stack(losses).mean())
