"""VGG19's features: the network with frozen weights, from torchvision, a file, or random.

Axes:
    images      (batch, 3, height, width), RGB in [0, 1]; normalised to ImageNet's mean and deviation inside.
    layer       named conv<block>_<convolution>, taken after its ReLU; block k has 1/2^(k-1) of the image's resolution.
    features    a dict from layer name to (batch, channels, height, width), in the network's order.

The convolutions and the pooling are autograd functions that keep less for the backward pass than autograd would.
"""

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torchvision.models.vgg import VGG19_Weights, cfgs, make_layers

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import IMAGENET_MEAN, IMAGENET_STD

Features = dict[str, Float[Tensor, "batch channels height width"]]

STYLE_LAYERS = tuple(f"conv{block}_{i}" for block, convs in enumerate((2, 2, 4, 4), 1) for i in range(1, convs + 1))
"""conv1_1 … conv4_4: the twelve layers of Heitz et al. and of Style-NeRF2NeRF."""

_CELLS_ALONG_SIDE = 4
"""Least number of cells per side in the deepest layer; fewer do not form a distribution to compare."""


def _positions() -> dict[str, int]:
    """Index of each layer's convolution in torchvision's sequence, where each is followed by its ReLU."""
    positions, position, block, convolution = {}, 0, 1, 0
    for entry in cfgs["E"]:
        if entry == "M":
            position, block, convolution = position + 1, block + 1, 0
        else:
            convolution += 1
            positions[f"conv{block}_{convolution}"] = position
            position += 2
    return positions


_POSITIONS = _positions()
VGG19_LAYERS = tuple(_POSITIONS)
"""All layers that a loss can use."""


class VGG19Features(nn.Module):
    """The convolutional part of VGG19, frozen, cut after the deepest requested layer.

    Works channels-last (twice as fast on a CPU) and outside autocast, in `feature_dtype`.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1, from torch hub's cache or downloaded into it), "random" (fixed
            orthogonal filters: no download, the same on every machine, see `random_weights`), or a .safetensors or .pth
            file with torchvision's names.
        layers: Names of the layers to return, in any order.
        feature_dtype: Type of the network's computation and features; the style loss sorts in float32 in any case.

    Raises:
        UserError: If the weights are missing, damaged or not VGG19's, or a layer does not exist.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str | Path = "imagenet",
        layers: Iterable[str] = STYLE_LAYERS,
        feature_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        layers = tuple(layers)
        unknown = [name for name in layers if name not in _POSITIONS]
        if unknown or not layers:
            raise UserError(
                f"VGG19 has no layer {', '.join(unknown) or '(none was named)'}: choose from {', '.join(_POSITIONS)}."
            )
        self.layers = tuple(name for name in _POSITIONS if name in layers)
        self.feature_dtype = feature_dtype
        with torch.device("meta"):  # skips the initialisation of weights that are replaced
            self.network = make_layers(cfgs["E"])[: _POSITIONS[self.layers[-1]] + 2]
        self.network.load_state_dict(_load(weights, self.network.state_dict()), assign=True)
        self.network.to(feature_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def min_size(self) -> int:
        """Smallest height and width of an image, in pixels: 32 if a layer of conv4 is requested."""
        return _CELLS_ALONG_SIDE * 2 ** (int(self.layers[-1][4]) - 1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Features of images in [0, 1], by layer name.

        Raises:
            ValueError: If the shape is not (batch, 3, height, width), or a side is shorter than `min_size`.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images must be (batch, 3, height, width), got {tuple(images.shape)}.")
        if min(images.shape[2:]) < self.min_size:
            raise ValueError(
                f"Images must be at least {self.min_size} px high and wide for {self.layers[-1]}, got "
                f"{images.shape[2]} × {images.shape[3]}: enlarge them or choose shallower layers."
            )
        with torch.autocast(images.device.type, enabled=False):
            x = ((images.float() - self.mean) / self.std).to(self.feature_dtype, memory_format=torch.channels_last)
            features: Features = {}
            wanted = {_POSITIONS[name]: name for name in self.layers}
            for position, module in enumerate(self.network.children()):
                if isinstance(module, nn.Conv2d):
                    x = _ConvReLU.apply(x, module.weight, module.bias)
                elif isinstance(module, nn.MaxPool2d):
                    x = _MaxPool.apply(x)
                if position in wanted:
                    features[wanted[position]] = x
        return features


class _ConvReLU(torch.autograd.Function):
    """A frozen 3×3 convolution with ReLU that stores a bit map of the ReLU's zeros instead of activations.

    Autograd would store every activation until the backward pass; here, activations are released after the losses that
    use them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, padding=1).relu_()
        if ctx.needs_input_grad[0]:
            ctx.shape = x.shape
            ctx.save_for_backward(y <= 0, weight)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cut_off, weight = ctx.saved_tensors
        # One pass, where masked_fill would copy first.
        passed = torch.where(cut_off, grad_output.new_zeros(()), grad_output)
        return conv2d_input(ctx.shape, weight, passed, padding=1), None, None


