"""Restyle all views of a scene together: SDXL with a depth ControlNet and shared attention.

Vocabulary: a *step* is one denoising step of all views together; the *working size* is the height and width at which
the models run; a *source* selects the models: `"embedded"` (the small ones in this
package), `"sdxl"` (the hub's, see `hub.SDXL`), or a local folder in the layout that
`StableDiffusionXLControlNetImg2ImgPipeline.save_pretrained` writes.

Axes: `views channels height width`, pictures in [0, 1]; depth is z-depth in scene units, 0 without a surface.

The denoising itself is diffusers' own pipeline call. Added here are attention over all views, computed a few views at a
time and on any number of processes (`lockstep`, `distributed`), working sizes, one depth scale for all views, masks,
reference pictures, and resuming: the views' latents are written after every step, each decoded view at once. All
randomness is drawn before the first step, or by the seed, the view and the step, and the allowed schedulers keep no
history, so latents and the number of the step are the whole state.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import LCMScheduler, StableDiffusionXLControlNetImg2ImgPipeline, __version__
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.schedulers import RESUMABLE_SCHEDULERS, is_resumable
from style_nerf2nerf.attention import shared_modules
from style_nerf2nerf.masks import lay_into_original
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.compute import kernels
from style_nerf2nerf.restyler.compute.distributed import ProcessGroup
from style_nerf2nerf.restyler.compute.kernels import AttentionKernel, check_kernel
from style_nerf2nerf.restyler.compute.lockstep import BatchLimit
from style_nerf2nerf.restyler.compute.memory import empty_cache, free_memory, plan, unit_bytes
from style_nerf2nerf.restyler.compute.precision import Precision, choose_dtype
from style_nerf2nerf.restyler.denoising import Denoising, Latents, move
from style_nerf2nerf.restyler.guides import sees_guides
from style_nerf2nerf.restyler.inputs import Inputs, resize
from style_nerf2nerf.restyler.models.few_steps import few_steps, lora_provenance
from style_nerf2nerf.restyler.models.files import check_models
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.models.loading import load_pipeline, read_training_facts
from style_nerf2nerf.restyler.models.vocabulary import Vocabulary
from style_nerf2nerf.restyler.prompts import announce_cuts
from style_nerf2nerf.restyler.resume import ResumeState
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.restyler.sizes import check_side, native_side, size_unit, working_size

__all__ = ["Restyler", "Settings"]


class Restyler:
    """Restyles all views of a scene together."""

    known_styles: ClassVar[dict[str, str]] = read_training_facts(EMBEDDED_FOLDER).vocabulary.prompts
    """Prompts that the embedded models were trained on by the name of their style; others give something in between."""

    def __init__(
        self,
        pipeline: StableDiffusionXLControlNetImg2ImgPipeline,
        source: str,
        device: torch.device | str = "cpu",
        models: dict[str, str] | None = None,
        noise_offset: float = 0.0,
        vocabulary: Vocabulary | None = None,
        own_settings: dict[str, Any] | None = None,
    ):
        """Wrap a loaded pipeline; usually called by `from_pretrained`.

        Args:
            pipeline: SDXL image-to-image with one ControlNet.
            source: Where it came from, for the manifest.
            device: Where to run; the models go there when they are first used.
            models: Repository and revision of each part, for the manifest.
            noise_offset: Standard deviation of the offset noise that the models were trained with (see `noise`).
            vocabulary: The words that they were trained on; None if they read any words.
            own_settings: Fields of `Settings` that they were trained for: the defaults of `restyle`.

        Raises:
            UserError: If its scheduler depends on earlier steps, which cannot be resumed.
        """
        if not is_resumable(pipeline.scheduler) and not isinstance(pipeline.scheduler, LCMScheduler):
            known = " or ".join((*RESUMABLE_SCHEDULERS, LCMScheduler.__name__))
            raise UserError(f"The scheduler {type(pipeline.scheduler).__name__} cannot be resumed: use {known}.")
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.source = source
        self.device = torch.device(device)
        self._models = models or {}
        self._noise_offset = noise_offset
        self._lora: dict[str, str] = {}
        self.vocabulary = vocabulary or Vocabulary()
        self.own_settings = own_settings or {}
        self._ran: dict[str, Any] = {}

    @property
    def sees_guides(self) -> bool:
        """Whether the ControlNet sees patterns that belong to the surfaces (see `guides`)."""
        return sees_guides(self.pipeline.controlnet)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "embedded",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        precision: Precision = "auto",
    ) -> Restyler:
        """Loads the models.

        Args:
            source: `"embedded"`, `"sdxl"` or a local folder in diffusers' layout.
            device: Where to run.
            dtype: Type of the networks' numbers; chosen by `precision` if None.
            precision: How it is chosen (see `precision.choose_dtype`).

        Raises:
            UserError: If the models are not there and cannot be had, or do not fit.
        """
        folders = locate_models(source)
        checked = check_models(folders)
        chosen = dtype or choose_dtype(precision, device, checked.parameters, checked.files_dtype)
        pipeline = load_pipeline(folders, chosen)
        facts = read_training_facts(folders.base)
        return cls(
            pipeline,
            str(source),
            device,
            dict(folders.commits),
            noise_offset=facts.noise_offset,
            vocabulary=facts.vocabulary,
            own_settings=facts.settings,
        )

    def to(self, device: torch.device | str) -> Restyler:
        """Move the models to a device, on which they run from now on."""
        self.device = torch.device(device)
        self._move(self.device)
        return self

    def offload(self) -> None:
        """Move the models to the CPU until they are next used, and free the GPU's memory."""
        self._move(torch.device("cpu"))
        empty_cache()

    def unload(self) -> None:
        """Free the memory of all models; the restyler cannot be used afterwards."""
        del self.pipeline
        gc.collect()
        empty_cache()

    def _move(self, device: torch.device) -> None:
        move(self.pipeline, device)

    def provenance(self) -> dict[str, Any]:
        """Return source and classes of the models, and statistics of the last run, for a manifest."""
        return self._identity() | self._ran

    def _identity(self) -> dict[str, Any]:
        """The properties of the models that determine the result."""
        parts = self.pipeline.components.items()
        return {
            "source": self.source,
            "models": self._models | self._lora,
            "classes": {name: type(part).__name__ for name, part in parts if part is not None},
            "noise_offset": self._noise_offset,
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "diffusers": __version__,
        }

    def working_size(self, height: int, width: int, side: int | None = None) -> tuple[int, int]:
        """The size at which views of the given size are restyled (see `sizes.working_size`).

        Args:
            height: Of the views.
            width: Of the views.
            side: Pixels along a side of a square of the wanted area; the models' own if None.
        """
        unet, vae = self.pipeline.unet, self.pipeline.vae
        return working_size(height, width, side or native_side(unet, vae), size_unit(unet, vae))

    def restyle(
        self,
        images: Float[Tensor, "views 3 height width"],
        depths: Float[Tensor, "views 1 height width"],
        prompt: str = "",
        *,
        masks: Float[Tensor, "views 1 height width"] | None = None,
        reference: Float[Tensor, "3 tall wide"] | None = None,
        cameras: ViewCameras | None = None,
        **options: Any,
    ) -> Float[Tensor, "views 3 height width"]:
        """Restyle all views of a scene together: `restyle_views` with inputs and settings as plain arguments.

        Args:
            images: The views in [0, 1].
            depths: z-depth of each in scene units, 0 without a surface.
            prompt: What the scene should look like; may be empty if a reference shows it.
            masks: See `Inputs`.
            reference: See `Inputs`.
            cameras: See `Inputs`.
            options: Fields of `Settings`, by default those that the models were trained for, and keyword arguments of
                `restyle_views`.

        Returns:
            The restyled views in [0, 1], float32 on the CPU, of exactly the input's size.
        """
        options = {**self.own_settings, **options}
        names = options.keys() & {field.name for field in fields(Settings)}
        settings = Settings(prompt, **{name: options.pop(name) for name in names})
        settings.check(reference is not None, cameras is not None)
        return self.restyle_views(settings, Inputs.from_tensors(images, depths, masks, reference, cameras), **options)

    @torch.no_grad()
    def restyle_views(
        self,
        settings: Settings,
        inputs: Inputs,
        *,
        height: int | None = None,
        width: int | None = None,
        max_views_per_batch: int | None = None,
        offload_activations: bool | None = None,
        attention_kernel: AttentionKernel = "auto",
        channels_last: bool = False,
        on_step: Callable[[int, int], None] | None = None,
        on_view: Callable[[int, Float[Tensor, "3 height width"]], None] | None = None,
        resume_dir: Path | None = None,
    ) -> Float[Tensor, "views 3 height width"]:
        """Restyle all views of a scene together.

        Where torch.distributed is initialised, as under torchrun with `init_process_group`, every process calls this
        with the same arguments, works on its share of the views and returns all of them.

        Args:
            settings: What decides the look.
            inputs: The views, and what is known of them.
            height: Working height in pixels; chosen by `working_size` if neither side is given.
            width: Working width in pixels.
            max_views_per_batch: Views that are processed at a time, which does not change the result; default: as many
                as should fit into the device's memory, fewer when memory runs out.
            offload_activations: Keep activations that wait for other views in the CPU's memory; default: if needed.
            attention_kernel: torch's kernel for attention; it changes the result by rounding only.
            channels_last: Keep the weights of convolutions with channels innermost.
            on_step: Called after each denoising step with the number of finished steps and of all steps; an exception
                that it raises ends the work, which a later call resumes.
            on_view: Called with each view's number and picture when it is decoded, for the views of this process.
            resume_dir: Folder for the state after each step and each decoded view. A call with equal settings and
                inputs resumes from it; the state of any other call is replaced.

        Returns:
            The restyled views in [0, 1], float32 on the CPU, of exactly the input's size.

        Raises:
            UserError: If a setting cannot work, or memory does not suffice for one view at a time.
            ValueError: If processes were called with different arguments.
        """
        settings = replace(settings, prompt=self.vocabulary.complete(settings.prompt, settings.seed))
        settings.check(inputs.reference is not None, inputs.cameras is not None)
        if max_views_per_batch is not None and max_views_per_batch < 1:
            raise UserError(f"At least one view must be processed at a time, not {max_views_per_batch}.")
        check_kernel(attention_kernel, self.device)
        self._check_layers(tuple(settings.shared_layers))
        announce_cuts(self.pipeline.tokenizer, (settings.prompt, settings.negative_prompt))
        size = self._checked_size(inputs.images.shape[-2:], height, width, settings.size)
        self._lora = lora_provenance(settings.fast_lora) if settings.speed == "fast" else {}
        fingerprint = self._fingerprint(settings, size, inputs)
        group = ProcessGroup.here()
        with ExitStack() as stack:
            stack.enter_context(group.working())
            stack.enter_context(kernels.attention_kernel(attention_kernel))
            kernels.lay_out([self.pipeline.unet, self.pipeline.controlnet, self.pipeline.vae], channels_last)
            if settings.speed == "fast":
                stack.enter_context(few_steps(self.pipeline, settings.fast_lora))
            group.agree_on(fingerprint)
            resume = ResumeState(resume_dir, fingerprint)
            coder = ViewCoder(
                self.pipeline.vae,
                self.device,
                lambda side: CONSOLE.print(f"Out of memory: views are encoded and decoded in tiles of {side} pixels."),
            )
            denoising = Denoising(
                self.pipeline, settings, inputs, size, self.device, group, resume, coder, self._noise_offset
            )
            latents = self._denoise(denoising, max_views_per_batch, offload_activations, on_step)
            return self._decode_all(denoising, latents, on_view)

    def _check_layers(self, layers: tuple[str, ...]) -> None:
        names = [name for name, _ in self.pipeline.unet.named_children()]
        for wanted in layers:
            if not shared_modules(self.pipeline.unet, lambda name, wanted=wanted: name.startswith(wanted)):
                raise UserError(
                    f"No self-attention module of the UNet begins with “{wanted}”: use prefixes such as "
                    f"{', '.join(name for name in names if 'block' in name)}."
                )

    def _checked_size(
        self, size: torch.Size, height: int | None, width: int | None, side: int | None
    ) -> tuple[int, int]:
        unet, vae = self.pipeline.unet, self.pipeline.vae
        if height is None and width is None:
            if side is not None:
                check_side(side, unet, vae)
            tall, wide = size
            return self.working_size(tall, wide, side)
        unit = size_unit(unet, vae)
        if not height or not width or height % unit or width % unit:
            raise UserError(
                f"The working size {height} × {width} does not fit the models: give both sides, as multiples of "
                f"{unit}, or neither."
            )
        return height, width

    def _fingerprint(self, settings: Settings, size: tuple[int, int], inputs: Inputs) -> str:
        """Hash of everything that determines the result."""
        content = json.dumps([asdict(settings), size, self._identity()], sort_keys=True)
        return hashlib.sha256(content.encode() + inputs.digest()).hexdigest()

    def _denoise(
        self,
        denoising: Denoising,
        max_views_per_batch: int | None,
        offload: bool | None,
        on_step: Callable[[int, int], None] | None,
    ) -> Latents:
        tall, wide = denoising.latent_size
        entries = denoising.own.stop - denoising.own.start
        unet, on_cpu = self.pipeline.unet, self.device.type == "cpu"
        unit = unit_bytes(unet, tall * wide, unet.dtype)
        planned = plan(unit, entries, self._room_for_views(), offload=offload, on_cpu=on_cpu)
        limit = BatchLimit(
            min(entries, max_views_per_batch or planned.views_per_batch),
            lambda fewer: CONSOLE.print(f"Out of memory: continuing with {fewer} views at a time."),
            halves_together=planned.halves_together and max_views_per_batch is None,
        )
        try:
            return denoising.run(limit, planned.offload, on_step)
        finally:
            self._ran = {
                "views_per_batch": limit.views_per_batch,
                "offloaded": planned.offload,
                "processes": denoising.group.size,
                "tile": None if denoising.coder.tile is None else denoising.coder.tile * denoising.coder.scale,
            }

    def _room_for_views(self) -> int:
        """Bytes that are left on the device once the networks that denoise are there."""
        waiting = 0
        if self.device.type != "cpu":
            for network in (self.pipeline.unet, self.pipeline.controlnet, self.pipeline.vae):
                weights = [weight for weight in network.parameters() if weight.device.type == "cpu"]
                waiting += sum(weight.numel() * weight.element_size() for weight in weights)
        return max(free_memory(self.device) - waiting, 0)

    def _decode_all(
        self,
        denoising: Denoising,
        latents: Latents,
        on_view: Callable[[int, Float[Tensor, "3 height width"]], None] | None,
    ) -> Float[Tensor, "views 3 height width"]:
        inputs, resume, first = denoising.inputs, denoising.resume, denoising.own.start
        cell = min(side / cells for side, cells in zip(inputs.images.shape[-2:], denoising.latent_size))
        pictures = []
        for number, latent in enumerate(latents[: len(inputs.images) - first], first):
            view = resume.view(number)
            if view is None:
                view = resize(denoising.coder.decode(latent)[None], inputs.images.shape[-2:])[0].clamp(0, 1)
                if inputs.masks is not None:
                    view = lay_into_original(view, inputs.images[number], inputs.masks[number], cell)
                resume.keep_view(number, view)
            if on_view:
                on_view(number, view)
            pictures.append(view)
        # The reference is an entry, too; its picture is blank.
        pictures += [torch.zeros_like(inputs.images[0])] * (len(latents) - len(pictures))
        return denoising.group.gather(torch.stack(pictures), denoising.entries)[: len(inputs.images)]
