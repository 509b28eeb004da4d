"""Pictures for VGG19, and its features computed by torchvision's own layers."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

from style_nerf2nerf.vgg19 import STYLE_LAYERS, VGG19Features

SHALLOW = STYLE_LAYERS[:3]


def images(seed: int, *shape: int) -> Tensor:
    """Noise at several scales, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(*shape[:-2], 4, 4, generator=generator), size=shape[-2:], mode="bilinear")
    return (coarse + torch.rand(*shape, generator=generator)) / 2


def naive_features(network: VGG19Features, x: Tensor) -> list[Tensor]:
    """torchvision's own layers in their own order, differentiated by autograd alone."""
    layers = make_layers(cfgs["E"])[:27].requires_grad_(False).to(network.feature_dtype)
    layers.load_state_dict(network.network.state_dict(), strict=False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    x, taken = ((x - mean) / std).to(network.feature_dtype), []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            taken.append(x)
    return taken
