"""Load the restyling pipeline from a folder or from the hub's pinned models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLControlNetImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from style_nerf2nerf.restyler.hub import SDXL

TRAINING_FILE = "restyler.json"
"""In a folder of models: what diffusers has no place for, `{"noise_offset": deviation, "prompts": {style: prompt}}`."""


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


def load_from_folder(folder: Path, dtype: torch.dtype) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """Load a pipeline written by `save_pretrained`.

    Raises:
        UserError: if there is none, or its parts do not fit.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"There are no restyling models in {folder}: use embedded, sdxl, or a folder with a model_index.json."
        )
    try:
        with quiet_loading():
            return StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, add_watermarker=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The restyling models at {folder} could not be loaded: {_first_line(error)}") from error


class TrainingFacts(NamedTuple):
    """What a folder's models were trained on."""

    noise_offset: float
    """Standard deviation of the offset noise; 0 without one (see `noise.noise_offset`)."""
    prompts: dict[str, str]
    """The prompts that the models were trained on, by the name of their style."""


def read_training_facts(folder: Path) -> TrainingFacts:
    """Read a folder's `TRAINING_FILE`; without one there is no offset noise and no known prompt.

    Raises:
        UserError: if the file does not hold these facts.
    """
    content = read_json(folder / TRAINING_FILE) or {}
    offset = content.get("noise_offset", 0.0) if isinstance(content, dict) else None
    if not isinstance(offset, int | float) or not 0 <= offset < math.inf:
        raise UserError(f"The noise_offset in {folder / TRAINING_FILE} must be a number of at least 0.")
    return TrainingFacts(float(offset), dict(content.get("prompts", {})))


def load_from_hub(dtype: torch.dtype) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """SDXL, its depth ControlNet and the autoencoder that works in half precision (see `hub.SDXL`).

    Raises:
        UserError: if they are not cached and cannot be downloaded.
    """

    def arguments(name: str) -> dict[str, Any]:
        model = SDXL[name]
        return {
            "pretrained_model_name_or_path": model.repository,
            "revision": model.revision,
            "variant": model.variant,
            "dtype": dtype,
            "use_safetensors": True,
        }

    try:
        with quiet_loading():
            controlnet = ControlNetModel.from_pretrained(**arguments("controlnet"))
            vae = AutoencoderKL.from_pretrained(**arguments("vae"))
            return StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(
                **arguments("base"), controlnet=controlnet, vae=vae, add_watermarker=False
            )
    except OSError as error:
        raise UserError(
            "The SDXL models are not in the local cache and could not be downloaded: connect to the network once, or "
            "use the embedded models."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
