"""Everything that decides what training makes, read from a YAML file of `configs/`.

What only decides how fast it is made (processes, precision, gradient accumulation and checkpointing, where files lie)
is an option of the command line instead: a recipe gives the same prior on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.recipes import LoopRecipe, RecipePart, read_recipe
from eschernet_prior.cape import CapeKind


@dataclass(frozen=True)
class RendersRecipe(RecipePart):
    """What is looked at."""

    scenes: int = 0
    """Procedural scenes to render and train on; 0 for folders of renders, given on the command line."""
    views: int = 12
    """Viewpoints of a procedural scene."""
    held_out: int = 8
    """Objects never trained on, which sample sheets show."""
    hard_alpha: bool = False
    """Put only pixels of alpha 0 on white, as the original did, in place of blending."""
    keep_in_memory: bool = False
    """Keep renders once read: for small sets."""


@dataclass(frozen=True)
class NetworksRecipe(RecipePart):
    """What is trained: configurations of new networks, or where to start from."""

    unet: Mapping[str, Any] | str
    """Configuration of a `UNet2DConditionModel`, or a hub id or folder with one in `unet/`."""
    vae: Mapping[str, Any] | str
    """Configuration of an `AutoencoderKL`, or a hub id or folder with one in `vae/`; it stays as it is."""
    image_encoder: Mapping[str, Any] | str
    """Configuration of a `ConvNeXtV2Tokens`, or a hub id or folder of a ConvNeXt-V2 of transformers."""


@dataclass(frozen=True, kw_only=True)
class StepsRecipe(LoopRecipe):
    """How it is trained."""

    batch: int
    """Scenes a step, over all processes and accumulated batches."""
    references: tuple[int, int] = (3, 3)
    """Least and most reference views N; one number a step, drawn evenly."""
    targets: tuple[int, int] = (3, 3)
    """Least and most target views M, likewise."""
    with_replacement: bool = True
    """Whether a view may be drawn twice, as reference and as target."""
    drop_condition: float = 0.1
    """Share of scenes whose reference tokens are zeroed, for classifier-free guidance."""
    timestep_power: float = 1.0
    """Timesteps are T · u^power for even u: below 1, noisy ones are seen more often."""
    last_timestep_power: float | None = None
    """What the power has become at the last step, evenly from the first on; None: it stays."""
    tinted: float = 0.0
    """Share of scenes that are seen through a filter of their own: colour channels change places, and what is not white
    takes on a tint. Colours then cannot be guessed from shapes: they have to be read from the references."""
    min_snr_gamma: float | None = None
    """Cap of the signal-to-noise ratio in the loss weights (Hang et al. 2023); None weighs all timesteps the same."""


@dataclass(frozen=True)
class SamplesRecipe(RecipePart):
    """How sample sheets are made."""

    references: int = 3
    targets: int = 4
    steps: int = 20
    guidance_scale: float = 3.0


@dataclass(frozen=True)
class PriorRecipe(RecipePart):
    """Everything that decides the result."""

    networks: NetworksRecipe
    training: StepsRecipe
    data: RendersRecipe = field(default_factory=RendersRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the noise schedule that differ from those of EscherNet, in diffusers' words."""
    cape: CapeKind = "6dof"
    image_size: int = 256
    """Pixels of references and targets."""
    seed: int = 0


def load_recipe(path: Path) -> PriorRecipe:
    """Read a recipe.

    Raises:
        UserError: there is no such file, or it is not a recipe; names the key.
    """
    recipe = read_recipe(path, PriorRecipe)
    _check(recipe, path)
    return recipe


def _check(recipe: PriorRecipe, path: Path) -> None:
    training, data = recipe.training, recipe.data
    most = training.references[1] + training.targets[1]
    faults = {
        "references and targets need 1 <= least <= most": any(
            not 1 <= low <= high for low, high in (training.references, training.targets)
        ),
        f"{data.views} views do not give {most} different ones": bool(data.scenes)
        and not training.with_replacement
        and data.views < most,
    }
    for sentence, found in faults.items():
        if found:
            raise UserError(f"The recipe {path} does not fit: {sentence}.")
