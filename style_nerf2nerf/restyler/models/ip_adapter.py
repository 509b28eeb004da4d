"""Condition on a reference picture with an IP-Adapter (Ye et al., arXiv 2308.06721), through diffusers' own loader.

The adapter adds to the UNet's cross-attention a second one to an image encoder's tokens of the picture. It is loaded
for one restyling; afterwards the pipeline is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from torch import nn

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.restyler.models.files import WeightFiles
from style_nerf2nerf.restyler.models.hub import IP_ADAPTER, ensure_ip_adapter
from style_nerf2nerf.restyler.models.loading import quiet_loading


def check_ip_adapter(source: str | Path, unet: nn.Module) -> Path:
    """Refuses an IP-Adapter that does not fit a UNet, by the headers of its files.

    Args:
        source: `"sdxl"`, or a local folder in the hub's layout.
        unet: The UNet, which may be on the meta device.

    Returns:
        Its folder.

    Raises:
        UserError: If it is not on this machine and cannot be downloaded, is damaged, or does not fit.
    """
    folder = ensure_ip_adapter(source)
    adapter, encoder = (WeightFiles((folder / name,), None).tensors() for name in IP_ADAPTER.weights)
    widths = [
        (cast(nn.Linear, module.to_q).in_features, cast(nn.Linear, module.to_k).in_features)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2")
    ]
    keys = sorted((key for key in adapter if key.endswith("to_k_ip.weight")), key=lambda key: int(key.split(".")[1]))
    shapes = [tuple(adapter[key].shape) for key in keys]
    projected = [value.shape for key, value in encoder.items() if key.endswith("visual_projection.weight")]
    read = adapter.get("image_proj.proj.weight")
    if shapes != widths or not projected or read is None or read.shape[1] != projected[0][0]:
        raise UserError(f"The IP-Adapter {source} does not fit the restyling models: name one that was made for them.")
    return folder


@contextmanager
def ip_adapter(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, source: str | Path, scale: float
) -> Iterator[None]:
    """Load an IP-Adapter inside the context, so that the pipeline accepts an `ip_adapter_image`.

    Args:
        pipeline: SDXL.
        source: `"sdxl"`, or a local folder in the hub's layout.
        scale: Weight beside the prompt.

    Raises:
        UserError: If the adapter cannot be loaded or does not fit the models.
    """
    folder = ensure_ip_adapter(source)
    weights, encoder = (Path(name) for name in IP_ADAPTER.weights)
    found = {name: getattr(pipeline, name) for name in ("image_encoder", "feature_extractor")}
    processors = dict(pipeline.unet.attn_processors)
    try:
        try:
            with quiet_loading():
                pipeline.load_ip_adapter(
                    str(folder),
                    subfolder=str(weights.parent),
                    weight_name=weights.name,
                    image_encoder_folder=str(encoder.parent),
                    local_files_only=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"The IP-Adapter {source} does not fit the restyling models: choose one that was made for them."
            ) from error
        pipeline.set_ip_adapter_scale(scale)
        yield
    finally:
        pipeline.unload_ip_adapter()
        pipeline.unet.set_attn_processor(processors)
        pipeline.register_modules(**found)
