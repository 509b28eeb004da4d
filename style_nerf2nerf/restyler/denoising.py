"""Denoise all views of a scene with diffusers' pipeline: noise, masks, reference picture and resuming.

Vocabulary: an *entry* is a picture that the models process: each view and, after them, the reference picture if views
attend to it. *Latents* are those of this process's entries unless stated otherwise. The reference and regions outside
masks are not restyled: after every step their latents are the original's with the noise of that step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import LCMScheduler, StableDiffusionXLControlNetImg2ImgPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from style_nerf2nerf.attention import Sharing
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.compute.distributed import ProcessGroup
from style_nerf2nerf.restyler.compute.lockstep import BatchLimit, in_lockstep
from style_nerf2nerf.restyler.compute.memory import empty_cache
from style_nerf2nerf.restyler.guides import sees_guides
from style_nerf2nerf.restyler.inputs import Inputs
from style_nerf2nerf.restyler.models.ip_adapter import ip_adapter
from style_nerf2nerf.restyler.noise import noise_offset, step_seed, warp_noise
from style_nerf2nerf.restyler.prompts import encode_prompts
from style_nerf2nerf.restyler.resume import ResumeState
from style_nerf2nerf.restyler.settings import Settings

Latents = Float[Tensor, "entries channels tall wide"]


@dataclass(frozen=True)
class Start:
    """Clean latents and noise from which denoising starts."""

    clean: Latents
    """The originals' latents."""
    noise: Latents


