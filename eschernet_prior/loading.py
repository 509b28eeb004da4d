"""Load the components of a prior from its two layouts on disk, the official one and our own.

Both are folders with a subfolder per component: `unet`, `vae`, `image_encoder`, `scheduler`. Our own
`model_index.json` names `EscherNetPipeline` and stores its settings, and its image encoder has timm's names. All
other folders are read as the official layout: its `model_index.json` is ignored, the image encoder has transformers'
names, and the scheduler's file describes a DDPM, which is sampled with DDIM.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel

from eschernet_prior import weight_files
from eschernet_prior.base.errors import UserError
from eschernet_prior.cape import CapeKind
from eschernet_prior.hub import published_cape
from eschernet_prior.image_encoder import ConvNeXtV2Tokens


def load_layout(
    folder: Path,
    name: str,
    own_class: str,
    cape: CapeKind | None,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    given: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load all components of a layout; every key and shape of the weights is checked.

    Args:
        folder: The layout's folder.
        name: The path or hub id that was requested.
        own_class: Class name in our own `model_index.json`.
        cape: The camera positional encoding, if the layout does not record it.
        dtype: Precision of UNet and VAE; the image encoder is float32.
        variant: Infix of the names of weights files, e.g. "fp16".
        given: Components by name that replace the stored ones.

    Returns:
        Settings (`cape`, `image_size`, `weights_licence`) and components by name.

    Raises:
        UserError: If a file is missing or weights do not fit; the message names them.
    """
    absent = [part for part in weight_files.COMPONENTS if part not in given and not (folder / part).is_dir()]
    if absent:
        raise UserError(f"{folder} is not a folder with weights of the prior: it has no {', '.join(absent)}.")
    has_index = (folder / "model_index.json").is_file()
    index = weight_files.read_config(folder, "model_index.json") if has_index else {}
    own = index.get("_class_name") == own_class
    options = _own_options(index, cape) if own else _official_options(name, cape)
    loaders = {
        "unet": lambda part: load_unet(part, variant, dtype),
        "vae": lambda part: load_vae(part, variant, dtype),
        "image_encoder": lambda part: (load_own_encoder if own else load_official_encoder)(part, variant),
        "scheduler": lambda part: (_load_own_scheduler if own else _load_official_scheduler)(part),
    }
    components = {part: given[part] if part in given else load(folder / part) for part, load in loaders.items()}
    return options, components


def _own_options(index: Mapping[str, Any], cape: CapeKind | None) -> dict[str, Any]:
    """Pipeline settings stored in our layout."""
    options = {name: index.get(name) for name in ("cape", "image_size", "weights_licence")}
    if cape not in (None, options["cape"]):
        raise UserError(f"These weights were trained with CaPE {options['cape']}, not {cape}.")
    return options


def _official_options(name: str, cape: CapeKind | None) -> dict[str, Any]:
    """Pipeline settings that the official layout does not record."""
    published = published_cape(name)
    if published and cape not in (None, published):
        raise UserError(f"{name} was trained with CaPE {published}, not {cape}.")
    cape = cape or published
    if cape is None:
        raise UserError(f"The files in {name} do not record the encoding of poses: add cape='6dof' or cape='4dof'.")
    return {"cape": cape, "image_size": weight_files.OFFICIAL_IMAGE_SIZE, "weights_licence": "eschernet"}


def load_unet(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Load the UNet in a folder, strictly."""
    config = weight_files.read_config(folder)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    weight_files.load_weights(unet, weight_files.read_weights(folder, variant), "UNet", dtype)
    return unet.eval()


def load_vae(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Load the autoencoder in a folder, strictly; names of older diffusers versions are translated."""
    config = weight_files.read_config(folder)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    assert isinstance(vae, AutoencoderKL)
    weights = weight_files.rename_legacy_attention(weight_files.read_weights(folder, variant))
    weight_files.load_weights(vae, weights, "VAE", dtype)
    return vae.eval()


def load_own_encoder(folder: Path, variant: str | None = None) -> ConvNeXtV2Tokens:
    """Load an image encoder with timm's names, strictly, in float32."""
    config = weight_files.read_config(folder)
    with torch.device("meta"):
        encoder = ConvNeXtV2Tokens.from_config(config)
    assert isinstance(encoder, ConvNeXtV2Tokens)
    weight_files.load_weights(encoder, weight_files.read_weights(folder, variant), "image encoder", torch.float32)
    return encoder.eval()


def load_official_encoder(folder: Path, variant: str | None = None) -> ConvNeXtV2Tokens:
    """Load an image encoder with transformers' names, strictly, in float32, without its classifier."""
    config = weight_files.read_config(folder)
    weights = {
        key.removeprefix("convnextv2."): value.float()
        for key, value in weight_files.read_weights(folder, variant).items()
        if not key.startswith("classifier.")
    }
    known = {name: config[name] for name in ("image_size", "layer_norm_eps") if name in config}
    return ConvNeXtV2Tokens.from_official(weights, **known)


def _load_own_scheduler(folder: Path) -> SchedulerMixin:
    """Load the stored scheduler by its class name in diffusers."""
    config = weight_files.read_config(folder, "scheduler_config.json")
    name = str(config.get("_class_name"))
    scheduler_class = getattr(diffusers, name, None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise UserError(f"{folder} names a scheduler {name!r} that diffusers does not have: use DDIMScheduler.")
    return scheduler_class.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]  # of its ConfigMixin


def _load_official_scheduler(folder: Path) -> DDIMScheduler:
    """DDIM with the noise schedule of the stored DDPM."""
    config = weight_files.read_config(folder, "scheduler_config.json")
    # A DDPM has no set_alpha_to_one: a file that was saved again may have lost the original's False.
    scheduler = DDIMScheduler.from_config({"set_alpha_to_one": False, **config})
    assert isinstance(scheduler, DDIMScheduler)
    return scheduler
