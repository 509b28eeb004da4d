"""Build or load the networks of a recipe as a pipeline, and wrap the trained ones in one module."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from eschernet_prior import loading, weight_files
from eschernet_prior.attention import PosedViews
from eschernet_prior.base.errors import UserError
from eschernet_prior.cape import CapeKind
from eschernet_prior.image_encoder import ConvNeXtV2Tokens
from eschernet_prior.pipeline import EscherNetPipeline
from eschernet_prior.training.recipe import PriorRecipe

ESCHERNET_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The noise schedule of Stable Diffusion 1.5, with which EscherNet is trained."""


class PriorTraining(nn.Module):
    """UNet and image encoder as one module: from references, noisy targets and poses to the UNet's prediction."""

    def __init__(self, pipeline: EscherNetPipeline) -> None:
        super().__init__()
        self.unet, self.image_encoder = pipeline.unet, pipeline.image_encoder
        self.cape: CapeKind = pipeline.config["cape"]

    def forward(
        self,
        references: Float[Tensor, "scenes references 3 height width"],
        noisy: Float[Tensor, "scenes targets channels h w"],
        timesteps: Int[Tensor, "scenes"],
        source_poses: Float[Tensor, "scenes references 4 4"],
        target_poses: Float[Tensor, "scenes targets 4 4"],
        kept: Float[Tensor, "scenes"],
    ) -> Float[Tensor, "scenes targets channels h w"]:
        """Predict; `kept` is 0 for scenes whose reference tokens are zeroed, else 1."""
        pixels = self.image_encoder.preprocess(references.flatten(0, 1))
        tokens = self.image_encoder(pixels).unflatten(0, references.shape[:2]).flatten(1, 2)
        predicted = self.unet(
            noisy.flatten(0, 1),
            timesteps.repeat_interleave(noisy.shape[1]),
            tokens * kept[:, None, None].to(tokens.dtype),
            cross_attention_kwargs={"views": PosedViews.from_poses(self.cape, source_poses, target_poses)},
            return_dict=False,
        )[0]
        return predicted.unflatten(0, noisy.shape[:2])


def build_pipeline(recipe: PriorRecipe) -> EscherNetPipeline:
    """The networks of a recipe in float32; new ones are initialised by the recipe's seed.

    Raises:
        UserError: If a network cannot be loaded, or networks do not fit each other.
    """
    torch.manual_seed(recipe.seed)
    return EscherNetPipeline(
        unet=_new_or_loaded(UNet2DConditionModel, recipe.networks.unet, "unet", loading.load_unet),
        vae=_new_or_loaded(AutoencoderKL, recipe.networks.vae, "vae", loading.load_vae),
        image_encoder=_new_or_loaded(
            ConvNeXtV2Tokens, recipe.networks.image_encoder, "image_encoder", _load_encoder, at_root=True
        ),
        scheduler=DDIMScheduler(**{**ESCHERNET_SCHEDULE, **recipe.scheduler}),
        cape=recipe.cape,
        image_size=recipe.image_size,
    )


def _new_or_loaded(
    kind: type[Any], source: Mapping[str, Any] | str, name: str, load: Callable[[Path], Any], at_root: bool = False
) -> Any:
    """Build a network from its configuration, or load it from a subfolder of a folder or hub repository.

    Args:
        kind: Class of the network.
        source: Configuration, or folder or hub id.
        name: Name of the subfolder.
        load: Function that loads a folder.
        at_root: Also accept it in the folder itself, like transformers' image encoders.
    """
    if not isinstance(source, str):
        try:
            return kind(**source)
        except (TypeError, ValueError) as error:
            raise UserError(f"The recipe's {name} cannot be built: {error}.") from error
    files = ("config.json", "diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
    patterns = [f"{prefix}{file}" for prefix in ((f"{name}/", "") if at_root else (f"{name}/",)) for file in files]
    folder = weight_files.locate(source, patterns=patterns)
    return load(folder if at_root and not (folder / name).is_dir() else folder / name)


def _load_encoder(folder: Path) -> ConvNeXtV2Tokens:
    own = weight_files.read_config(folder).get("_class_name") == ConvNeXtV2Tokens.__name__
    return loading.load_own_encoder(folder) if own else loading.load_official_encoder(folder)
