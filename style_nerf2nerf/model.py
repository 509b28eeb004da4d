"""The restyled field, with the options of prompts and losses."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import FieldModel, FieldModelConfig
from style_nerf2nerf.vgg19 import STYLE_LAYERS, VGG19_LAYERS

LONGEST_PROMPT = 1000
"""Largest number of characters in a prompt; CLIP reads 75 tokens."""


@dataclass
class StyleModelConfig(FieldModelConfig):
    """Configuration of the restyled field."""

    _target: type = field(default_factory=lambda: StyleModel)
    prompt: str = ""
    """Description of the wanted style; the same as --prompt."""
    more_prompts: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further style to blend with the first; repeat the option for more. --pipeline.style-weights sets the shares."""
    negative_prompt: str = ""
    """Description of what to avoid."""
    style_loss_mult: float = 1.0
    """Weight of the sliced Wasserstein distance between rendered and restyled views."""
    style_windows: tuple[int, ...] = (1,)
    """Numbers of windows per side over which the sliced Wasserstein distance is averaged: 1 compares the whole view
    with the whole restyled view, as in the paper; 2 compares each quarter with the same quarter; and so on."""
    style_every: int = 1
    """Interval in steps of losses on a whole view; the other steps use rays only (--pipeline.model.ray-loss-mult)."""
    aligned_loss_mult: float = 0.1
    """Weight of the aligned term, the difference of VGG19 features at the same pixels of a view and its restyled
    view."""
    aligned_layers: tuple[str, ...] = ("conv4_1", "conv4_2", "conv4_3", "conv4_4")
    """VGG19 layers of the aligned term."""
    ray_loss_mult: float = 100.0
    """Weight of the difference of colours on rays drawn from all restyled views at every step; a tenth of it in a
    blend, where the rays are compared with the weighted mean of the styles."""
    ray_loss: Literal["l1", "l2", "locked"] = "l1"
    """Measure of that difference: l1, whose optimum is the median of the views' colours; l2, whose optimum is their
    mean; or locked, which ignores views whose colours are far from those of the field."""
    rgb_loss_mult: float = 0.0
    """Weight of the mean squared difference of colours between a whole view and its restyled view."""
    content_loss_mult: float = 0.0
    """Weight of the content term, the difference of conv4 features at the same pixels of a view and the same view
    before the first round; it preserves the content of the scene."""
    gram_loss_mult: float = 0.0
    """Weight of the difference of Gram matrices between rendered and restyled views."""
    depth_loss_mult: float = 0.0
    """Weight of the relative change of depth against the field before the first round."""
    background_loss_mult: float = 100.0
    """With masks: weight of the change of pixels outside them against the field before the first round."""
    freeze_density: bool = False
    """Keep the density of the field before the first round, so that only colours change."""
    vgg_weights: str = "imagenet"
    """Weights of the style loss's VGG19: imagenet (downloaded by torchvision on first use), random (fixed by a seed, no
    download), or the path of a file."""
    style_layers: tuple[str, ...] = STYLE_LAYERS
    """VGG19 layers of the style loss."""
    style_layer_weights: tuple[float, ...] = ()
    """Weights of these layers, in the same order; default: equal."""
    style_directions: int | None = None
    """Projections per layer of the sliced Wasserstein distance; default: the number of channels of the layer."""
    style_half_precision: bool = False
    """Compute VGG19's features in bfloat16; sorting stays in float32."""
    style_rays_per_chunk: int = 4096
    """Rays per chunk when a whole view is rendered with gradients, which limits memory."""
    style_patch_size: int = 0
    """Side in pixels of random patches for the losses of a step; 0 for whole views."""

    @property
    def loss_layers(self) -> tuple[str, ...]:
        """VGG19 layers that the style loss and the aligned term need."""
        return (*self.style_layers, *(self.aligned_layers if self.aligned_loss_mult else ()))

    def check_prompts(self) -> None:
        """Refuse prompts that are empty or too long.

        Raises:
            UserError: If a prompt is empty or too long.
        """
        if not all(prompt.strip() for prompt in (self.prompt, *self.more_prompts)):
            raise UserError('The prompt is empty: describe the style, for example --prompt "a watercolor painting".')
        for prompt in (self.prompt, *self.more_prompts, self.negative_prompt):
            check_length(prompt)

    def check_losses(self) -> None:
        """Refuse weights of losses that cannot be used.

        Raises:
            UserError: If a weight is negative, all losses are off, or the layer weights do not fit.
        """
        followed = ("style_loss_mult", "aligned_loss_mult", "ray_loss_mult", "rgb_loss_mult", "gram_loss_mult")
        others = ("content_loss_mult", "depth_loss_mult", "background_loss_mult")
        negative = [name for name in (*followed, *others) if getattr(self, name) < 0]
        if negative:
            option = negative[0].replace("_", "-")
            raise UserError(f"--pipeline.model.{option} is the weight of a loss and must not be negative.")
        if not any(getattr(self, name) for name in followed):
            raise UserError(
                "All losses that depend on the restyled views are off: one of --pipeline.model.style-loss-mult, "
                ".aligned-loss-mult, .ray-loss-mult, .rgb-loss-mult and .gram-loss-mult must be above 0."
            )
        if self.style_every < 1 or (self.style_every > 1 and not self.ray_loss_mult):
            raise UserError(
                "--pipeline.model.style-every must be at least 1, and may be above 1 only if the other steps have a "
                "loss on rays: raise --pipeline.model.ray-loss-mult."
            )
        if not self.style_windows or min(self.style_windows) < 1:
            raise UserError("--pipeline.model.style-windows must be numbers of at least 1, for example 1 2 4.")
        unknown = [name for name in self.aligned_layers if name not in VGG19_LAYERS]
        if unknown or not self.aligned_layers:
            raise UserError(
                f"VGG19 has no layer {', '.join(unknown) or '(none was named)'} for --pipeline.model.aligned-layers: "
                f"choose from {', '.join(VGG19_LAYERS)}."
            )
        if self.style_layer_weights and (
            len(self.style_layer_weights) != len(self.style_layers)
            or min(self.style_layer_weights) < 0
            or not any(self.style_layer_weights)
        ):
            raise UserError(
                f"--pipeline.model.style-layer-weights must be {len(self.style_layers)} numbers, one per layer, at "
                "least 0 and not all 0."
            )


