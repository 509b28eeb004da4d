"""The files of the restyling networks: which are loaded, and the check of their names, shapes and types.

Loading SDXL takes minutes and happens after the reconstruction. The check reads only configurations and the headers of
safetensors files, takes seconds, and runs before any long work. Networks are built on the meta device: they have shapes
and no storage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eschernet_prior.base.errors import UserError
from eschernet_prior.weight_files import check_weights, rename_legacy_attention
from style_nerf2nerf.restyler.guides import CHANNELS, DEPTH_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from style_nerf2nerf.restyler.models.folders import ModelFolders

NETWORKS = {
    "unet": "UNet2DConditionModel",
    "controlnet": "ControlNetModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
"""Class of each network of the pipeline, by its name there; CLIP's are of transformers, the others of diffusers."""
STEMS = ("diffusion_pytorch_model", "model")
"""Beginnings of weight files' names: diffusers' and transformers'."""
VARIANTS = (None, "fp16", "bf16")
"""Words between a weight file's stem and its suffix; None: no word."""
VARIANT_OF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The variant that holds a precision."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of numbers that weights may have, by their names in a safetensors header."""


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files that one network is loaded from."""

    paths: tuple[Path, ...]
    """One file, or all shards."""
    variant: str | None
    """The word in their names, as `from_pretrained` takes it."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the files without its data, on the meta device.

        Raises:
            UserError: If a file cannot be read, is incomplete, or holds other numbers than floating-point ones.
        """
        tensors: dict[str, Tensor] = {}
        for path in self.paths:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                        entry = file.get_slice(name)
                        dtype = FLOATS.get(entry.get_dtype())
                        if dtype is None and name.endswith("position_ids"):
                            continue  # written by older transformers; no weight
                        if dtype is None:
                            raise UserError(
                                f"{path} holds {name} as {entry.get_dtype()}: weights of float32, float16 or bfloat16 "
                                "are needed, no quantised ones."
                            )
                        tensors[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is incomplete or damaged: download or save it again.") from error
        return tensors


def weight_files(folder: Path, dtype: torch.dtype | None = None) -> WeightFiles:
    """The weight files of a network.

    Where there are several variants, that of the wanted precision is taken, then the one without a word in its name.

    Args:
        folder: The network's folder.
        dtype: The precision that it will be loaded in, if that is known.

    Raises:
        UserError: If there are none, or shards are missing.
    """
    preferred = VARIANT_OF.get(dtype) if dtype is not None else None
    for variant in sorted(VARIANTS, key=lambda each: each != preferred):
        word = f".{variant}" if variant else ""
        for stem in STEMS:
            single, index = folder / f"{stem}{word}.safetensors", folder / f"{stem}.safetensors.index{word}.json"
            if single.is_file():
                return WeightFiles((single,), variant)
            if index.is_file():
                return WeightFiles(_shards(index), variant)
    raise UserError(
        f"{folder} holds no weights: {STEMS[0]}.safetensors or {STEMS[1]}.safetensors is needed there, or a name with "
        ".fp16 or .bf16 before the suffix."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted({Path(name).name for name in json.loads(index.read_text("utf8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weight files: download or save it again.") from error
    paths = tuple(index.parent / name for name in names)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing, which {index.name} names: download or save the models again.")
    return paths


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers' remarks on configurations of other versions out of the log."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def empty_network(name: str, folder: Path) -> nn.Module:
    """The network of a folder on the meta device, as its configuration describes it.

    Args:
        name: Its name in the pipeline, a key of `NETWORKS`.
        folder: Its folder.

    Raises:
        UserError: If there is no configuration, or it is of another class.
    """
    import diffusers
    import transformers

    path, wanted = folder / "config.json", NETWORKS[name]
    try:
        config = json.loads(path.read_text("utf8"))
        is_other = config.get("_class_name", wanted) != wanted
    except OSError as error:
        raise UserError(f"{path} is missing: the restyling models need a {wanted} there.") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no configuration: download or save it again.") from error
    if is_other:
        raise UserError(f"{path} describes a {config['_class_name']}: restyling needs a {wanted} as its {name}.")
    with _quiet(), torch.device("meta"):
        try:
            if hasattr(diffusers, wanted):
                network = getattr(diffusers, wanted).from_config(config)
            else:
                network = getattr(transformers, wanted)(transformers.CLIPTextConfig.from_dict(config))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} does not describe a {wanted}: download or save it again.") from error
    return network


def check_network(name: str, network: nn.Module, files: WeightFiles) -> dict[str, Tensor]:
    """Refuses weight files that lack a tensor of the network, or hold others or other shapes.

    Args:
        name: The network's name in the pipeline.
        network: The network on the meta device.
        files: What it would be loaded from.

    Returns:
        The files' tensors on the meta device, by the network's own names.

    Raises:
        UserError: If they do not fit; the sentence names the first differences.
    """
    tensors = files.tensors()
    if name == "vae":
        tensors = rename_legacy_attention(tensors)
    # transformers names CLIPTextModel's tensors with and without this prefix, as its version has it, and reads both.
    drop = "text_model." if name == "text_encoder" else ""
    expected = {key.removeprefix(drop): value.shape for key, value in network.state_dict().items()}
    tensors = {
        key.removeprefix(drop): value
        for key, value in tensors.items()
        if not key.endswith("position_ids") or key.removeprefix(drop) in expected
    }
    check_weights(f"{name} in {files.paths[0].parent}", expected, tensors)
    return tensors


@dataclass(frozen=True)
class CheckedModels:
    """Networks whose files were checked: without storage, on the meta device."""

    networks: Mapping[str, nn.Module]
    """By their names in the pipeline."""
    files_dtype: torch.dtype
    """Type of most of the UNet's numbers on disk."""

    @property
    def parameters(self) -> int:
        """Numbers of all networks together."""
        return sum(count_parameters(network) for network in self.networks.values())


