"""Every model that is ever downloaded, in one table: which files of which repository, and pinned to which revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eschernet_prior.cape import CapeKind


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub."""

    repository: str
    """Its hub id."""
    revision: str
    """The commit that is downloaded unless told otherwise; a branch where `pinned` is False."""
    weights: tuple[str, ...] = ()
    """Files that must be there, beside the small ones (configurations, vocabularies)."""
    variant: str | None = None
    """Which of the repository's files: `"fp16"`, or None for the only ones."""
    cape: CapeKind | None = None
    """Of an EscherNet checkpoint: the camera positional encoding that it was trained with."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which nobody can move to other files."""
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")


HUB_MODELS = {
    "sdxl": HubModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
        (
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder_2/model.fp16.safetensors",
        ),
        "fp16",
    ),
    "sdxl-controlnet-depth": HubModel(
        "diffusers/controlnet-depth-sdxl-1.0",
        "17bb97973f29801224cd66f192c5ffacf82648b4",
        ("diffusion_pytorch_model.fp16.safetensors",),
        "fp16",
    ),
    "sdxl-vae": HubModel(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("diffusion_pytorch_model.safetensors",),
    ),
    "ip-adapter": HubModel(
        "h94/IP-Adapter",
        "018e402774aeeddd60609b4ecdb7e298259dc729",
        ("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/image_encoder/model.safetensors"),
    ),
    # The commits of these two are not known to us: the loader checks every key and shape, refuses anything but tensors,
    # and says which commit it read.
    "eschernet-6dof": HubModel("kxic/eschernet-6dof", "main", cape="6dof"),
    "eschernet-4dof": HubModel("kxic/eschernet-4dof", "main", cape="4dof"),
}
"""All models on the hub that this project knows, by the name it gives them."""
BY_REPOSITORY = {model.repository: model for model in HUB_MODELS.values()}
"""The same by hub id."""
