"""Locate and read weights of the prior, print their licence, and check every key and shape.

A *layout* is a folder with one subfolder per component (`unet`, `vae`, `image_encoder`, `scheduler`), each with a
configuration and a weights file. Two are supported: our own, written by `EscherNetPipeline.save_pretrained`, and the
official one of the EscherNet checkpoints, whose `model_index.json` names classes of another code base that are never
imported. Only safetensors files and `.bin` files with nothing but tensors are read.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eschernet_prior.base.errors import UserError
from eschernet_prior.hub import ESCHERNET

COMPONENTS = ("unet", "vae", "image_encoder", "scheduler")
LAYOUT_FILES = ("model_index.json", *(f"{component}/*" for component in COMPONENTS))
OFFICIAL_IMAGE_SIZE = 256
"""Side in pixels of the official checkpoints' views; not part of their files."""

LICENCES = {
    "eschernet": (
        "The EscherNet weights are licensed by Imperial College London for non-commercial academic research only: "
        "https://github.com/kxhit/EscherNet/blob/main/LICENSE"
    )
}
"""Licence notices by the name that is stored with the weights."""

EMBEDDED, EMBEDDED_FOLDER = "embedded", Path(__file__).parent / "weights" / "prior"
"""Name and folder of the small prior in this package."""

WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Names of weights files, in order of preference."""
LEGACY_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of a VAE's attention layers in older diffusers versions, and the current ones."""

_announced: set[str] = set()


def announce_licence(name: str) -> None:
    """Print the licence of weights, once per process."""
    _say_once(LICENCES.get(name, f"These weights are under the licence {name!r}."), "bold yellow")


def _say_once(notice: str, style: str | None = None) -> None:
    """Print a notice unless this process has printed it before."""
    if notice not in _announced:
        _announced.add(notice)
        CONSOLE.print(notice, style=style, markup=False)


def locate(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    patterns: Sequence[str] = LAYOUT_FILES,
) -> Path:
    """The folder of a layout; that of a hub repository is downloaded on first use.

    Args:
        path_or_hub_id: a folder, "owner/name" on the hub, or "embedded" for the small prior in this package.
        revision: Branch, tag or commit on the hub; default: that of `eschernet_prior.hub`.
        cache_dir: Cache folder of the hub.
        token: Access token for private repositories.
        local_files_only: Do not use the network.
        patterns: Files to download.

    Raises:
        UserError: If it is neither a folder nor a repository that can be downloaded.
    """
    folder = EMBEDDED_FOLDER if path_or_hub_id == EMBEDDED else Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if folder.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(f"There is no folder {name!r} with weights of the prior.")
    from huggingface_hub import snapshot_download

    published = next((model for model in ESCHERNET.values() if model.repository == name), None)
    try:
        snapshot = snapshot_download(
            name,
            revision=revision or (published.revision if published else None),
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=list(patterns),
        )
    except (OSError, ValueError) as error:  # no network, no such repository, or nothing cached
        raise UserError(
            f"The weights {name!r} are not a local folder and could not be downloaded: check the name, and the network."
        ) from error
    if published and not published.pinned:
        _say_once(f"{name}: commit {Path(snapshot).name}.")
    return Path(snapshot)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read the JSON configuration in a component's folder.

    Raises:
        UserError: If it is missing or not a JSON object.
    """
    file = folder / name
    if not file.is_file():
        raise UserError(f"{file} is missing: {folder.parent} is not a folder with weights of the prior.")
    try:
        config = json.loads(file.read_text("utf8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: download or save it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object: download or save it again.")
    return config


def read_weights(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """Read all tensors of the weights file (or its shards) in a component's folder, on the CPU.

    Args:
        folder: The component's folder.
        variant: Infix of the name, e.g. "fp16" for `diffusion_pytorch_model.fp16.safetensors`.

    Raises:
        UserError: If there is no weights file, or it is damaged or contains more than tensors.
    """
    names = [name.replace(".", f".{variant}.", 1) if variant else name for name in WEIGHT_FILES]
    for name in names:
        if (folder / name).is_file():
            return _read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            shards = sorted(set(read_config(folder, f"{name}.index.json")["weight_map"].values()))
            return {key: value for shard in shards for key, value in _read_tensors(folder / Path(shard).name).items()}
    raise UserError(f"{folder} contains no weights: expected {names[0]} or {names[-1]}.")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is damaged or contains more than tensors: download it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{file} contains more than tensors: it is not a weights file of the prior.")
    return tensors


def check_weights(what: str, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """Refuse weights whose keys or shapes differ from the expected ones.

    Args:
        what: Name of the network, for the message.
        expected: Shapes by key.
        found: The weights.

    Raises:
        UserError: If keys are missing, unknown or of another shape; the message names them.
    """
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {list(found[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    differences = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
        if keys
    ]
    if differences:
        raise UserError(f"The weights of the {what} do not fit the network: {'; '.join(differences)}.")


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype) -> None:
    """Load weights into a module built on the meta device, strictly.

    Args:
        module: The network, whose parameters have no storage yet.
        state: Weights by the module's keys.
        what: Name of the network, for messages.
        dtype: Precision of the loaded weights.
    """
    check_weights(what, {key: value.shape for key, value in module.state_dict().items()}, state)
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)


def rename_legacy_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights with the current diffusers names of attention layers."""

    def today(key: str) -> str:
        for old, new in LEGACY_ATTENTION.items():
            key = key.replace(old, new) if ".attentions." in key else key
        return key

    return {today(key): value for key, value in state.items()}
