"""Create the pictures of a round: render the views, restyle them together, write the dataset.

Finished work is saved: renders view by view, the denoising step by step (see `storage`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from eschernet_prior.base.dataset_io import CaptureFrame, write_dataset
from eschernet_prior.base.images import read_image, write_image
from eschernet_prior.base.trainer import RunTrainer
from style_nerf2nerf.model import StyleModel
from style_nerf2nerf.options import OBJECT, StyledRun
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.rounds.made_masks import ensure_made_masks
from style_nerf2nerf.rounds.mask_shapes import MaskShape, write_masks
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.rounds.storage import RoundFolder, RoundRequest, original_field
from style_nerf2nerf.rounds.viewer.panel import StageProgress

if TYPE_CHECKING:
    from style_nerf2nerf.restyler.restyler import Restyler


class RoundRestyler:
    """Creates the pictures of rounds; the diffusion models are loaded for the first round and kept."""

    def __init__(
        self, pipeline: StyledRun, sources: ViewSources, progress: StageProgress, keep_going: Callable[[], None]
    ) -> None:
        """Set up; models are loaded on first use.

        Args:
            pipeline: The field and the options.
            sources: Masks and given restyled pictures.
            progress: Receives the progress.
            keep_going: Called between the parts of the work; an exception that it raises ends the work, of which
                finished parts are on disk.
        """
        self.pipeline, self.sources, self.config = pipeline, sources, pipeline.config
        self._progress, self._keep_going = progress, keep_going
        self._restyler: Restyler | None = None

    def make(
        self, folder: RoundFolder, request: RoundRequest, title: str, trainer: RunTrainer, field: StyleModel
    ) -> None:
        """Create a round's pictures, unless they are finished on disk.

        Args:
            folder: The round's folder.
            request: The round's request.
            title: The round's name in messages.
            trainer: The trainer, whose lock is only taken while the field is rendered.
            field: Whose views are restyled: the field as it is, or as the photos made it.
        """
        if folder.is_done(request):
            return
        cameras = self.pipeline.datamanager.style_cameras()
        folder.open_work(request)
        began = time.monotonic()
        views = self._render(folder, request, cameras, title, trainer, field)
        ensure_made_masks(self.pipeline, self.sources, views, trainer, self._keep_going)
        rendered = time.monotonic()
        if request.restyled_data:
            restyled = [
                self.sources.restyled(style, request.views, request.size) for style in range(len(request.styles))
            ]
            provenance: dict[str, Any] = {"models": None}
        else:
            restyled, provenance = self._denoise(folder, request, views, title)
        seconds = {"render": round(rendered - began, 1), "restyle": round(time.monotonic() - rendered, 1)}
        frame, depths = self.frame(), [depth for _, depth in views]

        def write(path: Path) -> None:
            for style, pictures in enumerate(restyled):
                write_dataset(folder.style_folder(style, inside=path), cameras, frame, request.views, pictures, depths)
            for name, (colour, _) in zip(request.views, views):
                write_image(path / "renders" / f"{name}.png", colour)

        folder.finish(request, write, {**provenance, "seconds": seconds})
        styles = " and ".join(f"“{style}”" for style in request.styles)
        CONSOLE.print(
            f"{title}: {len(views)} views restyled as {styles} in {folder.path}", soft_wrap=True, markup=False
        )

    def draw_masks(self, folder: Path, shape: MaskShape, run_dir: Path) -> bool:
        """Write the masks that a shape makes of restyled and of held-out views; whether any sees what may change.

        Args:
            folder: Where.
            shape: What may change, by the surface of the photos' field.
            run_dir: The run folder.
        """
        field, manager = original_field(self.pipeline, run_dir) or self.pipeline.model, self.pipeline.datamanager
        names, held_out = manager.held_out_views(self.config.num_eval_views)
        restyled = manager.style_cameras()
        cameras = [each[index : index + 1] for each in (restyled, held_out) for index in range(len(each))]
        views = [render_view(field, camera) for camera in cameras]
        return write_masks(folder, shape, [*manager.style_names(), *names], views, cameras)

    def frame(self) -> CaptureFrame:
        """Transform to the capture's frame."""
        datamanager = self.pipeline.datamanager
        return CaptureFrame(datamanager.train_dataparser_outputs, datamanager.noted_in)

    def _render(
        self,
        folder: RoundFolder,
        request: RoundRequest,
        cameras: Cameras,
        title: str,
        trainer: RunTrainer,
        field: StyleModel,
    ) -> list[tuple[Tensor, Tensor]]:
        """Colour and depth of every view of the round."""
        count = len(request.views)

        def render(index: int) -> tuple[Tensor, Tensor]:
            self._keep_going()
            with trainer.train_lock:
                view = render_view(field, cameras[index : index + 1])
            return view.colour, view.depth

        self._progress.begin(f"{title}: rendering views")
        with get_progress(f"{title}: rendering {count} views", suffix="views") as bar:
            task = bar.add_task("", total=count)

            def on_view(done: int) -> None:
                bar.update(task, completed=done)
                self._progress.update(done, count)

            return folder.renders(request.views, render, on_view)

    def _cut_out(
        self,
        request: RoundRequest,
        name: str,
        restyled: Float[Tensor, "3 height width"],
        original: Float[Tensor, "3 height width"],
    ) -> Float[Tensor, "3 height width"]:
        """A restyled view; where the round restyles an object, with the original around its outline."""
        mask = self.sources.mask(name, request.size)
        return restyled if mask is None or request.masks != OBJECT else torch.where(mask > 0, restyled, original)

    def _denoise(
        self, folder: RoundFolder, request: RoundRequest, views: list[tuple[Tensor, Tensor]], title: str
    ) -> tuple[list[list[Tensor]], dict[str, Any]]:
        """All views in each style, and the provenance of the models."""
        from style_nerf2nerf.restyler.inputs import Inputs
        from style_nerf2nerf.restyler.restyler import Restyler

        options = self.config.restyle
        if self._restyler is None:
            self._progress.begin(f"{title}: loading the diffusion models")
            self._restyler = Restyler.from_pretrained(
                options.source, device=self.pipeline.model.device, precision=options.precision
            )
        restyler = self._restyler
        colours, depths = torch.stack([colour for colour, _ in views]), torch.stack([depth for _, depth in views])
        cameras = self.pipeline.datamanager.style_cameras()
        pinhole = options.warped_noise or bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())
        if restyler.sees_guides and not pinhole:
            CONSOLE.print(f"{title}: patterns belong to each view, not to the surfaces: the lens is not perspective.")
        inputs = Inputs.from_tensors(
            colours,
            depths,
            self.sources.masks(request.views, request.size),
            None if options.reference is None else read_image(options.reference),
            ViewCameras.from_nerfstudio(cameras) if pinhole else None,
        )
        restyled = []
        for style, prompt in enumerate(request.styles):
            # One palette for all rounds: the noise has another seed in each.
            worded = restyler.vocabulary.complete(prompt, options.seed)
            if worded != prompt:
                CONSOLE.print(f"{title}: “{prompt}” names no colours, so the run says “{worded}”.", markup=False)
            self._progress.begin(f"{title}: restyling {len(views)} views as “{worded}”")
            with get_progress(f"{title}: restyling {len(views)} views together", suffix="steps") as bar:
                task = bar.add_task("", total=None)

                def on_step(done: int, total: int) -> None:
                    bar.update(task, completed=done, total=total)  # noqa: B023
                    self._progress.update(done, total)
                    self._keep_going()

                settings = options.settings(request.settings)
                pictures = restyler.restyle_views(
                    replace(settings, prompt=worded, seed=settings.seed + request.number),
                    inputs,
                    max_views_per_batch=options.max_views_per_batch,
                    attention_kernel=options.attention_kernel,
                    channels_last=options.channels_last,
                    on_step=on_step,
                    resume_dir=folder.work / f"restyle_{style + 1:02d}",
                )
            restyled.append([self._cut_out(request, *view) for view in zip(request.views, pictures, colours)])
        # The field has the memory to itself while it is retrained.
        provenance = restyler.provenance()
        if options.keep_loaded:
            restyler.offload()
        else:
            self._restyler = None
            restyler.unload()
        return restyled, {"models": provenance}
