"""What decides the look of a restyling beside the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eschernet_prior.base.errors import UserError


@dataclass
class Settings:
    """What decides the look of a restyling beside the pictures."""

    prompt: str = ""
    """What the scene shall look like; may be empty where a reference picture shows it."""
    negative_prompt: str = ""
    strength: float = 0.8
    """Share of the noise schedule that is run, in (0, 1]: 1 forgets the colours of the input."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 and below: none."""
    control_scale: float = 1.0
    """Weight of the depth ControlNet."""
    num_inference_steps: int = 30
    """Steps of the whole schedule; `int(steps × strength)` of them are run."""
    seed: int = 0
    share_attention: bool = True
    """Let all views attend to each other."""
    share_strength: float = 1.0
    """Weight of other views' tokens beside a view's own, in [0, 1]."""
    share_keyframes: int = 0
    """Number of evenly spaced views whose tokens all views see; the others are seen only between the same two
    keyframes. 0: all views see all. For scenes with so many views that attention takes most of the time."""
    shared_layers: tuple[str, ...] = ()
    """Beginnings of the names of the UNet's blocks that share, such as `up_blocks`; none: all of them."""
    same_noise: bool = False
    """Start all views from one noise picture instead of one each."""
    warped_noise: bool = False
    """Start a surface from the same noise in all views that see it; needs cameras."""
    reference_attention: bool = True
    """Let all views attend to the reference picture, if there is one (StyleAligned)."""
    adain: bool = True
    """Let queries and keys take over the reference picture's mean and deviation (StyleAligned)."""
    ip_adapter: str | None = None
    """Let an IP-Adapter read the reference picture: `"sdxl"`, the hub's, or a local folder of the same layout."""
    ip_adapter_scale: float = 0.6
    """Weight of the IP-Adapter beside the prompt."""

    @property
    def steps_to_run(self) -> int:
        """Denoising steps that will be run."""
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    def check(self, has_reference: bool = False, has_cameras: bool = True) -> None:
        """Refuses what cannot work, before anything long starts.

        Args:
            has_reference: Whether a reference picture is given.
            has_cameras: Whether the views' cameras are known.

        Raises:
            UserError: If there is nothing to go by, options exclude each other or a number is out of its range.
        """
        self._check_numbers()
        if not self.prompt.strip() and not has_reference:
            raise UserError("The prompt is empty: say in a few words what the scene shall look like.")
        if self.same_noise and self.warped_noise:
            raise UserError("The views can start from the same noise or from warped noise, not from both: choose one.")
        if self.warped_noise and not has_cameras:
            raise UserError("Noise can only be warped between views whose cameras are known: give them.")
        if has_reference and not (self.reference_attention or self.ip_adapter):
            raise UserError("Nothing looks at the reference picture: let the views attend to it or name an IP-Adapter.")
        if has_reference and self.reference_attention and not self.share_attention:
            raise UserError(
                "The views attend to a reference picture through shared attention: switch it on, or the reference's "
                "attention off."
            )
        if self.ip_adapter and not has_reference:
            raise UserError("An IP-Adapter reads a reference picture: give one, or no IP-Adapter.")

    def _check_numbers(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"The restyling strength must lie above 0 and at most at 1, not at {self.strength}.")
        if self.num_inference_steps < 1:
            raise UserError(f"Restyling needs at least one denoising step, not {self.num_inference_steps}.")
        if self.steps_to_run == 0:
            raise UserError(
                f"{self.num_inference_steps} steps at strength {self.strength} leave no step to run: "
                f"take at least {math.ceil(1 / self.strength)} steps or a higher strength."
            )
        if not 0.0 <= self.share_strength <= 1.0:
            raise UserError(f"The strength of sharing must lie between 0 and 1, not at {self.share_strength}.")
        if self.share_keyframes < 0:
            raise UserError(f"--pipeline.restyle.share-keyframes must be at least 0, not {self.share_keyframes}.")
        for name, scale in (
            ("guidance scale", self.guidance_scale),
            ("depth control scale", self.control_scale),
            ("IP-Adapter's scale", self.ip_adapter_scale),
        ):
            if not math.isfinite(scale) or scale < 0:
                raise UserError(f"The {name} must be a number from 0 on, not {scale}.")
