"""Initial noise of the views: offset noise, and noise warped along the surfaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from style_nerf2nerf.reprojection import ViewCameras, match, sample


def noise_offset(
    shape: Sequence[int], generators: Sequence[torch.Generator], deviation: float
) -> Float[Tensor, "views channels 1 1"]:
    """Offset noise: one normal number per channel of each picture, added to the white noise.

    White noise preserves the mean of a picture, so models can infer its colours from the noise; with an offset they
    cannot. SDXL was trained with an offset noise of 0.05.

    Args:
        shape: Of the noise, (views, channels, height, width).
        generators: Where each view's numbers are drawn from; untouched by a deviation of 0.
        deviation: Their standard deviation.
    """
    if not deviation:
        return torch.zeros(*shape[:2], 1, 1)
    return deviation * torch.stack([torch.randn(shape[1], 1, 1, generator=generator) for generator in generators])


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