@dataclass(frozen=True)
class Denoising:
    """The denoising of one restyling on this process."""

    pipeline: StableDiffusionXLControlNetImg2ImgPipeline
    settings: Settings
    inputs: Inputs
    size: tuple[int, int]
    """Working height and width."""
    device: torch.device
    group: ProcessGroup
    resume: ResumeState
    coder: ViewCoder
    """The pipeline's autoencoder."""
    noise_offset: float = 0.0
    """Standard deviation of the offset noise that the models were trained with."""

    @property
    def with_reference(self) -> bool:
        """Whether the last entry is the reference picture."""
        return self.settings.reference_attention and self.inputs.reference is not None

    @property
    def entries(self) -> int:
        """Number of entries of all processes."""
        return len(self.inputs.images) + self.with_reference

    @property
    def own(self) -> slice:
        """This process's entries."""
        return self.group.own(self.entries)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.size[0] // self.pipeline.vae_scale_factor, self.size[1] // self.pipeline.vae_scale_factor

    def run(self, limit: BatchLimit, offload: bool, on_step: Callable[[int, int], None] | None) -> Latents:
        """The stock pipeline call, from the first step or from the last saved one.

        Args:
            limit: Number of views that are processed at a time.
            offload: Keep waiting activations in the CPU's memory.
            on_step: Called after each step with the numbers of finished and of all steps.

        Returns:
            The denoised latents.
        """
        settings, total = self.settings, self.settings.steps_to_run
        cast(nn.Module, self.coder.vae).to(self.device)
        done, latents = self._on_record()
        if latents is not None and done == total:
            return latents
        # The pipeline runs the last int(steps × strength) steps: half a step avoids rounding errors.
        strength = min(1.0, (total - done + 0.5) / settings.schedule_steps)
        prompts = self._prompts()
        change = self._change()
        start = self._start() if latents is None or change is not None else None
        if latents is None:
            assert start is not None
            latents = self._noisy(start, strength)

        generators = self._step_generators(done)

        def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            finished, latents = done + index + 1, tensors["latents"]
            self._seed(generators, finished)
            if change is not None and start is not None:
                latents = torch.lerp(self._still(start, total - finished), latents, change)
            everyones = self.group.gather(latents, self.entries)
            if self.group.leads:
                self.resume.keep_latents(finished, everyones)
            if on_step:
                on_step(finished, total)
            return {"latents": latents}

        encoded: dict[str, Any] = {
            name: each if each is None else _repeated(each, len(latents)) for name, each in prompts.items()
        }
        with ExitStack() as stack:
            picture = self._reference_for_adapter(stack)
            for network in (self.pipeline.unet, self.pipeline.controlnet):
                network.to(self.device)
            stack.enter_context(self._together(limit, offload))
            shown: Any = self.pipeline(
                image=self.inputs.pictures(self.size, self.with_reference)[self.own],
                control_image=self._controls()[self.own],
                strength=strength,
                num_inference_steps=settings.schedule_steps,
                guidance_scale=settings.guidance,
                controlnet_conditioning_scale=settings.control_scale,
                latents=latents,
                generator=generators or None,
                output_type="latent",
                callback_on_step_end=after_step,  # pyright: ignore[reportArgumentType]
                **picture,
                **encoded,
            )
        return shown.images

    def _controls(self) -> Tensor:
        """The control pictures of all entries, with guides if the ControlNet was trained with them."""
        return self.inputs.controls(self.size, self.with_reference, sees_guides(self.pipeline.controlnet))

    def _step_generators(self, done: int) -> list[torch.Generator]:
        """Generators of a stochastic scheduler's noise, one per entry of this process; none for other schedulers."""
        if not isinstance(self.pipeline.scheduler, LCMScheduler):
            return []
        generators = [torch.Generator() for _ in range(self.entries)[self.own]]
        self._seed(generators, done)
        return generators

    def _seed(self, generators: list[torch.Generator], done: int) -> None:
        """Seed the noise of the next step by the seed, the entry and the step alone."""
        for entry, generator in zip(range(self.entries)[self.own], generators):
            generator.manual_seed(step_seed(self.settings.seed, 0 if self.settings.same_noise else entry, done))

    def _on_record(self) -> tuple[int, Latents | None]:
        """Number of finished steps and their latents, as read by the leading process."""
        step, latents = self.resume.latents() if self.group.leads else (0, None)
        step = int(self.group.from_one(torch.tensor([step]), 0))
        if step == 0:
            return 0, None
        if latents is None:
            latents = torch.empty(self._shape, dtype=self.pipeline.unet.dtype)
        latents = self.group.from_one(latents, 0)
        return step, latents[self.own].to(self.device, self.pipeline.unet.dtype)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.entries, self.pipeline.unet.config["in_channels"], *self.latent_size

    def _change(self) -> Float[Tensor, "entries 1 tall wide"] | None:
        change = self.inputs.change(*self.latent_size, self.with_reference)
        return None if change is None else change[self.own].to(self.device, self.pipeline.unet.dtype)

    def _start(self) -> Start:
        """Clean latents and noise; every entry has its own generator, independent of the process."""
        settings, pipeline = self.settings, self.pipeline
        generators = [
            torch.Generator().manual_seed(settings.seed * 1_000_003 + (0 if settings.same_noise else entry))
            for entry in range(self.entries)
        ]
        noise = torch.stack([torch.randn(self._shape[1:], generator=generator) for generator in generators])
        offset = noise_offset(self._shape, generators, self.noise_offset)
        if settings.warped_noise:
            assert self.inputs.cameras is not None
            views = len(self.inputs.images)
            noise[:views] = warp_noise(noise[:views], self.inputs.depths, self.inputs.cameras)
            offset[:views] = offset[0]
        noise = noise + offset
        pictures = self.inputs.pictures(self.size, self.with_reference)[self.own]
        clean = torch.stack(
            [
                self.coder.encode(picture, generator, pipeline.unet.dtype)
                for picture, generator in zip(pictures, generators[self.own])
            ]
        )
        return Start(clean, noise[self.own].to(self.device, pipeline.unet.dtype))

    def _noisy(self, start: Start, strength: float) -> Latents:
        """The latents that the pipeline's first step expects."""
        steps, scheduler = self.settings.schedule_steps, self.pipeline.scheduler
        scheduler.set_timesteps(steps, device=self.device)
        timesteps, _ = self.pipeline.get_timesteps(steps, strength, self.device)
        return scheduler.add_noise(start.clean, start.noise, timesteps[:1])

    def _still(self, start: Start, steps_left: int) -> Latents:
        """The originals with the noise of the next step."""
        if steps_left == 0:
            return start.clean
        scheduler = self.pipeline.scheduler
        return scheduler.add_noise(start.clean, start.noise, scheduler.timesteps[-steps_left:][:1])

    def _together(self, limit: BatchLimit, offload: bool) -> Any:
        settings, reference = self.settings, self.entries - 1 if self.with_reference else None
        keyframes = settings.share_keyframes or None
        sharing = Sharing(self.entries, reference, settings.adain, True, settings.share_strength, keyframes)
        layers = settings.shared_layers
        return in_lockstep(
            self.pipeline.unet,
            self.pipeline.controlnet,
            sharing if settings.share_attention and self.entries > 1 else None,
            limit,
            num_views=self.entries,
            layers=(lambda name: name.startswith(layers)) if layers else None,
            group=self.group,
            offload=offload,
        )

    def _reference_for_adapter(self, stack: ExitStack) -> dict[str, Any]:
        """Load the adapter, if there is one, and return its argument of the pipeline call.

        Its image encoder is on the device only while it encodes the picture.
        """
        if self.settings.ip_adapter is None:
            return {}
        assert self.inputs.reference is not None
        pipeline: Any = self.pipeline
        stack.enter_context(ip_adapter(pipeline, self.settings.ip_adapter, self.settings.ip_adapter_scale))
        pipeline.image_encoder.to(self.device)
        picture, guided = to_pil_image(self.inputs.reference.clamp(0, 1)), self.settings.guidance > 1
        embeddings = pipeline.prepare_ip_adapter_image_embeds(picture, None, self.device, 1, guided)
        pipeline.image_encoder.to("cpu")
        empty_cache()
        return {"ip_adapter_image_embeds": embeddings}

    def _prompts(self) -> dict[str, Float[Tensor, "1 ..."] | None]:
        """The prompt's embeddings, one row each."""
        settings = self.settings
        return encode_prompts(
            self.pipeline, settings.prompt, settings.negative_prompt, settings.guidance > 1, self.device
        )


def _repeated(embedding: Float[Tensor, "1 ..."], entries: int) -> Float[Tensor, "entries ..."]:
    """The same embedding for every entry."""
    return embedding.repeat(entries, *[1] * (embedding.dim() - 1))


def move(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, device: torch.device) -> None:
    """Move all models of a pipeline to a device."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(device)
