"""Reference images as tokens: a ConvNeXt-V2 whose last feature map enters cross-attention as it is.

One image gives one token a cell of the last feature map, row-major, each normalised over its channels: 7×7 tokens of
768 channels for the official network at 224×224. There is no pooling, no projection and no code for the place within
the image; what tells views apart is CaPE (`eschernet_prior.cape`).

Two naming schemes meet here: *official*, that of transformers' `ConvNextV2Model`, in which the EscherNet checkpoints
are published, and timm's, in which the network is built and our own checkpoints are written.
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
    """ConvNeXt-V2 (timm) that gives the normalised cells of its last feature map as tokens.

    Args:
        hidden_sizes: channels of the four stages; the last is the tokens' width.
        depths: blocks of the four stages.
        patch_size: pixels that the first layer folds into one cell (not 2, to which timm adds a halving of its own);
            the last feature map is 8 times coarser still.
        image_size: pixels of the images that `preprocess` makes.
        layer_norm_eps: epsilon of the last normalisation; the inner ones have 1e-6.
        drop_path_rate: stochastic depth while training.
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
                "patch_size 2 is no ConvNeXt-V2: timm halves the feature map once more for it; use 1, 3 or 4."
            )
        from timm.models.convnext import ConvNeXt

        self.backbone = ConvNeXt(
            depths=tuple(depths),
            dims=tuple(hidden_sizes),
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
            use_grn=True,
            ls_init_value=None,
            head_norm_first=True,  # the last normalisation then comes before the pooling that we leave out
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

        The resize is bicubic with a = -0.75, without antialiasing and without clamping: what the official weights saw.

        Args:
            images: values in [0, 1].
        """
        size = (self.config["image_size"],) * 2
        pixels = F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=False)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens channels"]:
        """Tokens of normalised images of any size, one a cell of height / 32 × width / 32 (with `patch_size` 4)."""
        return rearrange(self.backbone.forward_features(pixels.to(self.dtype)), "b c h w -> b (h w) c")

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, image_size: int = 224, layer_norm_eps: float = 1e-12
    ) -> ConvNeXtV2Tokens:
        """Build the network from weights with transformers' names, all sizes inferred from them.

        Args:
            state_dict: weights of a `ConvNextV2Model`; the precision is kept.
            image_size: pixels of the images that `preprocess` makes.
            layer_norm_eps: epsilon of the last normalisation.

        Raises:
            UserError: the weights are not those of a ConvNeXt-V2; names what differs.
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
    """Our parameter names by the official ones, for a network with that many blocks in its stages."""
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
    """Refuse a timm without ConvNeXt-V2, which nerfstudio's own requirements would install.

    Raises:
        UserError: says the one line that helps.
    """
    installed = version("timm")
    if Version(installed) < Version(OLDEST_TIMM):
        raise UserError(
            f"The image encoder needs timm {OLDEST_TIMM} or newer and timm {installed} is installed: "
            f"run `pip install 'timm>={OLDEST_TIMM}'`."
        )


def _sizes(state_dict: Mapping[str, Tensor]) -> tuple[list[int], list[int], int]:
    """(channels of the stages, blocks of the stages, patch size) of weights with official names."""
    stem = "embeddings.patch_embeddings.weight"
    firsts = [stem, *(f"encoder.stages.{stage}.downsampling_layer.1.weight" for stage in range(1, STAGES))]
    for key in firsts:
        if key not in state_dict or state_dict[key].ndim != 4:
            raise UserError(f"The weights of the image encoder have no {key}: they are not a ConvNeXt-V2's.")
    blocks = [
        {key.split(".")[4] for key in state_dict if key.startswith(f"encoder.stages.{stage}.layers.")}
        for stage in range(STAGES)
    ]
    return [state_dict[key].shape[0] for key in firsts], [len(names) for names in blocks], state_dict[stem].shape[-1]
