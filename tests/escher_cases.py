"""What the tests of the prior share: a tolerance, and weights, numbers and poses that need no random generator."""

import math

import torch
from torch import Tensor, nn


def assert_reproduced(ours: Tensor, theirs: Tensor, share: float = 1e-5) -> None:
    """The largest difference is at most `share` of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= share * theirs.abs().max()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of mean 0 and variance 1, the same on every machine and in every version: squares modulo a prime."""
    index = torch.arange(seed, seed + math.prod(shape))
    return ((index**2 * 40503 % 65537) / 65537 - 0.5).view(shape) * 12**0.5


def fill(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Give every parameter fixed pseudo-random weights of a sensible size."""
    for index, (name, parameter) in enumerate(sorted(module.named_parameters())):
        values = noise(*parameter.shape, seed=index)
        if parameter.ndim > 1:
            values = scale * values / parameter[0].numel() ** 0.5
        elif name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values = 0.1 * values
        parameter.data.copy_(values)
    return module


def ring(scenes: int, views: int, start: float) -> Tensor:
    """World-to-camera poses around the object at different heights and distances, (scenes, views, 4, 4), float64."""
    index = torch.arange(scenes * views, dtype=torch.float64).view(scenes, views)
    azimuth, polar = start + 1.9 * index, 1.2 + 0.3 * torch.sin(index)
    back = torch.stack((polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()), -1)
    right = torch.stack((-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)), -1)
    pose = torch.eye(4, dtype=torch.float64).repeat(scenes, views, 1, 1)
    pose[..., :3, :3] = torch.stack((right, torch.linalg.cross(back, right), back), dim=-2)
    pose[..., 2, 3] = -1.7 - 0.1 * torch.cos(index)
    return pose