class _MaxPool(torch.autograd.Function):
    """A 2×2 maximum that stores the positions of the maxima instead of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(x, 2, return_indices=True)
        ctx.shape = x.shape
        ctx.save_for_backward(where)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:  # type: ignore[override]
        (where,) = ctx.saved_tensors
        return F.max_unpool2d(grad_output, where, [2, 2], output_size=ctx.shape[2:])


OPPONENT_CHROMA = 4.0
"""Gain of colour relative to light in random weights, because light varies much more in pictures."""


def opponent_colours(chroma: float = OPPONENT_CHROMA) -> Float[Tensor, "3 3"]:
    """Matrix from normalised RGB to light, red − blue and green − magenta, which are mutually orthogonal.

    The channels of photographs are nearly equal, so that randomly weighted sums of them contain little but light. Along
    these axes, with amplified colour axes, the channels are nearly uncorrelated.
    """
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
    return axes / axes.norm(dim=1, keepdim=True) * torch.tensor([1.0, chroma, chroma])[:, None]


def random_weights(state: Mapping[str, Tensor], chroma: float = OPPONENT_CHROMA) -> dict[str, Tensor]:
    """Fixed weights for the entries of `state`, in float32: orthogonal filters of gain √2 and no bias.

    The filters of the first layer are orthogonal on opponent colours (`opponent_colours`). Each tensor's generator is
    seeded by its name: the choice of layers changes no weight.
    """
    weights = {}
    for name, like in state.items():
        if like.ndim == 1:
            weights[name] = torch.zeros(like.shape)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(f"style_nerf2nerf {name}".encode()))
        filters, taps = like.shape[0], math.prod(like.shape[1:])
        gaussian = torch.randn(max(filters, taps), min(filters, taps), generator=generator)
        q, r = torch.linalg.qr(gaussian)
        q = q * r.diagonal().sign()  # makes the decomposition unique, whatever library computed it
        gain = math.sqrt(2 * max(1, filters / taps))
        weights[name] = gain * (q if filters > taps else q.mT).reshape(like.shape)
        if like.shape[1] == 3 and chroma:
            weights[name] = torch.einsum("fcyx,cd->fdyx", weights[name], opponent_colours(chroma))
    return weights


def _load(weights: str | Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load the entries of `state` from a source of weights; other entries, such as deeper layers, are ignored."""
    if weights == "random":
        return random_weights(state)
    loaded = _load_imagenet() if weights == "imagenet" else _load_file(Path(weights))
    loaded = {re.sub(r"^features\.", "", name): tensor for name, tensor in loaded.items()}
    wrong = [name for name in state if name not in loaded or loaded[name].shape != state[name].shape]
    if wrong:
        raise UserError(
            f"The weights {weights} are not VGG19's: features.{wrong[0]} is missing or has another shape; "
            'use a file in torchvision\'s layout, "imagenet" or "random".'
        )
    return {name: loaded[name].float() for name in state}


def _load_imagenet() -> dict[str, Tensor]:
    weights = VGG19_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu"))
    except (OSError, HTTPException) as error:
        raise UserError(
            f"VGG19's ImageNet weights are not in torch hub's cache and could not be downloaded ({error}): connect to "
            f'the network once, place {file.name} in {file.parent}, or choose vgg_weights="random".'
        ) from error
    except Exception as error:  # reading a damaged file can raise any exception
        raise UserError(f"VGG19's ImageNet weights are damaged: delete {file} if it exists, and try again.") from error


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f'VGG19 weights are "imagenet", "random" or a .safetensors or .pth file; there is no {path}.')
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # reading a damaged file can raise any exception
        raise UserError(f"{path} cannot be read as a .safetensors or .pth file of weights: it is damaged.") from error
