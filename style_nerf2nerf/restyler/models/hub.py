"""The restyling models on the hub and in this package, and where the smaller ones among them are on this machine."""

from __future__ import annotations

from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.hub import HubModel, ensure_downloaded

EMBEDDED_FOLDER = Path(__file__).parents[2] / "weights" / "restyler"
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
        (
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer_2/tokenizer_config.json",
        ),
        "fp16",
    ),
    "controlnet": HubModel(
        "diffusers/controlnet-depth-sdxl-1.0",
        "17bb97973f29801224cd66f192c5ffacf82648b4",
        ("diffusion_pytorch_model.fp16.safetensors",),
        ("config.json",),
        "fp16",
    ),
    "vae": HubModel(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("diffusion_pytorch_model.safetensors",),
        ("config.json",),
    ),
}
"""What the source `"sdxl"` means."""
IP_ADAPTER = HubModel(
    "h94/IP-Adapter",
    "018e402774aeeddd60609b4ecdb7e298259dc729",
    ("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/image_encoder/model.safetensors"),
    ("models/image_encoder/config.json",),
)
"""What the IP-Adapter `"sdxl"` means: SDXL's adapter for the smaller of the repository's image encoders."""
# The commits of the following are not known to us: their files are checked like all others, and the commit that was
# read is printed and recorded.
LIGHTNING = HubModel("ByteDance/SDXL-Lightning", "main", ("sdxl_lightning_8step_lora.safetensors",))
"""What the few-step LoRA `"sdxl"` means: SDXL-Lightning's for eight steps."""
CLIPSEG = HubModel(
    "CIDAS/clipseg-rd64-refined",
    "main",
    ("model.safetensors",),
    ("config.json", "preprocessor_config.json", "tokenizer_config.json"),
)
"""What finds the words of `--pipeline.mask-words` in the views: CLIPSeg."""


def ensure_ip_adapter(source: str | Path) -> Path:
    """Make sure that an IP-Adapter is on this machine; that of `"sdxl"` is downloaded if necessary.

    Args:
        source: `"sdxl"`, or a folder in the hub's layout (see `IP_ADAPTER`).

    Returns:
        Its folder.

    Raises:
        UserError: If it is missing and cannot be downloaded.
    """
    if source == "sdxl":
        return ensure_downloaded(IP_ADAPTER, "use a folder that contains it")
    missing = [name for name in IP_ADAPTER.weights if not (Path(source) / name).is_file()]
    if missing:
        raise UserError(f"There is no IP-Adapter in {source} ({missing[0]} is missing): use sdxl or its folder.")
    return Path(source)


def locate_lora(source: str | Path) -> Path:
    """The safetensors file of a few-step LoRA; that of `"sdxl"` is downloaded where it is not in the hub's cache.

    Args:
        source: `"sdxl"`, or a file.

    Raises:
        UserError: If it is not on this machine and cannot be downloaded.
    """
    if source == "sdxl":
        folder = ensure_downloaded(LIGHTNING, "name a file that holds it, or leave --pipeline.restyle.speed at normal")
        return folder / LIGHTNING.weights[0]
    path = Path(source)
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"There is no LoRA {path}: give --pipeline.restyle.fast-lora sdxl or a safetensors file.")
    return path


def locate_clipseg(source: str | Path) -> Path:
    """The folder of CLIPSeg; that of `"hub"` is downloaded where it is not in the hub's cache.

    Args:
        source: `"hub"`, or a folder in the hub's layout.

    Raises:
        UserError: If it is not on this machine and cannot be downloaded.
    """
    if source == "hub":
        return ensure_downloaded(CLIPSEG, "give --pipeline.masks a folder of masks")
    folder = Path(source)
    missing = [name for name in (*CLIPSEG.weights, *CLIPSEG.configurations) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"There is no CLIPSeg in {folder} ({missing[0]} is missing): name hub or its folder.")
    return folder
