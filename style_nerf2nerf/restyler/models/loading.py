"""Loads the restyling pipeline from folders on this machine, without the libraries' own progress bars."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from style_nerf2nerf.restyler.models.files import NETWORKS, weight_files
from style_nerf2nerf.restyler.models.folders import ModelFolders, locate_models
from style_nerf2nerf.restyler.models.vocabulary import TRAINING_FILE, Vocabulary


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Disable the progress bars of diffusers and transformers."""
    kits = [kit for kit in (diffusers_logging, transformers_logging) if kit.is_progress_bar_enabled()]
    for kit in kits:
        kit.disable_progress_bar()
    try:
        yield
    finally:
        for kit in kits:
            kit.enable_progress_bar()


def load_pipeline(folders: ModelFolders, dtype: torch.dtype) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """The pipeline of some folders; only their files are used, never the network.

    Of a network's weights the variant that holds the wanted precision is taken where there is one.

    Args:
        folders: Where its parts are (see `folders.locate_models`).
        dtype: Precision of all networks.

    Raises:
        UserError: If something is missing, or the parts do not fit.
    """
    try:
        with quiet_loading():
            networks = {
                name: _class_of(name).from_pretrained(
                    folder,
                    variant=weight_files(folder, dtype).variant,
                    dtype=dtype,
                    local_files_only=True,
                    use_safetensors=True,
                )
                for name, folder in folders.networks.items()
            }
            return StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(
                folders.base, **networks, local_files_only=True, add_watermarker=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The restyling models at {folders.base} could not be loaded: {_first_line(error)}") from error


def _class_of(name: str) -> Any:
    """The class of a network of the pipeline."""
    return getattr(diffusers, NETWORKS[name], None) or getattr(transformers, NETWORKS[name])


def load_from_folder(folder: Path, dtype: torch.dtype) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """Load a pipeline written by `save_pretrained`.

    Raises:
        UserError: If there is none, or its parts do not fit.
    """
    return load_pipeline(locate_models(folder), dtype)


class TrainingFacts(NamedTuple):
    """What a folder's models were trained on."""

    noise_offset: float
    """Standard deviation of the offset noise; 0 without one (see `noise.noise_offset`)."""
    vocabulary: Vocabulary
    """The words that the models were trained on; empty where the folder does not name any."""
    settings: dict[str, Any]
    """The strength, steps and guidance that the models were trained for, as fields of `Settings`."""


def read_training_facts(folder: Path) -> TrainingFacts:
    """Read a folder's `TRAINING_FILE`; without one there is no offset noise and no vocabulary.

    Raises:
        UserError: If the file does not hold these facts.
    """
    content = read_json(folder / TRAINING_FILE) or {}
    offset = content.get("noise_offset", 0.0) if isinstance(content, dict) else None
    if not isinstance(offset, int | float) or not 0 <= offset < math.inf:
        raise UserError(f"The noise_offset in {folder / TRAINING_FILE} must be a number of at least 0.")
    return TrainingFacts(float(offset), Vocabulary.read(folder), dict(content.get("settings", {})))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
