"""Everything that decides what training makes, read from a YAML file of `configs/`.

What only decides how fast it is made (processes, precision, gradient accumulation and checkpointing, where files lie)
is an option of the command line instead: a recipe gives the same prior on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from eschernet_prior.base.errors import UserError
from eschernet_prior.cape import CAPE_KINDS, CapeKind


@dataclass(frozen=True)
class DataRecipe:
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
class NetworksRecipe:
    """What is trained: configurations of new networks, or where to start from."""

    unet: Mapping[str, Any] | str
    """Configuration of a `UNet2DConditionModel`, or a hub id or folder with one in `unet/`."""
    vae: Mapping[str, Any] | str
    """Configuration of an `AutoencoderKL`, or a hub id or folder with one in `vae/`; it stays as it is."""
    image_encoder: Mapping[str, Any] | str
    """Configuration of a `ConvNeXtV2Tokens`, or a hub id or folder of a ConvNeXt-V2 of transformers."""


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """What the loop around a training step goes by (`training_run`), whatever is trained."""

    steps: int
    """Optimiser steps."""
    learning_rate: float
    warmup: int = 1000
    """Steps in which the learning rate rises evenly."""
    first_rate: float = 0.1
    """The learning rate begins at this share of its height."""
    last_rate: float = 0.1
    """It ends at this share, after a cosine."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means."""
    weight_decay: float = 0.01
    ema_decay: float = 0.9999
    """Of the averaged weights, which are the ones that are kept."""
    max_gradient_norm: float = 1.0


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
class SamplesRecipe:
    """How sample sheets are made."""

    references: int = 3
    targets: int = 4
    steps: int = 20
    guidance_scale: float = 3.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    networks: NetworksRecipe
    training: StepsRecipe
    data: DataRecipe = field(default_factory=DataRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the noise schedule that differ from those of EscherNet, in diffusers' words."""
    cape: CapeKind = "6dof"
    image_size: int = 256
    """Pixels of references and targets."""
    seed: int = 0


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UserError: there is no such file, or it is not a recipe; names the key.
    """
    if not path.is_file():
        raise UserError(f"There is no recipe at {path}: name one of configs/ with --recipe.")
    try:
        told = yaml.safe_load(path.read_text("utf8"))
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {path} is no YAML file: {str(error).splitlines()[0]}.") from error
    try:
        recipe = _build(Recipe, told)
    except (TypeError, ValueError) as error:
        raise UserError(f"The recipe {path} does not fit: {error}.") from error
    _check(recipe, path)
    return recipe


PAIRS: dict[Any, type] = {"tuple[int, int]": int, "tuple[float, float]": float}
PARTS = {"networks": NetworksRecipe, "training": StepsRecipe, "data": DataRecipe, "samples": SamplesRecipe}


def _build(kind: type, told: Any) -> Any:
    """An instance of a recipe's dataclass from plain YAML values, every key known and every needed one there."""
    if not isinstance(told, Mapping):
        raise ValueError(f"{kind.__name__} holds {told!r} in place of settings")
    known = {each.name: each for each in fields(kind)}
    if unknown := sorted(set(told) - set(known)):
        raise ValueError(f"unknown key {unknown[0]!r}")
    needed = [name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in needed if name not in told]:
        raise ValueError(f"key {missing[0]!r} is missing")
    return kind(**{name: _value(name, known[name].type, value) for name, value in told.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    if name in PARTS:
        return _build(PARTS[name], value)
    if kind in PAIRS:
        first, last = value
        return PAIRS[kind](first), PAIRS[kind](last)
    if value is not None and kind in ("float", "float | None"):
        return float(value)  # YAML reads 1e-4 as a word
    return value


def _check(recipe: Recipe, path: Path) -> None:
    training, data = recipe.training, recipe.data
    most = training.references[1] + training.targets[1]
    faults = {
        f"cape must be one of {', '.join(CAPE_KINDS)}": recipe.cape not in CAPE_KINDS,
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
