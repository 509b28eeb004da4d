"""Condition on a reference picture with an IP-Adapter (Ye et al., arXiv 2308.06721), through diffusers' own loader.

The adapter adds to the UNet's cross-attention a second one to an image encoder's tokens of the picture. It is loaded
for one restyling; afterwards the pipeline is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from safetensors import SafetensorError

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.restyler.hub import IP_ADAPTER, ensure_ip_adapter
from style_nerf2nerf.restyler.loading import quiet_loading


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
        UserError: if the adapter cannot be loaded or does not fit the models.
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
