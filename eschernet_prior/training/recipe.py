"""The recipe of a prior: everything that determines the result of a training, read from a YAML file of `configs/`.

Options that do not change the result (processes, precision, gradient accumulation and checkpointing, folders) are
options of the command line: a recipe gives the same prior on any machine.
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
    """Renders to train on."""

    scenes: int = 0
    """Procedural scenes to render and train on; 0 for folders of renders, given on the command line."""
    views: int = 12
    """Viewpoints of a procedural scene."""
    held_out: int = 8
    """Objects that are not trained on, for sample sheets."""
    hard_alpha: bool = False
    """Make only pixels of alpha 0 white, like the original, instead of blending."""
    keep_in_memory: bool = False
    """Keep renders in memory, for small sets."""


@dataclass(frozen=True)
class NetworksRecipe(RecipePart):
    """Configurations of new networks, or pretrained ones."""

    unet: Mapping[str, Any] | str
    """Configuration of a `UNet2DConditionModel`, or a hub id or folder with one in `unet/`."""
    vae: Mapping[str, Any] | str
    """Configuration of an `AutoencoderKL`, or a hub id or folder with one in `vae/`; it is not trained."""
    image_encoder: Mapping[str, Any] | str
    """Configuration of a `ConvNeXtV2Tokens`, or a hub id or folder of a ConvNeXt-V2 of transformers."""


@dataclass(frozen=True, kw_only=True)
class StepsRecipe(LoopRecipe):
    """Batches, draws and loss of a training step."""

    batch: int
    """Scenes per step, over all processes and accumulated batches."""
    references: tuple[int, int] = (3, 3)
    """Least and largest number of reference views N, drawn uniformly once per step."""
    targets: tuple[int, int] = (3, 3)
    """Least and largest number of target views M, drawn uniformly once per step."""
    with_replacement: bool = True
    """Whether a view may be drawn twice, as reference and as target."""
    drop_condition: float = 0.1
    """Share of scenes whose reference tokens are zeroed, for classifier-free guidance."""
    timestep_power: float = 1.0
    """Timesteps are T · u^power with uniform u: below 1, noisy timesteps are more frequent."""
    last_timestep_power: float | None = None
    """Power at the last step, reached linearly; None: constant."""
    tinted: float = 0.0
    """Share of scenes that are recoloured (channels permuted and darkened, white kept), so that colours must be taken
    from the references and cannot be guessed from shapes."""
    min_snr_gamma: float | None = None
    """Cap of the signal-to-noise ratio in the loss weights (Hang et al. 2023); None: equal weights."""


@dataclass(frozen=True)
class SamplesRecipe(RecipePart):
    """Settings of sample sheets."""

    references: int = 3
    targets: int = 4
    steps: int = 20
    guidance_scale: float = 3.0


@dataclass(frozen=True)
class PriorRecipe(RecipePart):
    """Everything that determines the result."""

    networks: NetworksRecipe
    training: StepsRecipe
    data: RendersRecipe = field(default_factory=RendersRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the noise schedule that differ from those of EscherNet, under diffusers' names."""
    cape: CapeKind = "6dof"
    image_size: int = 256
    """Side of references and targets in pixels."""
    seed: int = 0


def load_recipe(path: Path) -> PriorRecipe:
    """Read a recipe.

    Raises:
        UserError: If the file does not exist or is not a valid recipe; the message names the key.
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
