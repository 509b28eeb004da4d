"""The field that is restyled, and the options that say how it shall look."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from eschernet_prior.errors import UserError
from eschernet_prior.field import FieldModel, FieldModelConfig


@dataclass
class StyleModelConfig(FieldModelConfig):
    """Configuration of a field that is restyled."""

    _target: type = field(default_factory=lambda: StyleModel)
    prompt: str = ""
    """What the scene shall look like, in words; --prompt sets the same."""
    negative_prompt: str = ""
    """What it shall not look like, in words."""
    style_loss_mult: float = 1.0
    """Weight of the sliced Wasserstein distance between rendered and restyled views."""
    rgb_loss_mult: float = 0.0
    """Weight of the pixel-wise difference between rendered and restyled views: it follows them to the letter, also
    where they disagree with each other."""
    vgg_weights: str = "imagenet"
    """Weights of the VGG19 that the style loss looks through: imagenet (downloaded by torchvision on first use), random
    (fixed, seeded, no download), or the path of a file."""
    style_directions: int | None = None
    """Projections a layer of the sliced Wasserstein distance; default: as many as the layer has channels."""
    style_rays_per_chunk: int = 4096
    """Rays whose activations are in memory at the same time while a whole view is retrained."""

    def check_style(self) -> None:
        """Refuse options that cannot work.

        Raises:
            UserError: no prompt, or no loss.
        """
        if not self.prompt.strip():
            raise UserError('Say what the scene shall look like, for example --prompt "a watercolor painting".')
        if self.style_loss_mult < 0 or self.rgb_loss_mult < 0 or self.style_loss_mult + self.rgb_loss_mult == 0:
            raise UserError(
                "The retraining has nothing to follow: --pipeline.model.style-loss-mult and "
                "--pipeline.model.rgb-loss-mult must not be negative, and one of them must be above 0."
            )


class StyleModel(FieldModel):
    """Nerfacto with the losses of a restyling round."""

    config: StyleModelConfig

    def geometry_losses(self, outputs: dict, batch: dict) -> dict[str, Tensor]:
        """The terms of nerfacto's loss that do not look at the photos' colours.

        They keep proposal networks and density in order.

        Args:
            outputs: what the model returned for a ray batch.
            batch: the batch.

        Returns:
            The interlevel and the distortion loss.
        """
        losses = self.get_loss_dict(outputs, batch, self.get_metrics_dict(outputs, batch))
        return {name: losses[name] for name in ("interlevel_loss", "distortion_loss")}
