"""All views of a scene in, the same views in one style out: SDXL with a depth ControlNet under shared attention.

Vocabulary: a *step* is one denoising step of all views together; the *working size* is the height and width at which
the models run; a *source* says where the models come from: ``"embedded"`` (the small ones shipped with the
package), ``"sdxl"`` (the hub's, see ``HUB_MODELS``), or a local folder in the layout that
``StableDiffusionXLControlNetImg2ImgPipeline.save_pretrained`` writes.

Axes: ``views channels height width``, pictures in [0, 1]; depth is z-depth in scene units, 0 where nothing is.

The denoising itself is diffusers' own pipeline call; what is added here is attention over all views while it runs,
sizes, one depth scale for all views, and going on after a kill: the views' latents are written after every step, each
decoded view as soon as it is there. All randomness is drawn before the first step and the schedulers allowed carry no
history, so latents and a step's number are the whole state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetImg2ImgPipeline,
    __version__,
)
from jaxtyping import Float
from torch import Tensor, nn

from eschernet_prior.errors import UserError
from style_nerf2nerf.attention import share_attention as attention_over_views
from style_nerf2nerf.depth_control import control_pictures
from style_nerf2nerf.hub import EMBEDDED_FOLDER, HUB_MODELS
from style_nerf2nerf.procedural_styles import STYLES
from style_nerf2nerf.restyler_loading import load_from_folder, load_from_hub
from style_nerf2nerf.restyler_record import Record

STATELESS_SCHEDULERS = (DDIMScheduler, EulerDiscreteScheduler)
"""Schedulers whose step depends on the latents and the step's number alone."""


@dataclass(frozen=True)
class Settings:
    """What decides the look of a restyling beside the pictures."""

    prompt: str
    negative_prompt: str = ""
    strength: float = 0.8
    """Share of the noise schedule that is run, in (0, 1]: 1 forgets the colours of the input."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 and below: none."""
    control_scale: float = 1.0
    """Weight of the depth ControlNet."""
    num_inference_steps: int = 30
    """Steps of the whole schedule; ``int(steps × strength)`` of them are run."""
    seed: int = 0
    share_attention: bool = True
    """Let all views attend to each other."""
    same_noise: bool = False
    """Start all views from one noise picture instead of one each."""

    @property
    def steps_to_run(self) -> int:
        """Denoising steps that will be run."""
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    def check(self) -> None:
        """Refuses what cannot work, before anything long starts.

        Raises:
            UserError: If the prompt is empty or a number is out of its range.
        """
        if not self.prompt.strip():
            raise UserError("The prompt is empty: say in a few words what the scene shall look like.")
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"The restyling strength must lie above 0 and at most at 1, not at {self.strength}.")
        if self.num_inference_steps < 1:
            raise UserError(f"Restyling needs at least one denoising step, not {self.num_inference_steps}.")
        if self.steps_to_run == 0:
            raise UserError(
                f"{self.num_inference_steps} steps at strength {self.strength} leave no step to run: "
                f"take at least {math.ceil(1 / self.strength)} steps or a higher strength."
            )
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"The guidance scale must be a number from 0 on, not {self.guidance_scale}.")
        if not math.isfinite(self.control_scale) or self.control_scale < 0:
            raise UserError(f"The depth control scale must be a number from 0 on, not {self.control_scale}.")


