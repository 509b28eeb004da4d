"""The recipe of the embedded restyler, read from `configs/`: everything that determines its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.recipes import LoopRecipe, RecipePart, read_recipe
from style_nerf2nerf.embedded.models import EMBEDDED, STAND_IN, Size

SIZES = {"embedded": EMBEDDED, "stand-in": STAND_IN}


@dataclass(frozen=True)
class DataRecipe(RecipePart):
    """The training scenes."""

    scenes: int
    """Scenes, numbered from 0."""
    views: int
    """Neighbouring views of each."""
    size: int
    """Pixels, height and width."""
    styles_per_scene: int
    """Different styles that each scene is painted in, in one variation each; the photo is there for every scene."""


@dataclass(frozen=True, kw_only=True)
class StageRecipe(LoopRecipe):
    """Settings that all stages have."""

    first_rate: float = 0.01
    last_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class VaeRecipe(StageRecipe):
    """How the autoencoder is trained."""

    scenes: int
    """Number of scenes, counted from 0, that are used; an autoencoder needs fewer."""
    batch: int
    """Pictures, or parts of them."""
    crop: int
    """Height and width of the parts in pixels; 0: whole pictures."""
    square_weight: float
    """Weight of the squared error, in addition to the absolute one."""
    gradient_weight: float
    """Weight of the absolute error of horizontal and vertical differences."""
    flat_weight: float
    """Additional weight of the absolute error where the picture is flat, against grain."""
    kl_weight: float
    """Weight of the mean KL divergence per latent number."""
    latent_noise: float
    """Standard deviation of the noise that is added to the latents before they are decoded."""
    start_as_block_cosines: bool = False
    """Begin as a block cosine transform (`vae_init`)."""


@dataclass(frozen=True, kw_only=True)
class WordsRecipe(StageRecipe):
    """How the text encoders are trained to classify styles and colours, before the diffusion stage."""

    prompts: int
    """Prompts in a batch."""


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(StageRecipe):
    """How UNet, ControlNet and text encoders are trained."""

    pictures: int
    """Pictures in a batch."""
    crop_steps: int
    """Number of first steps that use crops of pictures, and so more scenes and styles in the same time."""
    crop: int
    """Height and width of the crops in latents; a multiple of 8."""
    steps_trained: int
    """Denoising steps at full strength whose noise levels are trained."""
    first_levels: dict[int, float]
    """Share of batches by the level at which denoising starts, counted from the noisiest, 0."""
    onward: float
    """Probability that a batch trains the level after the one before, on the models' own prediction there."""
    from_painting: float
    """Share of batches that start from the softened painting instead of the photo, at one of the lower levels."""
    shared: float
    """Share of batches in which a scene's views share attention, all four or two of them."""
    noise_offset: float
    """Standard deviation of the pattern in the noise that decides what words leave open (`restyler.noise`)."""
    strength: float
    """The usual strength of the models: its first level has the largest share in `first_levels`."""
    drop_prompt: float
    """Share of scenes without a prompt, for classifier-free guidance."""
    means_weight: float
    """Weight of the absolute error of the means of 8×8 latents: colours are few numbers among many."""
    soft_photo: float
    """Share of scenes whose photos are blurred and noisy, as a field's renders are."""
    rough_depth: float
    """Share of scenes whose depth is rough, as a field's is."""


@dataclass(frozen=True)
class Recipe(RecipePart):
    """All settings of a training."""

    data: DataRecipe
    vae: VaeRecipe
    words: WordsRecipe
    diffusion: DiffusionRecipe
    decoder: VaeRecipe
    seed: int = 0
    models: str = "embedded"
    """Which size of models, a key of `SIZES`."""

    @property
    def size(self) -> Size:
        """The models' widths."""
        return SIZES[self.models]


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        UserError: If there is no such file, or its keys are not those of a recipe.
    """
    recipe = read_recipe(path, Recipe)
    if recipe.models not in SIZES:
        raise UserError(f"The recipe {path} asks for models of size {recipe.models!r}; there are {', '.join(SIZES)}.")
    if recipe.diffusion.crop_steps and (recipe.diffusion.crop < 8 or recipe.diffusion.crop % 8):
        raise UserError(
            f"The recipe {path} sees parts of {recipe.diffusion.crop} latents a side: name a multiple of 8."
        )
    levels = recipe.diffusion.first_levels
    if not levels or not all(0 <= level < recipe.diffusion.steps_trained for level in levels):
        raise UserError(
            f"The recipe {path} starts denoising at levels {sorted(levels)}: name some from 0 to "
            f"{recipe.diffusion.steps_trained - 1} in diffusion.first_levels."
        )
    return recipe
