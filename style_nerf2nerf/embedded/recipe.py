"""The recipe of the embedded restyler: everything that decides what training makes, read from `configs/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.recipes import LoopRecipe, RecipePart, read_recipe
from style_nerf2nerf.embedded.models import EMBEDDED, STAND_IN, Size

SIZES = {"embedded": EMBEDDED, "stand-in": STAND_IN}


@dataclass(frozen=True)
class DataRecipe(RecipePart):
    """What is rendered and painted."""

    scenes: int
    views: int
    size: int
    styles_per_scene: int


@dataclass(frozen=True, kw_only=True)
class StageRecipe(LoopRecipe):
    """What the loops of all stages go by."""

    first_rate: float = 0.01
    last_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class VaeRecipe(StageRecipe):
    """How the autoencoder is trained."""

    scenes: int
    batch: int
    square_weight: float
    gradient_weight: float
    kl_weight: float
    start_as_block_cosines: bool


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(StageRecipe):
    """How UNet, ControlNet and text encoders are trained."""

    pictures: int
    shared: float
    same_noise: float
    drop_prompt: float
    from_photo: float
    late: float
    # What makes views that share attention agree on their colours:
    noise_offset: float = 0.0
    one_ahead: float = 0.0
    colour_weight: float = 0.0
    attention_rate: float = 1.0
    only_attention: bool = False
    crop_steps: int = 0
    crop: int = 0


@dataclass(frozen=True)
class Recipe(RecipePart):
    """Everything that decides the result."""

    data: DataRecipe
    diffusion: DiffusionRecipe
    vae: VaeRecipe | None = None
    """None, as for the decoder, where other models are trained on, whose autoencoder stays as it is."""
    decoder: VaeRecipe | None = None
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
    if recipe.diffusion.crop_steps and recipe.diffusion.crop < 1:
        raise UserError(f"The recipe {path} has crop_steps but no size of the parts: give it a crop of 1 or more.")
    if (recipe.vae is None) != (recipe.decoder is None):
        raise UserError(f"The recipe {path} has one of vae and decoder: give it both, or neither to go on from models.")
    if recipe.models not in SIZES:
        raise UserError(f"The recipe {path} asks for models of size {recipe.models!r}; there are {', '.join(SIZES)}.")
    return recipe
