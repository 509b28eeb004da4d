"""Reference images as tokens: the last feature map of a ConvNeXt-V2, without pooling or projection.

Each cell of the last feature map is a token, row-major, normalised over its channels: 7×7 tokens of 768 channels for
the official network at 224×224. There is no positional encoding within the image; CaPE (`eschernet_prior.cape`)
identifies the view.

Two naming schemes are supported: *official*, that of transformers' `ConvNextV2Model`, in which the EscherNet
checkpoints are published, and timm's, in which the network is built and our own checkpoints are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from packaging.version import Version
from torch import Tensor, nn

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import IMAGENET_MEAN, IMAGENET_STD
from eschernet_prior.weight_files import check_weights

STAGES = 4
OLDEST_TIMM = "1.0.20"


class ConvNeXtV2Tokens(ModelMixin, ConfigMixin):
    """ConvNeXt-V2 (timm) whose normalised last feature map is returned as tokens.

    Args:
        hidden_sizes: Channels of the four stages; the last is the tokens' width.
        depths: Blocks of the four stages.
        patch_size: Stride of the first layer in pixels (not 2, for which timm adds another stride of 2); the last
            feature map is 8 times coarser.
        image_size: Side in pixels of the images that `preprocess` returns.
        layer_norm_eps: Epsilon of the last normalisation; the inner ones have 1e-6.
        drop_path_rate: Rate of stochastic depth in training.
    """

    @register_to_config
    def __init__(
        self,
        hidden_sizes: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        patch_size: int = 4,
        image_size: int = 224,
        layer_norm_eps: float = 1e-12,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_timm()
        if patch_size == 2:
            raise ValueError(
                "patch_size 2 is not supported, because timm halves the feature map once more for it: use 1, 3 or 4."
            )
        from timm.models.convnext import ConvNeXt

        self.backbone = ConvNeXt(
            depths=tuple(depths),
            dims=tuple(hidden_sizes),
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
            use_grn=True,
            ls_init_value=None,
            head_norm_first=True,  # puts the last normalisation before the pooling, which is not used
            num_classes=0,
        )
        assert isinstance(self.backbone.norm_pre, nn.LayerNorm)
        self.backbone.norm_pre.eps = layer_norm_eps

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.backbone.num_features

    def preprocess(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """Resize to the network's input and normalise with ImageNet's mean and deviation, in float32.

        The resize is bicubic with a = -0.75, without antialiasing and without clamping, as for the official weights.

        Args:
            images: Values in [0, 1].
        """
        size = (self.config["image_size"],) * 2
        pixels = F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=False)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens channels"]:
        """Tokens of normalised images of any size, height / 32 × width / 32 of them (with `patch_size` 4)."""
        return rearrange(self.backbone.forward_features(pixels.to(self.dtype)), "b c h w -> b (h w) c")

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, image_size: int = 224, layer_norm_eps: float = 1e-12
    ) -> ConvNeXtV2Tokens:
        """Build the network from weights with transformers' names, all sizes inferred from them.

        Args:
            state_dict: Weights of a `ConvNextV2Model`; the precision is kept.
            image_size: Side in pixels of the images that `preprocess` returns.
            layer_norm_eps: Epsilon of the last normalisation.

        Raises:
            UserError: If the weights are not those of a ConvNeXt-V2; the message names the difference.
        """
        hidden_sizes, depths, patch_size = _sizes(state_dict)
        names = official_names(depths)
        with torch.device("meta"):
            encoder = cls(hidden_sizes, depths, patch_size, image_size, layer_norm_eps)
        shapes = {key: value.shape for key, value in encoder.state_dict().items()}
        expected = {
            official: torch.Size((1, 1, 1, *shapes[own])) if ".grn." in official else shapes[own]
            for official, own in names.items()
        }
        check_weights("image encoder", expected, state_dict)
        own_state = {own: state_dict[official].reshape(shapes[own]) for official, own in names.items()}
        encoder.load_state_dict(own_state, assign=True)
        return encoder.eval()


def official_names(depths: Sequence[int]) -> dict[str, str]:
    """Our parameter names by the official ones, for the given numbers of blocks in the stages."""
    layers = {"embeddings.patch_embeddings": "stem.0", "embeddings.layernorm": "stem.1", "layernorm": "norm_pre"}
    inner = {"dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1", "grn": "mlp.grn", "pwconv2": "mlp.fc2"}
    for stage, depth in enumerate(depths):
        if stage:  # the first stage keeps the resolution
            for part in (0, 1):
                layers[f"encoder.stages.{stage}.downsampling_layer.{part}"] = f"stages.{stage}.downsample.{part}"
        for block in range(depth):
            for official, own in inner.items():
                layers[f"encoder.stages.{stage}.layers.{block}.{official}"] = f"stages.{stage}.blocks.{block}.{own}"
    return {
        f"{theirs}.{kind}": f"backbone.{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")
    }


def require_timm() -> None:
    """Refuse a timm without ConvNeXt-V2, as pinned by nerfstudio.

    Raises:
        UserError: If timm is too old.
    """
    installed = version("timm")
    if Version(installed) < Version(OLDEST_TIMM):
        raise UserError(
            f"The image encoder needs timm {OLDEST_TIMM} or newer, and timm {installed} is installed: "
            f"run `pip install 'timm>={OLDEST_TIMM}'`."
        )


def _sizes(state_dict: Mapping[str, Tensor]) -> tuple[list[int], list[int], int]:
    """Channels and blocks of the stages, and the patch size, from weights with official names."""
    stem = "embeddings.patch_embeddings.weight"
    firsts = [stem, *(f"encoder.stages.{stage}.downsampling_layer.1.weight" for stage in range(1, STAGES))]
    for key in firsts:
        if key not in state_dict or state_dict[key].ndim != 4:
            raise UserError(f"The weights of the image encoder have no {key}: they are not those of a ConvNeXt-V2.")
    blocks = [
        {key.split(".")[4] for key in state_dict if key.startswith(f"encoder.stages.{stage}.layers.")}
        for stage in range(STAGES)
    ]
    return [state_dict[key].shape[0] for key in firsts], [len(names) for names in blocks], state_dict[stem].shape[-1]
