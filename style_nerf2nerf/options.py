"""The options of a run and their checks: rounds, restyling, blended styles, masks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import check_picture
from style_nerf2nerf.datamanager import StyleDataManager, StyleDataManagerConfig
from style_nerf2nerf.model import StyleModel, StyleModelConfig, check_length
from style_nerf2nerf.restyler.compute.kernels import AttentionKernel
from style_nerf2nerf.restyler.compute.precision import Precision
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.models.vocabulary import Vocabulary
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.rounds.storage import RoundsConfig, RoundSettings

DATASET = "dataset"
"""Value of `masks` for the masks of the capture itself."""
WORDS = "words"
"""Value of `masks` for masks of what `mask_words` says."""
OBJECT = "object"
"""Value of `masks` for masks of what the reconstructed field shows in front of its background."""
EVERYTHING = "all"
"""Value of `masks` for no masks."""
INDECISIVE = (
    "prompt",
    "negative_prompt",
    "strength",
    "max_views_per_batch",
    "attention_kernel",
    "channels_last",
    "keep_loaded",
)
"""Options of `RestyleConfig` that do not decide a round's pictures, or that each round has its own of."""


@dataclass
class RestyleConfig(Settings):
    """How views are restyled: the settings of all rounds, and the models."""

    prompt: tyro.conf.Suppress[str] = ""
    negative_prompt: tyro.conf.Suppress[str] = ""
    strength: tyro.conf.Suppress[float] = 1.0
    num_inference_steps: int = 50
    """Denoising steps at full strength; a lower strength skips the first ones."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance towards the prompt; 1 and below: none."""
    control_scale: float = 0.5
    """Weight of the depth ControlNet."""
    source: str = "sdxl"
    """The diffusion models: sdxl (SDXL and a depth ControlNet from the hub), embedded (the small ones in this package),
    or a folder with a StableDiffusionXLControlNetImg2ImgPipeline in diffusers' layout."""
    reference: Path | None = None
    """A picture in the wanted style, instead of a prompt or in addition to it."""
    precision: Precision = "auto"
    """What the diffusion models compute in: auto (their files' half precision on a GPU, bf16 on a CPU for more than
    4 GB of weights, float32 for small models), float32, bf16 or fp16."""
    max_views_per_batch: int | None = None
    """Views that are processed at a time, which does not change the result; default: as many as fit into memory."""
    attention_kernel: AttentionKernel = "auto"
    """torch's kernel for attention: auto, flash, cudnn, efficient or math; it changes results by rounding only."""
    channels_last: bool = False
    """Keep the weights of convolutions with channels innermost, which may be faster on a GPU."""
    keep_loaded: bool = False
    """Keep the diffusion models in the CPU's memory between rounds (9.4 GB for SDXL in half precision) instead of
    loading them for each round."""

    def settings(self, round_settings: RoundSettings) -> Settings:
        """The restyler's settings for a round with a strength; the seed is that of the configuration."""
        own = {option.name: getattr(self, option.name) for option in fields(Settings)}
        # What a round starts from and where it may change anything are no business of the restyler's.
        chosen = {name: value for name, value in vars(round_settings).items() if name in own}
        return Settings(**{**own, **chosen})

    def decisive(self) -> dict[str, Any]:
        """The options that decide a round's pictures, apart from prompts and strength, as JSON gives them back."""
        options = {name: value for name, value in asdict(self).items() if name not in INDECISIVE}
        return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()} | {
            "shared_layers": list(self.shared_layers)
        }

    def advise(self, prompt: str) -> None:
        """Print a notice if the embedded models do not support the style that a prompt requests."""
        advice = Vocabulary.read(EMBEDDED_FOLDER).advice(prompt) if self.source == "embedded" else None
        if advice:
            CONSOLE.print(advice, markup=False, soft_wrap=True)

    def check_rounds(self, prompt: str, lowest_strength: float) -> None:
        """Refuse options that cannot work.

        Args:
            prompt: One of the prompts.
            lowest_strength: Of all rounds.

        Raises:
            UserError: If no denoising step would run, options exclude each other, or the reference does not exist.
        """
        if int(self.schedule_steps * lowest_strength) < 1:
            raise UserError(
                f"{self.schedule_steps} denoising steps at strength {lowest_strength:.2f} are less than one step: "
                "raise --pipeline.restyle.num-inference-steps or --pipeline.rounds.strength."
            )
        if self.reference is not None:
            if not self.reference.is_file():
                raise UserError(f"There is no picture {self.reference}: give --pipeline.restyle.reference one.")
            check_picture(self.reference)
        settings = self.settings(RoundSettings(prompt, "", self.guidance_scale, lowest_strength))
        settings.check(has_reference=self.reference is not None)


