"""`EscherNetPipeline`: generate M views of an object from N posed reference views in one denoising process.

    pipeline = EscherNetPipeline.from_pretrained("kxic/eschernet-6dof").to("cuda")
    views = pipeline(images, source_poses, target_poses, generator=torch.manual_seed(0)).images

Vocabulary and units: *references* are the N given views, *targets* the M wanted ones. Poses are world-to-camera
matrices with OpenGL axes, the object at the origin with its longest side about 1, cameras 1.5 to 2.2 away with a field
of view of 49.13 degrees; they are used as given. Images are in [0, 1], the object on white. Latents are the VAE's,
scaled to unit variance, float32 for any precision of the networks.

All targets are denoised together and attend to each other (`eschernet_prior.attention`): generating them in separate
calls gives another result. References enter as tokens (`eschernet_prior.image_encoder`); for the unconditional half of
classifier-free guidance the tokens are zeros and the poses are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eschernet_prior import weight_files
from eschernet_prior.attention import CapeAttnProcessor, PosedViews, first_self_attention
from eschernet_prior.base.errors import UserError
from eschernet_prior.cape import CAPE_KINDS, CapeKind
from eschernet_prior.image_encoder import ConvNeXtV2Tokens
from eschernet_prior.loading import load_layout

QUERY_CHUNKS = {"auto": 4096, "max": 1024}
"""Query tokens per call for the keywords of diffusers' `enable_attention_slicing`."""


