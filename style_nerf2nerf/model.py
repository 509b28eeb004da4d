"""The field that is restyled, and the options that say how it shall look."""

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
from style_nerf2nerf.features import STYLE_LAYERS, VGG19_LAYERS

LONGEST_PROMPT = 1000
"""Characters of a prompt; CLIP reads 75 tokens, and nobody means to write more than this."""


@dataclass
class StyleModelConfig(FieldModelConfig):
    """Configuration of a field that is restyled."""

    _target: type = field(default_factory=lambda: StyleModel)
    prompt: str = ""
    """What the scene shall look like, in words; --prompt sets the same."""
    more_prompts: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Further styles that are blended with the first, each with this option; --pipeline.style-weights says how much."""
    negative_prompt: str = ""
    """What it shall not look like, in words."""
    style_loss_mult: float = 1.0
    """Weight of the sliced Wasserstein distance between rendered and restyled views."""
    style_windows: tuple[int, ...] = (1,)
    """Windows a side that the sliced Wasserstein distance is taken in, the mean over these sizes: 1 compares the whole
    view with the whole restyled view (the paper's own), 2 each quarter with the same quarter, and so on."""
    style_every: int = 1
    """A step in so many looks at a whole view; the others only follow rays (--pipeline.model.ray-loss-mult)."""
    aligned_loss_mult: float = 0.1
    """Weight of the difference of VGG19 features, in place, between a view and its restyled view."""
    aligned_layers: tuple[str, ...] = ("conv4_1", "conv4_2", "conv4_3", "conv4_4")
    """Layers of VGG19 that this aligned term looks at."""
    ray_loss_mult: float = 0.0
    """Weight of the difference of colours on rays drawn from all restyled views at every step."""
    ray_loss: Literal["l1", "l2", "locked"] = "l1"
    """How it is measured: l1, whose optimum is the median of what the views show; l2, whose optimum is the mean; or
    locked, which takes no notice of views that are far from what the field already shows there."""
    rgb_loss_mult: float = 0.0
    """Weight of the mean squared difference of colours between a whole view and its restyled view."""
    content_loss_mult: float = 0.0
    """Weight of the difference of conv4 features, in place, between a view and what it was before the first round: it
    holds the scene's content against the style."""
    gram_loss_mult: float = 0.0
    """Weight of the difference of Gram matrices between rendered and restyled views, for comparison."""
    depth_loss_mult: float = 0.0
    """Weight of the change of depth, as a share of it, against what it was before the first round."""
    background_loss_mult: float = 100.0
    """With masks: weight of the pixel-wise difference outside them to what was there before the first round."""
    freeze_density: bool = False
    """Hold the shape as it was before the first round: only colours change."""
    vgg_weights: str = "imagenet"
    """Weights of the VGG19 that the style loss looks through: imagenet (downloaded by torchvision on first use), random
    (fixed, seeded, no download), or the path of a file."""
    style_layers: tuple[str, ...] = STYLE_LAYERS
    """Layers of VGG19 that the style loss looks at."""
    style_layer_weights: tuple[float, ...] = ()
    """Weight of each of these layers, in their order; default: all alike."""
    style_directions: int | None = None
    """Projections a layer of the sliced Wasserstein distance; default: as many as the layer has channels."""
    style_half_precision: bool = False
    """Compute VGG19's features in bfloat16; sorting stays in float32."""
    style_rays_per_chunk: int = 4096
    """Rays whose activations are in memory at the same time while a whole view is retrained."""
    style_patch_size: int = 0
    """Side in pixels of the patches that a step looks at, at a place drawn anew each time; 0: whole views."""

    def check_prompts(self) -> None:
        """Refuse prompts that say nothing, or more than a text encoder reads.

        Raises:
            UserError: one of them.
        """
        if not all(prompt.strip() for prompt in (self.prompt, *self.more_prompts)):
            raise UserError('Say what the scene shall look like, for example --prompt "a watercolor painting".')
        for prompt in (self.prompt, *self.more_prompts, self.negative_prompt):
            check_length(prompt)

    def check_losses(self) -> None:
        """Refuse losses that cannot work.

        Raises:
            UserError: a negative weight, nothing to follow, or layer weights that do not fit.
        """
        followed = ("style_loss_mult", "aligned_loss_mult", "ray_loss_mult", "rgb_loss_mult", "gram_loss_mult")
        others = ("content_loss_mult", "depth_loss_mult", "background_loss_mult")
        negative = [name for name in (*followed, *others) if getattr(self, name) < 0]
        if negative:
            option = negative[0].replace("_", "-")
            raise UserError(f"--pipeline.model.{option} is the weight of a loss: it must not be negative.")
        if not any(getattr(self, name) for name in followed):
            raise UserError(
                "All losses that follow the restyled views are off: one of --pipeline.model.style-loss-mult, "
                ".aligned-loss-mult, .ray-loss-mult, .rgb-loss-mult and .gram-loss-mult must be above 0."
            )
        if self.style_every < 1 or (self.style_every > 1 and not self.ray_loss_mult):
            raise UserError(
                "--pipeline.model.style-every must be at least 1, and may be above 1 only where the other steps have "
                "rays to follow: raise --pipeline.model.ray-loss-mult."
            )
        if not self.style_windows or min(self.style_windows) < 1:
            raise UserError("--pipeline.model.style-windows are numbers of windows a side, each at least 1: 1 2 4.")
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
                f"--pipeline.model.style-layer-weights must be {len(self.style_layers)} numbers, one a layer, at least "
                "0 and not all 0."
            )


def check_length(prompt: str) -> None:
    """Refuse a prompt whose end the text encoders would not read.

    Raises:
        UserError: it is too long.
    """
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(
            f"A prompt has {len(prompt)} characters, of which the text encoders read about the first 300: say it in "
            f"at most {LONGEST_PROMPT}."
        )


class StyleModel(FieldModel):
    """Nerfacto with the losses of a restyling round."""

    config: StyleModelConfig
    geometry_held: Tensor

    def populate_modules(self) -> None:
        """Build the field; with `freeze_density` also a place for the one whose density is held."""
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
        """From now on the density stays what it is, where `freeze_density` says so; later calls change nothing."""
        if self.config.freeze_density and not self.geometry_held:
            self.geometry.load_state_dict(self.field.state_dict())
            self.geometry_held.fill_(True)

    def geometry_losses(self, outputs: dict, colours: Float[Tensor, "rays 3"]) -> dict[str, Tensor]:
        """The terms of nerfacto's loss that do not look at colours.

        They keep proposal networks and density in order. Where the density is held there is nothing to keep, and
        samples stay where they were.

        Args:
            outputs: what the model returned for a ray batch.
            colours: of the batch; nerfstudio asks for some.

        Returns:
            The interlevel and the distortion loss, or none.
        """
        if self.config.freeze_density and self.geometry_held:
            return {}
        batch = {"image": colours}
        losses = self.get_loss_dict(outputs, batch, self.get_metrics_dict(outputs, batch))
        return {name: losses[name] for name in ("interlevel_loss", "distortion_loss")}