class Restyler:
    """Restyles all views of a scene together."""

    known_styles: ClassVar[dict[str, str]] = {name: style.prompt for name, style in STYLES.items() if name != "photo"}
    """Styles that the embedded models know and the prompt of each; other prompts give something in between."""

    def __init__(
        self,
        pipeline: StableDiffusionXLControlNetImg2ImgPipeline,
        source: str,
        device: torch.device | str = "cpu",
        models: dict[str, str] | None = None,
    ):
        """Takes a loaded pipeline; use ``from_pretrained``.

        Args:
            pipeline: SDXL image-to-image with one ControlNet.
            source: Where it came from, for the record.
            device: Where to run; the models go there when they are first used.
            models: Repository and revision of each part, for the record.

        Raises:
            UserError: If its scheduler carries a history, which a restart could not restore.
        """
        if not isinstance(pipeline.scheduler, STATELESS_SCHEDULERS):
            known = " or ".join(kind.__name__ for kind in STATELESS_SCHEDULERS)
            raise UserError(f"The scheduler {type(pipeline.scheduler).__name__} cannot be resumed: use {known}.")
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()
        self.pipeline = pipeline
        self.source = source
        self.device = torch.device(device)
        self._models = models or {}

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "embedded", device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Restyler:
        """Loads the models.

        Args:
            source: ``"embedded"``, ``"sdxl"`` or a local folder in diffusers' layout.
            device: Where to run.
            dtype: Precision; by default float16 for ``"sdxl"`` on a GPU, float32 otherwise.

        Raises:
            UserError: If the models are not there and cannot be had, or do not fit.
        """
        on_gpu = torch.device(device).type != "cpu"
        if source == "sdxl":
            pipeline = load_from_hub(dtype or (torch.float16 if on_gpu else torch.float32))
            models = {name: f"{model.repository}@{model.revision}" for name, model in HUB_MODELS.items()}
            return cls(pipeline, "sdxl", device, models)
        folder = EMBEDDED_FOLDER if source == "embedded" else Path(source)
        return cls(load_from_folder(folder, dtype or torch.float32), str(source), device)

    @staticmethod
    def check(prompt: str, strength: float, num_inference_steps: int, **others: Any) -> None:
        """Refuses settings that cannot work (see ``Settings.check``), without loading anything."""
        Settings(prompt, strength=strength, num_inference_steps=num_inference_steps, **others).check()

    def to(self, device: torch.device | str) -> Restyler:
        """Moves the models, and from now on runs there."""
        self.device = torch.device(device)
        self._move(self.device)
        return self

    def offload(self) -> None:
        """Moves the models to the CPU's memory until they are next used, and frees the GPU's."""
        self._move(torch.device("cpu"))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _move(self, device: torch.device) -> None:
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(device)

    def provenance(self) -> dict[str, Any]:
        """Where the models come from and what they are, for a manifest."""
        parts = self.pipeline.components.items()
        return {
            "source": self.source,
            "models": self._models,
            "classes": {name: type(part).__name__ for name, part in parts if part is not None},
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "diffusers": __version__,
        }

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which views of the given size are restyled: about the models' native area, about their aspect.

        Of all sizes whose sides the models can halve as often as they need to, the one with the least
        ``|log aspect error| + ½ |log area error|``.
        """
        native = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        unit = self._unit
        sides = range(unit, 4 * native + 1, unit)

        def misfit(size: tuple[int, int]) -> float:
            tall, wide = size
            return abs(math.log(tall * width / (wide * height))) + 0.5 * abs(math.log(tall * wide / native**2))

        return min(((tall, wide) for tall in sides for wide in sides), key=misfit)

    @property
    def _unit(self) -> int:
        """Sides of the working size are multiples of this."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def restyle(
        self,
        images: Float[Tensor, "views 3 height width"],
        depths: Float[Tensor, "views 1 height width"],
        prompt: str,
        *,
        negative_prompt: str = "",
        strength: float = 0.8,
        guidance_scale: float = 5.0,
        control_scale: float = 1.0,
        num_inference_steps: int = 30,
        seed: int = 0,
        share_attention: bool = True,
        same_noise: bool = False,
        height: int | None = None,
        width: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_view: Callable[[int, Float[Tensor, "3 height width"]], None] | None = None,
        resume_dir: Path | None = None,
    ) -> Float[Tensor, "views 3 height width"]:
        """Restyles all views of a scene together.

        Args:
            images: The views in [0, 1].
            depths: z-depth of each in scene units, 0 where nothing is.
            prompt: What the scene shall look like.
            negative_prompt: What it shall not look like.
            strength: See ``Settings``, as for the arguments up to ``same_noise``.
            guidance_scale: See ``Settings``.
            control_scale: See ``Settings``.
            num_inference_steps: See ``Settings``.
            seed: See ``Settings``.
            share_attention: See ``Settings``.
            same_noise: See ``Settings``.
            height: Working height; chosen by ``working_size`` if neither is given.
            width: Working width.
            on_step: Called after each step with the steps done and the steps in all; what it raises ends the work,
                which can then be taken up again.
            on_view: Called with each view's number and picture when it is decoded.
            resume_dir: Where the state is kept after each step and each decoded view. A call with equal inputs takes up
                what lies there; anything else there is replaced.

        Returns:
            The restyled views in [0, 1], float32 on the CPU, of exactly the input's size.

        Raises:
            UserError: If a setting cannot work.
            ValueError: If pictures and depths do not fit together.
        """
        settings = Settings(
            prompt=prompt,
            negative_prompt=negative_prompt,
            strength=strength,
            guidance_scale=guidance_scale,
            control_scale=control_scale,
            num_inference_steps=num_inference_steps,
            seed=seed,
            share_attention=share_attention,
            same_noise=same_noise,
        )
        settings.check()
        _check_views(images, depths)
        size = self._checked_size(images.shape[-2:], height, width)
        images, depths = images.detach().float().cpu(), depths.detach().float().cpu()
        record = Record(resume_dir, self._fingerprint(settings, size, images, depths))
        self._move(self.device)
        latents = self._denoise(images, depths, settings, size, record, on_step)
        views = []
        for number, latent in enumerate(latents):
            view = record.view(number)
            if view is None:
                view = _resize(self._decode(latent[None]), images.shape[-2:])[0].clamp(0, 1)
                record.keep_view(number, view)
            if on_view:
                on_view(number, view)
            views.append(view)
        return torch.stack(views)

    def _checked_size(self, size: torch.Size, height: int | None, width: int | None) -> tuple[int, int]:
        if height is None and width is None:
            return self.working_size(*size)
        if not height or not width or height % self._unit or width % self._unit:
            raise UserError(
                f"The working size {height} × {width} does not suit the models: give both sides, as multiples of "
                f"{self._unit}, or neither."
            )
        return height, width

    def _fingerprint(self, settings: Settings, size: tuple[int, int], images: Tensor, depths: Tensor) -> str:
        """A hash of everything that decides the result."""
        told = json.dumps([asdict(settings), size, list(images.shape), self.provenance()], sort_keys=True)
        digest = hashlib.sha256(told.encode())
        for pictures in (images, depths):
            digest.update(pictures.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _denoise(
        self,
        images: Float[Tensor, "views 3 height width"],
        depths: Float[Tensor, "views 1 height width"],
        settings: Settings,
        size: tuple[int, int],
        record: Record,
        on_step: Callable[[int, int], None] | None,
    ) -> Float[Tensor, "views channels tall wide"]:
        """The stock pipeline call, from the first step or from the last one on record."""
        views, total = len(images), settings.steps_to_run
        done, latents = record.latents()
        if latents is not None:
            latents = latents.to(self.device, self.pipeline.unet.dtype)
            if done == total:
                return latents
        generators = [
            torch.Generator().manual_seed(settings.seed * 1_000_003 + (0 if settings.same_noise else view))
            for view in range(views)
        ]

        def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            finished = done + index + 1
            record.keep_latents(finished, tensors["latents"])
            if on_step:
                on_step(finished, total)
            return {}

        with attention_over_views(self.pipeline.unet, views) if settings.share_attention else nullcontext():
            shown: Any = self.pipeline(
                image=_resize(images, size).clamp(0, 1),
                control_image=_resize(control_pictures(depths), size).clamp(0, 1),
                # The pipeline runs the last int(steps × strength) steps: the half step keeps rounding out of it.
                strength=min(1.0, (total - done + 0.5) / settings.num_inference_steps),
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                controlnet_conditioning_scale=settings.control_scale,
                generator=generators,
                latents=latents,
                output_type="latent",
                callback_on_step_end=after_step,  # pyright: ignore[reportArgumentType]
                **self._encode(settings, views),
            )
        return shown.images

    def _encode(self, settings: Settings, views: int) -> dict[str, Any]:
        """The prompt's embeddings, computed once, repeated for every view."""
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        encoded = self.pipeline.encode_prompt(
            settings.prompt,
            device=self.device,
            do_classifier_free_guidance=settings.guidance_scale > 1,
            # None, not "": only then do models that were trained with zeros for "no prompt" get zeros.
            negative_prompt=settings.negative_prompt.strip() or None,
        )
        return {
            name: None if tokens is None else tokens.repeat(views, *[1] * (tokens.dim() - 1))
            for name, tokens in zip(names, encoded)
        }

    def _decode(self, latent: Float[Tensor, "1 channels tall wide"]) -> Float[Tensor, "1 3 height width"]:
        """One view's picture in [0, 1], on the CPU."""
        vae = self.pipeline.vae
        # The same care that the pipeline takes: an unfixed autoencoder overflows in half precision.
        upcast = vae.config.force_upcast and vae.dtype == torch.float16
        if upcast:
            vae.float()
        picture = vae.decode((latent / vae.config.scaling_factor).to(vae.dtype)).sample
        if upcast:
            vae.half()
        return (picture.float().cpu() / 2 + 0.5).clamp(0, 1)


def _check_views(images: Tensor, depths: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images must be (views, 3, height, width) with at least one view, not {tuple(images.shape)}.")
    if depths.shape != (len(images), 1, *images.shape[-2:]):
        raise ValueError(f"depths {tuple(depths.shape)} do not fit images {tuple(images.shape)}.")


def _resize(pictures: Float[Tensor, "views 3 _ _"], size: tuple[int, int] | torch.Size) -> Tensor:
    """Bicubic with antialiasing; untouched if the size is right."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return F.interpolate(pictures, size=tuple(size), mode="bicubic", antialias=True)