class EscherNetPipeline(DiffusionPipeline):
    """EscherNet (Kong et al., CVPR 2024) as a diffusers pipeline.

    Args:
        unet: a UNet of the SD-1.5 architecture; its attention processor is replaced by `CapeAttnProcessor`.
        vae: Autoencoder of the views.
        image_encoder: Encodes the references as tokens, whose width is the UNet's `cross_attention_dim`.
        scheduler: Any diffusers scheduler; DDIM by default.
        cape: The camera positional encoding that the UNet was trained with.
        image_size: Side in pixels of the training views; the size of references, and of targets by default.
        weights_licence: Key of `weight_files.LICENCES`; the licence is printed when the weights are loaded.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _callback_tensor_inputs = ("latents",)

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    image_encoder: ConvNeXtV2Tokens
    scheduler: Any

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        image_encoder: ConvNeXtV2Tokens,
        scheduler: SchedulerMixin,
        cape: CapeKind = "6dof",
        image_size: int = weight_files.OFFICIAL_IMAGE_SIZE,
        weights_licence: str | None = None,
    ) -> None:
        super().__init__()
        if cape not in CAPE_KINDS:
            raise UserError(f"Unknown camera positional encoding {cape!r}: choose 6dof or 4dof.")
        _check_fit(unet, vae, image_encoder)
        unet.set_attn_processor(CapeAttnProcessor())  # pyright: ignore[reportArgumentType]  # any callable will do
        vae.enable_slicing()
        self.register_modules(unet=unet, vae=vae, image_encoder=image_encoder, scheduler=scheduler)
        self.register_to_config(cape=cape, image_size=image_size, weights_licence=weights_licence)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._query_chunk: int | None = None
        self._interrupt = False

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image per latent cell, along one side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop after the current step."""
        return self._interrupt

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Limit the query tokens per call of attention ("auto": 4096, "max": 1024): less memory, same result."""
        self._query_chunk = QUERY_CHUNKS[slice_size] if isinstance(slice_size, str) else slice_size

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # one strict loader for both layouts
        cls,
        pretrained_model_name_or_path: str | Path,
        cape: CapeKind | None = None,
        *,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        image_encoder: ConvNeXtV2Tokens | None = None,
        scheduler: SchedulerMixin | None = None,
    ) -> EscherNetPipeline:
        """Load a folder or hub repository in the official layout or in our own; every key and shape is checked.

        Args:
            pretrained_model_name_or_path: Folder or hub id, e.g. "kxic/eschernet-6dof".
            cape: The encoding of an official checkpoint; known for the published ones and for our own layout.
            torch_dtype: Precision of UNet and VAE; the image encoder is always float32.
            variant: Infix of the names of weights files, e.g. "fp16".
            revision: Branch, tag or commit on the hub.
            cache_dir: Cache folder of the hub.
            token: Access token for private repositories.
            local_files_only: Do not use the network.
            unet: Replacement for the stored UNet.
            vae: Replacement for the stored VAE.
            image_encoder: Replacement for the stored image encoder.
            scheduler: Replacement for the stored scheduler.

        Raises:
            UserError: If a file is missing or weights do not fit; the message names them.
        """
        folder = weight_files.locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        given = {"unet": unet, "vae": vae, "image_encoder": image_encoder, "scheduler": scheduler}
        options, components = load_layout(
            folder,
            str(pretrained_model_name_or_path),
            cls.__name__,
            cape,
            dtype=torch_dtype,
            variant=variant,
            given={name: component for name, component in given.items() if component is not None},
        )
        pipeline = cls(**components, **options)
        if options["weights_licence"]:
            weight_files.announce_licence(options["weights_licence"])
        return pipeline

    @torch.no_grad()
    def encode_references(
        self, images: Sequence[Image.Image] | Float[Tensor, "references 3 height width"]
    ) -> Float[Tensor, "1 references*tokens channels"]:
        """Resize the references to the training size and encode them as tokens, view after view."""
        pixels = reference_pixels(images, self.config["image_size"]).to(self._execution_device)
        return self.image_encoder(self.image_encoder.preprocess(pixels)).flatten(0, 1)[None]

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "targets channels h w"]) -> Float[Tensor, "targets 3 height width"]:
        """Decode latents to images around [-1, 1], not clamped, float32."""
        scaled = latents / self.vae.config["scaling_factor"]
        return self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Image.Image] | Float[Tensor, "references 3 height width"],
        source_poses: Float[Tensor, "references 4 4"],
        target_poses: Float[Tensor, "targets 4 4"],
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "targets channels h w"] | None = None,
        output_type: str = "pil",
        eta: float = 0.0,
        first_step: int = 0,
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], Mapping[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate views of an object at new poses.

        Args:
            images: The N references, PIL images (transparent parts become white) or a tensor in [0, 1].
            source_poses: World-to-camera poses of the references, used as given.
            target_poses: World-to-camera poses of the M wanted views.
            num_inference_steps: Denoising steps.
            guidance_scale: Strength of classifier-free guidance, `u + s (c - u)`; none at 1 and below.
            height: Height of the generated views in pixels; default: the training size.
            width: Width of the generated views in pixels; default: the training size.
            generator: Source of the noise; a list has one generator per target.
            latents: The initial noise, or with `first_step` the latents to resume from.
            output_type: "pil", "np" (targets height width 3) or "pt" (targets 3 height width), in [0, 1], or "latent".
            eta: Share of fresh noise per step, for schedulers with that option.
            first_step: Number of steps already taken for `latents`, to resume from latents that a callback saved.
            return_dict: Return an output object instead of a tuple.
            callback_on_step_end: Called as `f(pipeline, step, timestep, {"latents": ...})` after each step; may
                return a modified dict.
            callback_on_step_end_tensor_inputs: Keys of that dict; only "latents" is supported.

        Returns:
            `.images`, the M views.
        """
        device, size = self._execution_device, self.config["image_size"]
        source_poses, target_poses = _check_poses(source_poses, "source"), _check_poses(target_poses, "target")
        if len(images) != len(source_poses):
            raise ValueError(f"{len(images)} reference images do not match {len(source_poses)} poses.")
        self._check_call(output_type, callback_on_step_end_tensor_inputs, first_step, latents)
        tokens = self.encode_references(images).to(self.unet.dtype)
        views = PosedViews.from_poses(self.config["cape"], source_poses[None], target_poses[None], device)
        guided = guidance_scale > 1
        views = replace(
            views.with_unconditional_half() if guided else views,
            before_references=first_self_attention(self.unet),
            query_chunk=self._query_chunk,
            reference_cache={},
        )
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        current: Tensor = self._initial_latents(
            len(target_poses), height or size, width or size, generator, latents, device, started=first_step > 0
        )
        extra = self._scheduler_options(eta, generator)
        self._interrupt = False
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps) - first_step) as progress:  # pyright: ignore[reportCallIssue]
            for step, timestep in enumerate(timesteps[first_step:], first_step):
                if self.interrupt:
                    break
                noise = self._predict_noise(current, timestep, tokens, views, guidance_scale if guided else None)
                current = self.scheduler.step(noise, timestep, current, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    held = dict.fromkeys(callback_on_step_end_tensor_inputs, current)
                    changed = callback_on_step_end(self, step, timestep, held)
                    current = changed.get("latents", current) if changed else current
                progress.update()
        made = self._finish(current, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def _predict_noise(
        self,
        latents: Float[Tensor, "targets channels h w"],
        timestep: Tensor,
        tokens: Float[Tensor, "1 references*tokens channels"],
        views: PosedViews,
        guidance_scale: float | None,
    ) -> Float[Tensor, "targets channels h w"]:
        """One call of the UNet; with guidance its batch is [unconditional targets, conditional targets]."""
        sample = self.scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)
        if guidance_scale is not None:
            sample = torch.cat((sample, sample))
        noise = self.unet(sample, timestep, tokens, cross_attention_kwargs={"views": views}, return_dict=False)[
            0
        ].float()
        if guidance_scale is None:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _initial_latents(
        self,
        targets: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        device: torch.device,
        started: bool,
    ) -> Float[Tensor, "targets channels h w"]:
        """Independent unit noise for each target, or the given latents, at the scheduler's scale."""
        factor = self.vae_scale_factor
        if height % factor or width % factor:
            raise ValueError(
                f"Views of {height}×{width} pixels cannot be generated: both sides must be multiples of {factor}."
            )
        shape = (targets, self.unet.config["in_channels"], height // factor, width // factor)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"Latents of shape {tuple(latents.shape)} were given where {shape} are needed.")
        latents = latents.to(device, torch.float32)
        return latents if started else latents * self.scheduler.init_noise_sigma

    def _scheduler_options(
        self, eta: float, generator: torch.Generator | list[torch.Generator] | None
    ) -> dict[str, Any]:
        """Those of eta and generator that the scheduler's step accepts."""
        known = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in known}

    def _finish(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(self.decode_latents(latents), output_type)

    def _check_call(self, output_type: str, held: Sequence[str], first_step: int, latents: Tensor | None) -> None:
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, not {output_type!r}.")
        if not set(held) <= set(self._callback_tensor_inputs):
            raise ValueError(f"Callbacks support the tensors {self._callback_tensor_inputs}, not {tuple(held)}.")
        if first_step and latents is None:
            raise ValueError("Resuming with first_step needs the latents of that step.")
        if not all(isinstance(each, CapeAttnProcessor) for each in self.unet.attn_processors.values()):
            raise ValueError(
                "The UNet's attention processors were replaced: without CaPE it has no access to the poses."
            )


def reference_pixels(
    images: Sequence[Image.Image] | Float[Tensor, "references 3 height width"], size: int
) -> Float[Tensor, "references 3 size size"]:
    """Resize references to the training size (bilinear, antialiased), in [0, 1], composed over white."""
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Reference images must be a tensor (references, 3, height, width), not {tuple(images.shape)}."
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError("Reference images must have values in [0, 1].")
        if images.shape[-2:] == (size, size):
            return images.float()
        return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return torch.stack([_pil_pixels(image, size) for image in images])


def _pil_pixels(image: Image.Image, size: int) -> Float[Tensor, "3 size size"]:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _check_poses(poses: Tensor | np.ndarray, which: str) -> Float[Tensor, "views 4 4"]:
    """The poses on the CPU in float64, for the inversion."""
    poses = torch.as_tensor(poses).detach().to("cpu", torch.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses) or not bool(poses.isfinite().all()):
        raise ValueError(f"The {which} poses must be finite matrices (views, 4, 4) of at least one view.")
    return poses


def _check_fit(unet: UNet2DConditionModel, vae: AutoencoderKL, image_encoder: ConvNeXtV2Tokens) -> None:
    """Refuse networks whose sizes do not fit each other.

    Raises:
        UserError: If two sizes differ; the message names them.
    """
    latent, taken = vae.config["latent_channels"], unet.config["in_channels"]
    if not latent == taken == unet.config["out_channels"]:
        raise UserError(
            f"These networks do not fit each other: the UNet has {taken} input and {unet.config['out_channels']} "
            f"output channels, the VAE's latents have {latent}."
        )
    if unet.config["cross_attention_dim"] != image_encoder.width:
        raise UserError(
            f"These networks do not fit each other: the UNet attends to tokens of {unet.config['cross_attention_dim']} "
            f"channels, those of the image encoder have {image_encoder.width}."
        )
