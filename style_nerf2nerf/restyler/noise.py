"""Initial noise of the views: offset noise, and noise warped along the surfaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from style_nerf2nerf.reprojection import ViewCameras, match, sample

CHOICE_CHANNELS = 2
"""Latent channels that carry the pattern of `noise_offset`."""


def noise_offset(
    shape: Sequence[int], generators: Sequence[torch.Generator], deviation: float
) -> Float[Tensor, "views channels tall wide"]:
    """Noise that decides what words leave open: one normal number per picture, the height of a chequered pattern.

    Pictures have almost nothing of that pattern in their latents, so models that were trained with it can read the
    number at any noise level; of views that share attention they read all numbers and choose the same for all.
    Few-step models without it paint the mean of what is possible.

    Args:
        shape: Of the noise, (views, channels, height, width).
        generators: Where each view's number is drawn from; untouched by a deviation of 0.
        deviation: Of the pattern's height.
    """
    if not deviation:
        return torch.zeros(*shape)
    heights = torch.stack([torch.randn((), generator=generator) for generator in generators])
    return deviation * choice_pattern(heights, shape)


def choice_pattern(heights: Float[Tensor, " views"], shape: Sequence[int]) -> Float[Tensor, "views channels tall wide"]:
    """A chequered pattern of ±height in the first `CHOICE_CHANNELS` channels of each view, 0 in the others."""
    _, channels, tall, wide = shape
    chequer = (torch.arange(tall)[:, None] + torch.arange(wide)) % 2 * 2.0 - 1.0
    first = (torch.arange(channels) < CHOICE_CHANNELS).float()
    return heights.view(-1, 1, 1, 1) * first.view(-1, 1, 1) * chequer


def step_seed(seed: int, entry: int, step: int) -> int:
    """Seed of the noise that a stochastic scheduler adds to an entry after a step, the same after any restart."""
    return (seed * 1_000_003 + entry) * 1_009 + step + 1


def warp_noise(
    noise: Float[Tensor, "views channels tall wide"],
    depths: Float[Tensor, "views 1 height width"],
    cameras: ViewCameras,
) -> Float[Tensor, "views channels tall wide"]:
    """Use the same noise for a surface in all views: that of the first view that shows it.

    Cells that no earlier view shows keep their own noise. Cells are copied from the nearest one without interpolation,
    which would reduce the variance.

    Args:
        noise: Independent noise of every view.
        depths: z-depth in the poses' units, 0 where nothing is.
        cameras: The views' cameras.
    """
    tall, wide = noise.shape[-2:]
    cells = cameras.resized(tall, wide)
    coarse = F.interpolate(depths, size=(tall, wide), mode="nearest-exact")
    warped = noise.clone()
    for view in range(1, len(noise)):
        open_cells = torch.ones(tall, wide, dtype=torch.bool)
        for earlier in range(view):
            pixels, visible = match(cells, coarse, view, earlier)
            taken = visible & open_cells
            warped[view] = torch.where(taken, sample(warped[earlier], pixels, "nearest"), warped[view])
            open_cells &= ~taken
    return warped
