"""From z-depth to the picture that a depth ControlNet reads.

Depth ControlNets were trained on inverse depth, near bright, far dark. All views of a scene share one scale, so that a
surface has about the same grey from wherever it is seen; nothing is black.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FARTHEST = 0.1
"""Grey of the farthest surface: above 0, so that it differs from nothing."""
PERCENTILES = (0.02, 0.98)
"""Inverse depths outside these are clamped: a few floaters must not take the whole range."""


def control_pictures(depths: Float[Tensor, "views 1 height width"]) -> Float[Tensor, "views 3 height width"]:
    """Inverse depth of all views on one scale as grey pictures.

    `FARTHEST + (1 - FARTHEST) · (1/z - a) / (b - a)` clamped to [`FARTHEST`, 1], with a and b the percentiles of
    1/z over all views together; 0 where the depth is 0.

    Args:
        depths: z-depth in scene units, 0 where nothing is.
    """
    inside = depths > 0
    if not bool(inside.any()):
        return torch.zeros_like(depths).expand(-1, 3, -1, -1)
    inverse = 1 / depths.clamp(min=1e-6)
    known = inverse[inside].float().sort().values
    low, high = (known[round(share * (len(known) - 1))] for share in PERCENTILES)
    near = (inverse - low) / (high - low) if high > low else torch.ones_like(inverse)
    grey = FARTHEST + (1 - FARTHEST) * near.clamp(0, 1)
    return torch.where(inside, grey, 0.0).expand(-1, 3, -1, -1)