def check_length(prompt: str) -> None:
    """Refuse a prompt that the text encoders would truncate.

    Raises:
        UserError: If the prompt is too long.
    """
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(
            f"A prompt has {len(prompt)} characters, of which the text encoders read about the first 300: use at most "
            f"{LONGEST_PROMPT}."
        )


class StyleModel(FieldModel):
    """Nerfacto whose density can be frozen in the rounds."""

    config: StyleModelConfig
    geometry_held: Tensor

    def populate_modules(self) -> None:
        """Build the field; with `freeze_density` also a copy that provides the frozen density."""
        super().populate_modules()
        if self.config.freeze_density:
            self.geometry = copy.deepcopy(self.field).requires_grad_(False)
            self.register_buffer("geometry_held", torch.tensor(False))
            live = self.field.get_density

            def get_density(ray_samples: RaySamples) -> tuple[Tensor, Any]:
                density, embedding = live(ray_samples)
                if self.geometry_held:
                    with torch.no_grad():
                        density, _ = self.geometry.get_density(ray_samples)
                return density, embedding

            self.field.get_density = get_density

    def hold_geometry(self) -> None:
        """Freeze the density from now on, with `freeze_density`; later calls have no effect."""
        if self.config.freeze_density and not self.geometry_held:
            self.geometry.load_state_dict(self.field.state_dict())
            self.geometry_held.fill_(True)

    def geometry_losses(self, outputs: dict, colours: Float[Tensor, "rays 3"]) -> dict[str, Tensor]:
        """Compute the terms of nerfacto's loss that do not depend on colours.

        They regularise the density and train the proposal networks. If the density is frozen, they are not needed.

        Args:
            outputs: The model's outputs for a ray batch.
            colours: Colours of the batch, which nerfstudio's function requires.

        Returns:
            The interlevel and the distortion loss; empty if the density is frozen.
        """
        if self.config.freeze_density and self.geometry_held:
            return {}
        batch = {"image": colours}
        losses = self.get_loss_dict(outputs, batch, self.get_metrics_dict(outputs, batch))
        return {name: losses[name] for name in ("interlevel_loss", "distortion_loss")}
