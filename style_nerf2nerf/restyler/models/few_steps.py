"""Eight denoising steps instead of fifty: the LoRA of SDXL-Lightning (Lin et al., arXiv 2402.13929), through diffusers.

The LoRA teaches the UNet to reach a clean picture from any of eight noise levels in one of eight steps, without
guidance, so that each step costs half. It needs the Euler scheduler with *trailing* timesteps, which has no noise of
its own, so that an interrupted run can be resumed as with other schedulers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLControlNetImg2ImgPipeline
from safetensors import SafetensorError
from torch import nn

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.file_identity import file_identity
from style_nerf2nerf.restyler.models.hub import LIGHTNING, locate_lora
from style_nerf2nerf.restyler.models.loading import quiet_loading

ADAPTER = "few_steps"
"""The LoRA's name in the UNet."""
ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, AttributeError)
"""What diffusers raises where a file is no LoRA or does not fit."""


@contextmanager
def few_steps(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, source: str | Path) -> Iterator[None]:
    """Gives the pipeline the LoRA and its scheduler while the context lasts.

    Args:
        pipeline: SDXL.
        source: `"sdxl"`, the hub's, or a safetensors file.

    Raises:
        UserError: If the LoRA is not on this machine and cannot be downloaded, or does not fit the UNet.
    """
    path, scheduler = locate_lora(source), pipeline.scheduler
    try:
        try:
            with quiet_loading():
                pipeline.load_lora_weights(
                    str(path.parent), weight_name=path.name, adapter_name=ADAPTER, local_files_only=True
                )
        except ERRORS as error:
            raise _misfit(path) from error
        pipeline.scheduler = EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")
        yield
    finally:
        pipeline.scheduler = scheduler
        pipeline.unload_lora_weights()


def check_lora(unet: nn.Module, source: str | Path) -> Path:
    """Refuses a LoRA that does not fit a UNet, before anything is loaded.

    Args:
        unet: The UNet, which may be on the meta device.
        source: As for `few_steps`.

    Returns:
        The LoRA's file.

    Raises:
        UserError: If it does not fit; the sentence names the first layer.
    """
    path = locate_lora(source)
    network: Any = unet
    try:
        with quiet_loading():
            state, *_ = StableDiffusionXLControlNetImg2ImgPipeline.lora_state_dict(
                str(path.parent), weight_name=path.name, local_files_only=True, unet_config=network.config
            )
    except ERRORS as error:
        raise _misfit(path) from error
    layers = {key.split(".lora", 1)[0]: key for key in state if key.startswith("unet.") and ".lora" in key}
    if not layers:
        raise UserError(f"{path} holds no LoRA of a UNet: name sdxl or a LoRA that was made for SDXL.")
    modules = dict(unet.named_modules())
    for key, value in state.items():
        name, _, part = key.removeprefix("unet.").partition(".lora")
        if not key.startswith("unet.") or not part:
            continue
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise UserError(f"The LoRA {path} does not fit the UNet, which has no layer {name}: name one made for it.")
        into = part.startswith(("_A", ".down"))
        if part.endswith("weight") and value.shape[int(into)] != weight.shape[int(into)]:
            raise UserError(
                f"The LoRA {path} does not fit the UNet: {name} has {value.shape[int(into)]} channels in one and "
                f"{weight.shape[int(into)]} in the other."
            )
    return path


def lora_provenance(source: str | Path) -> dict[str, str]:
    """Where the LoRA comes from, for a manifest: the hub's repository and commit, or the file, and its hash."""
    path = locate_lora(source)
    commit = f"{LIGHTNING.repository}@{path.parent.name}" if source == "sdxl" else str(path)
    return {"lora": commit, "lora_hash": file_identity(path)}


def _misfit(path: Path) -> UserError:
    return UserError(f"{path} could not be read as a LoRA for the restyling models: name one that was made for them.")
