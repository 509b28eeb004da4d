"""Settings of a restyling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from eschernet_prior.base.errors import UserError

Speed = Literal["normal", "fast"]
"""How many denoising steps: as many as are asked for, or the few that a LoRA was made for."""
FAST_STEPS = 8
"""Denoising steps of the fast speed at full strength."""


@dataclass
class Settings:
    """Settings of a restyling."""

    prompt: str = ""
    """Description of the wanted style; may be empty with a reference picture."""
    negative_prompt: str = ""
    """Description of what to avoid."""
    strength: float = 0.8
    """Share of the noise schedule that is run, in (0, 1]; 1 ignores the colours of the input."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 and below: none."""
    control_scale: float = 1.0
    """Weight of the depth ControlNet."""
    num_inference_steps: int = 30
    """Steps of the whole schedule; `int(steps × strength)` of them are run."""
    speed: Speed = "normal"
    """normal, or fast: eight denoising steps at full strength without guidance, by SDXL-Lightning's LoRA; the number of
    steps and the guidance scale are then ignored."""
    fast_lora: str = "sdxl"
    """The LoRA for eight steps: sdxl (SDXL-Lightning's, from the hub), or a safetensors file."""
    size: int | None = None
    """Pixels along a side of a square with the area at which the views are restyled; default: what the models were made
    for, 1024 for SDXL. 768 needs about half the memory and time."""
    seed: int = 0
    """Seed of the noise."""
    share_attention: bool = True
    """Share self-attention over all views; without it, views are restyled independently."""
    share_strength: float = 1.0
    """Weight of other views' tokens relative to a view's own, from 0 to 1."""
    share_keyframes: int = 0
    """Number of evenly spaced views whose tokens all views see; the others are seen only between the same two
    keyframes. 0: all views see all. For scenes with so many views that attention takes most of the time."""
    shared_layers: tuple[str, ...] = ()
    """Name prefixes of the UNet blocks that share attention, such as up_blocks; default: all."""
    same_noise: bool = False
    """Use the same initial noise for all views."""
    warped_noise: bool = False
    """Use the same initial noise for a surface in all views that show it."""
    reference_attention: bool = True
    """Let all views attend to the reference picture, as in StyleAligned."""
    adain: bool = True
    """Normalise queries and keys to the reference picture's mean and deviation (AdaIN), as in StyleAligned."""
    ip_adapter: str | None = None
    """Also condition on the reference picture with an IP-Adapter: sdxl (from the hub), or a local folder."""
    ip_adapter_scale: float = 0.6
    """Weight of the IP-Adapter relative to the prompt."""

    @property
    def schedule_steps(self) -> int:
        """Denoising steps of the whole schedule."""
        return FAST_STEPS if self.speed == "fast" else self.num_inference_steps

    @property
    def guidance(self) -> float:
        """Weight of classifier-free guidance; 1: none."""
        return 1.0 if self.speed == "fast" else self.guidance_scale

    @property
    def steps_to_run(self) -> int:
        """Denoising steps that will be run."""
        return min(int(self.schedule_steps * self.strength), self.schedule_steps)

    def check(self, has_reference: bool = False, has_cameras: bool = True) -> None:
        """Refuse settings that cannot be used, before long work starts.

        Args:
            has_reference: Whether a reference picture is given.
            has_cameras: Whether the views' cameras are known.

        Raises:
            UserError: If prompt and reference are missing, options exclude each other, or a number is out of range.
        """
        self._check_numbers()
        if not self.prompt.strip() and not has_reference:
            raise UserError("The prompt is empty: describe the style in a few words.")
        if self.same_noise and self.warped_noise:
            raise UserError("Views can start from the same noise or from warped noise, not both: choose one.")
        if self.warped_noise and not has_cameras:
            raise UserError("Warped noise needs the views' cameras.")
        if has_reference and not (self.reference_attention or self.ip_adapter):
            raise UserError("The reference picture is not used: enable reference attention or choose an IP-Adapter.")
        if has_reference and self.reference_attention and not self.share_attention:
            raise UserError(
                "Reference attention needs shared attention: enable shared attention, or disable reference attention."
            )
        if self.ip_adapter and not has_reference:
            raise UserError("An IP-Adapter needs a reference picture: give one, or omit the IP-Adapter.")

    def _check_numbers(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"The restyling strength must be above 0 and at most 1, not {self.strength}.")
        if self.speed not in ("normal", "fast"):
            raise UserError(f"There is no speed {self.speed!r}: choose normal or fast.")
        if self.num_inference_steps < 1:
            raise UserError(f"Restyling needs at least one denoising step, not {self.num_inference_steps}.")
        if self.steps_to_run == 0:
            raise UserError(
                f"{self.schedule_steps} steps at strength {self.strength} leave no step to run: "
                f"use at least {math.ceil(1 / self.strength)} steps or a higher strength."
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"The working size must be at least one pixel, not {self.size}.")
        if not 0.0 <= self.share_strength <= 1.0:
            raise UserError(f"The strength of sharing must be between 0 and 1, not {self.share_strength}.")
        if self.share_keyframes < 0:
            raise UserError(f"--pipeline.restyle.share-keyframes must be at least 0, not {self.share_keyframes}.")
        for name, scale in (
            ("guidance scale", self.guidance_scale),
            ("depth control scale", self.control_scale),
            ("IP-Adapter's scale", self.ip_adapter_scale),
        ):
            if not math.isfinite(scale) or scale < 0:
                raise UserError(f"The {name} must be a number of at least 0, not {scale}.")