@dataclass
class StylePipelineOptions(VanillaPipelineConfig):
    """All options of the pipeline from photos to a restyled field."""

    datamanager: StyleDataManagerConfig = field(default_factory=StyleDataManagerConfig)
    """The capture, and the choice of restyled views."""
    model: StyleModelConfig = field(default_factory=StyleModelConfig)
    """The field, the prompt and the losses."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """Number of steps of each stage, and strength of the rounds."""
    restyle: RestyleConfig = field(default_factory=RestyleConfig)
    """How views are restyled."""
    restyled_data: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Given restyled views, instead of prompts and diffusion models: a nerfstudio dataset, or a folder of pictures
    named like the photos. Repeat the option to blend several styles."""
    style_weights: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """Share of each style, repeated once per style; default: equal. The viewer has a slider for each, which acts at the
    next step."""
    masks: str | None = None
    """What is to change: a folder of masks named like the photos, white inside; dataset for the capture's own masks;
    words for what --pipeline.mask-words says; object for what the field shows in front of its background; or all.
    Default: object if views are generated or photos are transparent, otherwise all."""
    mask_words: str = ""
    """With --pipeline.masks words: what is to change, in words, such as "the tents"; CLIPSeg looks for it in the
    reconstructed views, and the masks are written to masks/words/ in the run folder."""
    mask_threshold: float = 0.4
    """Least probability of what the words say, from 0 to 1, averaged over the views that see a point."""
    mask_model: str = "hub"
    """What finds the words: hub (CLIPSeg from the hub), or a local folder of the same layout."""
    num_eval_views: int = 8
    """Number of held-out views that are evaluated for metrics.json."""
    turntable_frames: int = 24
    """Frames of each round's turntable (before | after) in previews/, at least 2; 0 for none."""
    run_dir: tyro.conf.Suppress[Path | None] = None
    """The run folder; set by the trainer's configuration."""

    def move_to(self, folder: Path) -> None:
        """Called with the run folder, where a config.yml was read: what the run has kept is there.

        Args:
            folder: The run folder.
        """
        self.run_dir = folder

    @property
    def num_styles(self) -> int:
        """Number of blended styles."""
        return len(self.restyled_data) or 1 + len(self.model.more_prompts)

    @property
    def style_labels(self) -> tuple[str, ...]:
        """The viewer's labels of the styles; the prompt may change during training."""
        return tuple(folder.name for folder in self.restyled_data) or ("the prompt", *self.model.more_prompts)

    @property
    def initial_weights(self) -> tuple[float, ...]:
        """The configured share of each style."""
        return tuple(self.style_weights) or (1 / self.num_styles,) * self.num_styles

    def check(self) -> None:
        """Refuse options that cannot be used, or not together.

        Raises:
            UserError: If an option cannot be used.
        """
        self.rounds.check()
        if self.rounds.rounds == 0:
            return
        if self.turntable_frames < 2 and self.turntable_frames != 0:
            raise UserError("--pipeline.turntable-frames must be at least 2, or 0 for no turntable.")
        self.model.check_losses()
        self._check_mask_words()
        if not self.restyled_data:
            if self.restyle.reference is None:
                self.model.check_prompts()
            self.restyle.check_rounds(self.model.prompt, self.rounds.strength_of(self.rounds.rounds))
        weights = self.initial_weights
        if len(weights) != self.num_styles or min(weights) < 0 or not any(weights):
            raise UserError(
                f"There are {self.num_styles} styles and {len(weights)} --pipeline.style-weights: give one per style, "
                "at least 0 and not all 0."
            )

    @property
    def masks_folder(self) -> Path | None:
        """The folder of masks that `masks` names, if it names one."""
        return None if self.masks in (None, DATASET, WORDS, OBJECT, EVERYTHING) else Path(str(self.masks))

    def masks_of(self, datamanager: StyleDataManager) -> str | None:
        """What limits the change for a capture: the value of `masks` or its default; None for everything.

        Args:
            datamanager: The capture's data manager.
        """
        if self.masks is None:
            alone = bool(self.datamanager.densify.num_views) or datamanager.train_dataset.has_alpha
            return OBJECT if alone else None
        return None if self.masks == EVERYTHING else self.masks

    @property
    def masks_request(self) -> str | None:
        """The masks as the options ask for them, to compare runs."""
        if self.masks != WORDS:
            return self.masks
        return f"{WORDS}: {self.mask_words} (at least {self.mask_threshold})"

    def _check_mask_words(self) -> None:
        """Refuse words without masks, masks without words, and impossible thresholds."""
        if (self.masks == WORDS) != bool(self.mask_words.strip()):
            raise UserError("Masks from words need --pipeline.masks words and --pipeline.mask-words, both of them.")
        if not 0 < self.mask_threshold < 1:
            raise UserError(f"--pipeline.mask-threshold must be between 0 and 1, not {self.mask_threshold}.")

    def advise(self) -> None:
        """Say which prompts the embedded models do not know, if they are to restyle."""
        if self.rounds.rounds == 0 or self.restyled_data:
            return
        for prompt in (self.model.prompt, *self.model.more_prompts):
            self.restyle.advise(prompt)

    def check_round(self, round_settings: RoundSettings) -> None:
        """Refuse settings of a round that cannot be used.

        Raises:
            UserError: If a setting cannot be used.
        """
        if self.restyled_data:
            return
        self.restyle.advise(round_settings.prompt)
        if round_settings.strength is None:
            round_settings = replace(round_settings, strength=self.rounds.strength_of(self.rounds.rounds))
        for prompt in (round_settings.prompt, round_settings.negative_prompt):
            check_length(prompt)
        self.restyle.settings(round_settings).check(has_reference=self.restyle.reference is not None)


class StyledRun(Protocol):
    """A capture, the field made of it, and the options that say how it is restyled: the pipeline, seen from a round."""

    config: StylePipelineOptions
    datamanager: StyleDataManager

    @property
    def model(self) -> StyleModel:
        """The field."""
        ...

    @property
    def style_weights(self) -> tuple[float, ...]:
        """The current share of each style."""
        ...
