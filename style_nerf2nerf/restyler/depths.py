"""Depth for a ControlNet: cleaned of a field's noise, and as grey pictures."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter
from torch import Tensor

FARTHEST = 0.1
"""Grey of the farthest surface, above 0, the value without a surface."""
PERCENTILES = (0.02, 0.98)
"""Percentiles to which inverse depth is clamped, so that floaters do not use up the range."""
REACH = 5.0
"""A place farther away than this many times the median depth counts as nothing: a field's depth is noise there."""
HAZE_FROM = 1.4
"""Rough depth farther away than this many times the median depth of what is smooth counts as haze."""
HAZE = 0.012
"""Least roughness of haze: how far inverse depth is from its local median, as a share, in the mean over a window."""
BUMP = 0.015
"""Differences of inverse depth, as a share of it, that are smoothed away as a field's noise."""
SMOOTHINGS = 3
"""Number of smoothings."""


def clean_depths(
    depths: Float[Tensor, "views 1 height width"],
) -> tuple[Float[Tensor, "views 1 height width"], Bool[Tensor, "views 1 height width"]]:
    """Depths without a field's noise, and where surfaces are.

    Nothing is beyond `REACH` medians, nor in haze (see `HAZE_FROM`), as in a sky. Bumps of surfaces are smoothed, edges
    are not.

    Args:
        depths: z-depth in scene units, 0 where nothing is.
    """
    inside = depths > 0
    if not bool(inside.any()):
        return depths, inside
    inverse, far = 1 / depths.clamp(min=1e-6), depths > REACH * depths[inside].median()
    if bool(far.any()):
        inverse, inside = _without_specks(inverse, inside & ~far)
    inside = inside & ~_haze(inverse, inside)
    return 1 / _smooth(inverse, inside).clamp(min=1e-6), inside


def control_pictures(depths: Float[Tensor, "views 1 height width"]) -> Float[Tensor, "views 3 height width"]:
    """Inverse depth of all views on one scale as grey pictures.

    `FARTHEST + (1 - FARTHEST) · (1/z - a) / (b - a)` clamped to [`FARTHEST`, 1], with a and b the percentiles of
    1/z over all views together; 0 where nothing is (see `clean_depths`).

    Args:
        depths: z-depth in scene units, 0 where nothing is.
    """
    depths, inside = clean_depths(depths)
    if not bool(inside.any()):
        return torch.zeros_like(depths).expand(-1, 3, -1, -1)
    inverse = 1 / depths.clamp(min=1e-6)
    known = inverse[inside].float().sort().values
    low, high = (known[round(share * (len(known) - 1))] for share in PERCENTILES)
    near = (inverse - low) / (high - low) if high > low else torch.ones_like(inverse)
    grey = FARTHEST + (1 - FARTHEST) * near.clamp(0, 1)
    return torch.where(inside, grey, 0.0).expand(-1, 3, -1, -1)


def _without_specks(
    inverse: Float[Tensor, "views 1 height width"], inside: Bool[Tensor, "views 1 height width"]
) -> tuple[Float[Tensor, "views 1 height width"], Bool[Tensor, "views 1 height width"]]:
    """Clean a field's depth: medians in small windows, and holes in surfaces filled from their surroundings.

    Args:
        inverse: Inverse depth.
        inside: Where surfaces are.

    Returns:
        Inverse depth and where surfaces are.
    """
    height = inverse.shape[-2]
    inverse = _local_median(torch.where(inside, inverse, 0.0))
    inside = inverse > 0
    wide = 2 * round(height / 32) + 1
    for _ in range(3):
        share = _window_mean(inside.float(), wide)
        holes = ~inside & (share > 0.5)
        filled = _window_mean(torch.where(inside, inverse, 0.0), wide) / share.clamp(min=1e-6)
        inverse, inside = torch.where(holes, filled, inverse), inside | holes
    return inverse, inside


def _local_median(values: Float[Tensor, "views 1 height width"]) -> Float[Tensor, "views 1 height width"]:
    """The median in windows of a 26th of the height, at most nine pixels."""
    side = 2 * _half_window(values.shape[-2]) + 1
    filtered = median_filter(values.cpu().numpy(), size=(1, 1, side, side), mode="nearest")
    return torch.from_numpy(filtered).to(values)


def _haze(
    inverse: Float[Tensor, "views 1 height width"], inside: Bool[Tensor, "views 1 height width"]
) -> Bool[Tensor, "views 1 height width"]:
    """Where depth is rough and far behind the smooth surfaces of all views."""
    bumps = (inverse / _local_median(inverse).clamp(min=1e-6) - 1).abs().clamp(max=1)
    smooth = inside & (_mean_inside(bumps, inside) < HAZE)
    if not bool(smooth.any()):
        return torch.zeros_like(inside)
    behind = inside & (inverse * HAZE_FROM < inverse[smooth].median())
    return behind & (_mean_inside(bumps, behind) > HAZE)


def _mean_inside(
    values: Float[Tensor, "views 1 height width"], inside: Bool[Tensor, "views 1 height width"]
) -> Float[Tensor, "views 1 height width"]:
    """The mean over the pixels inside, in windows of a 7th of the height."""
    wide = 2 * round(values.shape[-2] / 14) + 1
    return _window_mean(values * inside, wide) / _window_mean(inside.float(), wide).clamp(min=1e-6)


def _smooth(
    inverse: Float[Tensor, "views 1 height width"], inside: Bool[Tensor, "views 1 height width"]
) -> Float[Tensor, "views 1 height width"]:
    """Inverse depth after a few bilateral filters (Tomasi and Manduchi, ICCV 1998), which keep edges above `BUMP`.

    Neighbours are added one after the other, because all of them at once need much memory in large pictures.
    """
    height, width = inverse.shape[-2:]
    half = _half_window(height)
    for _ in range(SMOOTHINGS):
        padded = F.pad(torch.where(inside, inverse, 0.0), (half,) * 4, mode="replicate")
        total, weights = torch.zeros_like(inverse), torch.zeros_like(inverse)
        for down, across in product(range(2 * half + 1), repeat=2):
            neighbour = padded[..., down : down + height, across : across + width]
            distance = ((down - half) ** 2 + (across - half) ** 2) / max(1, half) ** 2
            apart = neighbour / inverse.clamp(min=1e-6) - 1
            weight = torch.exp(-distance - 0.5 * (apart / BUMP).square()) * (neighbour > 0)
            total += weight * neighbour
            weights += weight
        inverse = torch.where(inside, total / weights.clamp(min=1e-6), inverse)
    return inverse


def _half_window(height: int) -> int:
    """Pixels to either side in a window of a 32nd of the height; at most four, so that large pictures stay fast."""
    return min(round(height / 64), 4)


def _window_mean(values: Float[Tensor, "views 1 height width"], side: int) -> Float[Tensor, "views 1 height width"]:
    """The mean in square windows, cut off at the picture's edges."""
    return F.avg_pool2d(values, side, stride=1, padding=side // 2, count_include_pad=False)
