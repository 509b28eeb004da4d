"""The plain formulation of a step's style and content terms: the baseline that the style loss is measured against.

Each term encodes both images for itself, targets are encoded at every step, layers follow one another, and autograd
differentiates through the sort's gather. The arithmetic is the same: equal weights and directions give equal losses.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

from style_nerf2nerf.swd import random_directions
from style_nerf2nerf.vgg19 import STYLE_LAYERS, random_weights


class PlainLoss:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.network = make_layers(cfgs["E"])[:27].eval().requires_grad_(False)
        for module in self.network:
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
        self.network.load_state_dict(random_weights(self.network.state_dict()))
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        x = (images - self.mean) / self.std
        taken = []
        for module in self.network:
            x = module(x)
            if isinstance(module, torch.nn.ReLU):
                taken.append(x)
        named = dict(zip(STYLE_LAYERS, taken))
        return {name: named[name] for name in layers}

    def style(self, rendered: Tensor, target: Tensor) -> Tensor:
        a, b = self.features(rendered, STYLE_LAYERS), self.features(target, STYLE_LAYERS)
        loss = torch.zeros(())
        for name in STYLE_LAYERS:
            channels = a[name].shape[1]
            directions = random_directions(channels, channels, generator=self.generator)
            sorted_a = torch.einsum("dc,bcp->bdp", directions, a[name].flatten(2)).sort(dim=2).values
            sorted_b = torch.einsum("dc,bcp->bdp", directions, b[name].flatten(2)).sort(dim=2).values
            loss = loss + F.mse_loss(sorted_a, sorted_b)
        return loss / len(STYLE_LAYERS)

    def content(self, rendered: Tensor, target: Tensor) -> Tensor:
        layers = STYLE_LAYERS[-4:]
        a, b = self.features(rendered, layers), self.features(target, layers)
        return torch.stack([F.mse_loss(a[name], b[name]) for name in layers]).mean()

    def step(self, rendered: Tensor, target: Tensor) -> Tensor:
        """One step's loss, its gradient left in `rendered.grad`."""
        rendered.grad = None
        loss = self.style(rendered, target) + self.content(rendered, target)
        loss.backward()
        return loss.detach()
