"""Read recipes, the YAML files of `configs/` that determine the result of a training, and check them with pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from eschernet_prior.base.errors import UserError

Part = TypeVar("Part", bound="RecipePart")


class RecipePart:
    """Base of a recipe's dataclasses: keys that are not fields are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class LoopRecipe(RecipePart):
    """Steps, learning rate and optimiser of any training loop (`training_loop`)."""

    steps: int
    """Optimiser steps."""
    learning_rate: float
    warmup: int = 1000
    """Steps in which the learning rate rises linearly."""
    first_rate: float = 0.1
    """Learning rate at the first step, as a share of `learning_rate`."""
    last_rate: float = 0.1
    """Learning rate at the last step, as a share of `learning_rate`, after a cosine decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means."""
    weight_decay: float = 0.01
    ema_decay: float = 0.9999
    """Decay of the averaged weights, which are the saved ones."""
    max_gradient_norm: float = 1.0


def read_recipe(path: Path, kind: type[Part]) -> Part:
    """Read a recipe.

    Args:
        path: a YAML file.
        kind: The recipe's dataclass.

    Raises:
        UserError: If there is no such file, it is not YAML, or a key is unknown, missing or of another type; the
            message names the key.
    """
    if not path.is_file():
        raise UserError(f"There is no recipe at {path}: set --recipe to one in configs/.")
    try:
        content = yaml.safe_load(path.read_text("utf8"))
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"The recipe {path} does not fit: {key + ': ' if key else ''}{first['msg']}.") from error
