"""The restyling models on the hub, and the check that they are available before long work starts."""

from __future__ import annotations

from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.hub import HubModel, ensure_downloaded

EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights" / "restyler"
"""The small models in this package."""

SDXL = {
    "base": HubModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        (
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder_2/model.fp16.safetensors",
        ),
        "fp16",
    ),
    "controlnet": HubModel(
        "diffusers/controlnet-depth-sdxl-1.0",
        "17bb97973f29801224cd66f192c5ffacf82648b4",
        ("diffusion_pytorch_model.fp16.safetensors",),
        "fp16",
    ),
    "vae": HubModel(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("diffusion_pytorch_model.safetensors",),
    ),
}
"""What the source `"sdxl"` means."""
IP_ADAPTER = HubModel(
    "h94/IP-Adapter",
    "018e402774aeeddd60609b4ecdb7e298259dc729",
    ("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/image_encoder/model.safetensors"),
)
"""What the IP-Adapter `"sdxl"` means: SDXL's adapter for the smaller of the repository's image encoders."""


def ensure_models(source: str | Path) -> None:
    """Make sure that the models of a source are on this machine; those of `"sdxl"` are downloaded if necessary.

    Nothing is loaded, and the network is not used if everything is in the hub's cache.

    Args:
        source: `"embedded"`, `"sdxl"`, or a folder in diffusers' layout.

    Raises:
        UserError: if they are missing and cannot be downloaded.
    """
    if source == "sdxl":
        for model in SDXL.values():
            ensure_downloaded(model, "use --pipeline.restyle.source embedded")
        return
    folder = EMBEDDED_FOLDER if source == "embedded" else Path(source)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"There are no restyling models in {folder}: set --pipeline.restyle.source to sdxl, embedded, or a "
            "folder written by diffusers' save_pretrained."
        )


def ensure_ip_adapter(source: str | Path) -> Path:
    """Make sure that an IP-Adapter is on this machine; that of `"sdxl"` is downloaded if necessary.

    Args:
        source: `"sdxl"`, or a folder in the hub's layout (see `IP_ADAPTER`).

    Returns:
        Its folder.

    Raises:
        UserError: if it is missing and cannot be downloaded.
    """
    if source == "sdxl":
        return ensure_downloaded(IP_ADAPTER, "use a folder that contains it")
    missing = [name for name in IP_ADAPTER.weights if not (Path(source) / name).is_file()]
    if missing:
        raise UserError(f"There is no IP-Adapter in {source} ({missing[0]} is missing): use sdxl or its folder.")
    return Path(source)
