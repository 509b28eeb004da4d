"""The options of a run: what restyles its views, how its styles are blended, what may change, and what cannot work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.datamanager import StyleDataManagerConfig
from style_nerf2nerf.model import StyleModelConfig, check_length
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.rounds.schedule import Look
from style_nerf2nerf.rounds.storage import RoundsConfig


@dataclass
class RestyleConfig:
    """What restyles the views."""

    source: str = "sdxl"
    """The diffusion models: sdxl (SDXL and a depth ControlNet from the hub), embedded (the small ones in this package),
    or a folder with a StableDiffusionXLControlNetImg2ImgPipeline in diffusers' layout."""
    num_inference_steps: int = 50
    """Denoising steps at full strength; a lower strength leaves out the first of them."""
    guidance_scale: float = 7.5
    """How closely the views follow the prompt."""
    control_scale: float = 0.5
    """How closely they follow the field's depth."""
    share_attention: bool = True
    """Whether all views see each other while they are restyled; without it each goes its own way."""
    share_strength: float = 1.0
    """Weight of the other views' tokens beside a view's own, from 0 to 1."""
    shared_layers: tuple[str, ...] = ()
    """Beginnings of the names of the UNet's blocks that share attention, such as up_blocks; default: all."""
    same_noise: bool = False
    """Start all views from one noise picture instead of one each."""
    warped_noise: bool = False
    """Start a surface from the same noise in all views that see it."""
    reference: Path | None = None
    """A picture in the wanted style, instead of a prompt or beside it."""
    reference_attention: bool = True
    """Whether all views attend to the reference picture, as in StyleAligned."""
    adain: bool = True
    """Whether queries and keys take over the reference picture's statistics, as in StyleAligned."""
    ip_adapter: str | None = None
    """Also let an IP-Adapter read the reference picture: sdxl (the hub's), or a local folder of the same layout."""
    ip_adapter_scale: float = 0.6
    """Weight of the IP-Adapter beside the prompt."""
    max_views_per_batch: int | None = None
    """Views that are worked on at a time, which the result does not depend on; default: as many as the memory holds."""
    seed: int = 0
    """Seed of the noise."""

    def settings(self, prompt: str, negative_prompt: str, strength: float) -> Settings:
        """What the restyler is asked for in a round, but for the seed."""
        own = {option.name for option in fields(Settings)} & {option.name for option in fields(self)}
        return Settings(
            prompt=prompt,
            negative_prompt=negative_prompt,
            strength=strength,
            **{name: getattr(self, name) for name in own},
        )

    def decisive(self) -> dict[str, Any]:
        """The options that decide a round's pictures, as JSON gives them back."""
        options = {name: value for name, value in asdict(self).items() if name != "max_views_per_batch"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()} | {
            "shared_layers": list(self.shared_layers)
        }

    def check(self, prompt: str, lowest_strength: float) -> None:
        """Refuse what cannot work.

        Args:
            prompt: one of the prompts.
            lowest_strength: of all rounds.

        Raises:
            UserError: no denoising step would be left, options exclude each other, or there is no such picture.
        """
        if int(self.num_inference_steps * lowest_strength) < 1:
            raise UserError(
                f"{self.num_inference_steps} denoising steps at strength {lowest_strength:.2f} leave none to run: "
                "raise --pipeline.restyle.num-inference-steps or --pipeline.rounds.strength."
            )
        if self.reference is not None and not self.reference.is_file():
            raise UserError(f"There is no picture {self.reference}: give --pipeline.restyle.reference one.")
        self.settings(prompt, "", lowest_strength).check(has_reference=self.reference is not None)


@dataclass
class StylePipelineOptions(VanillaPipelineConfig):
    """All options of the whole way from photos to a restyled field; the stages see no more of its configuration."""

    datamanager: StyleDataManagerConfig = field(default_factory=StyleDataManagerConfig)
    """The capture, and which of its cameras are restyled."""
    model: StyleModelConfig = field(default_factory=StyleModelConfig)
    """The field, the prompt and the losses."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """How long each stage is, and how strong each round."""
    restyle: RestyleConfig = field(default_factory=RestyleConfig)
    """What restyles the views."""
    restyled_data: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Views that are restyled already, in place of prompts and diffusion models: a nerfstudio dataset, or a folder of
    pictures named like the photos. With this option given more than once, these styles are blended."""
    style_weights: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """Share of each style where there are several, given once a style; default: all alike. The viewer has a slider for
    each, which acts at the next step."""
    masks: str | None = None
    """What is to change, white inside: a folder of masks named like the photos, or dataset for the capture's own."""
    num_eval_views: int = 8
    """Held-out views that are measured after the reconstruction, for metrics.json."""
    turntable_frames: int = 24
    """Pictures of the turntable before | after that each round leaves in previews/, at least 2; 0 for none."""
    run_dir: tyro.conf.Suppress[Path | None] = None
    """The run folder; the trainer's configuration fills it in."""

    @property
    def num_styles(self) -> int:
        """How many styles are blended."""
        return len(self.restyled_data) or 1 + len(self.model.more_prompts)

    @property
    def style_labels(self) -> tuple[str, ...]:
        """What the viewer calls the styles; the prompt may change while the field is trained."""
        return tuple(folder.name for folder in self.restyled_data) or ("the prompt", *self.model.more_prompts)

    @property
    def initial_weights(self) -> tuple[float, ...]:
        """The share of each style, as configured."""
        return tuple(self.style_weights) or (1 / self.num_styles,) * self.num_styles

    def check(self) -> None:
        """Refuse options that cannot work, or not together.

        Raises:
            UserError: the first of them.
        """
        self.rounds.check()
        if self.rounds.rounds == 0:
            return
        if self.turntable_frames < 2 and self.turntable_frames != 0:
            raise UserError("A turntable has at least 2 --pipeline.turntable-frames; 0 for no turntable.")
        self.model.check_losses()
        if not self.restyled_data:
            if self.restyle.reference is None:
                self.model.check_prompts()
            self.restyle.check(self.model.prompt, self.rounds.strength_of(self.rounds.rounds))
        weights = self.initial_weights
        if len(weights) != self.num_styles or min(weights) < 0 or not any(weights):
            raise UserError(
                f"There are {self.num_styles} styles and {len(weights)} --pipeline.style-weights: give one a style, at "
                "least 0 and not all 0."
            )

    def check_look(self, look: Look) -> None:
        """Refuse a look for a round that cannot work.

        Raises:
            UserError: why.
        """
        if self.restyled_data:
            return
        if self.restyle.reference is None and not look.prompt.strip():
            raise UserError("The prompt is empty: say in a few words what the scene shall look like.")
        for prompt in (look.prompt, look.negative_prompt):
            check_length(prompt)
        strength = self.rounds.strength_of(self.rounds.rounds) if look.strength is None else look.strength
        settings = self.restyle.settings(look.prompt, look.negative_prompt, strength)
        replace(settings, guidance_scale=look.guidance_scale).check(has_reference=self.restyle.reference is not None)