def count_parameters(network: nn.Module) -> int:
    """Numbers of a network's weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def check_models(folders: ModelFolders, names: Sequence[str] = tuple(NETWORKS)) -> CheckedModels:
    """Checks all that will be loaded: configurations, the scheduler, and every tensor's name, shape and type.

    Args:
        folders: Where the models are.
        names: The networks to look at.

    Raises:
        UserError: If something is missing, damaged or does not fit.
    """
    networks: dict[str, Any] = {}
    dtype = torch.float32
    for name in names:
        folder = folders.networks[name]
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: the restyling models need a {NETWORKS[name]} there.")
        network = empty_network(name, folder)
        tensors = check_network(name, network, weight_files(folder))
        networks[name] = network
        if name == "unet":
            largest = max(tensors.values(), key=Tensor.numel)
            dtype = largest.dtype
    _check_fit(networks, folders.base)
    return CheckedModels(networks, dtype)


def _check_fit(networks: Mapping[str, Any], base: Path) -> None:
    """Refuses networks that were not made for each other."""
    unet, vae, controlnet = (networks.get(name) for name in ("unet", "vae", "controlnet"))
    if unet is not None and vae is not None and unet.config["in_channels"] != vae.config["latent_channels"]:
        raise UserError(
            f"The models in {base} do not fit together: the UNet takes {unet.config['in_channels']} channels and the "
            f"autoencoder's latents have {vae.config['latent_channels']}."
        )
    encoders = [networks[name] for name in ("text_encoder", "text_encoder_2") if name in networks]
    if unet is not None and len(encoders) == 2:
        width = sum(encoder.config.hidden_size for encoder in encoders)
        if width != unet.config["cross_attention_dim"]:
            raise UserError(
                f"The text encoders in {base} give tokens of {width} channels and the UNet reads "
                f"{unet.config['cross_attention_dim']}: use the encoders that belong to it."
            )
    if controlnet is not None:
        channels = controlnet.config["conditioning_channels"]
        if channels not in (DEPTH_CHANNELS, DEPTH_CHANNELS + CHANNELS):
            raise UserError(
                f"The ControlNet in {base} reads pictures of {channels} channels: use one for depth, which reads "
                f"{DEPTH_CHANNELS}."
            )
    if unet is not None and controlnet is not None:
        for key in ("block_out_channels", "cross_attention_dim", "in_channels"):
            if unet.config[key] != controlnet.config[key]:
                raise UserError(
                    f"The ControlNet does not fit the UNet in {base}: its {key} is {controlnet.config[key]}, the "
                    f"UNet's {unet.config[key]}."
                )
