"""Evenly spaced subsets of a sequence, and grid points of a cube."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def evenly_spaced(count: int, available: int, *, closed: bool = False) -> list[int]:
    """Choose evenly spaced indices, ascending; all indices if there are at most `count`.

    Args:
        count: Number of indices to choose.
        available: Length of the sequence.
        closed: Whether the sequence is a closed loop; otherwise the first and the last index are chosen.
    """
    count = min(count, available)
    last = available if closed else available - 1
    return np.linspace(0, max(last, 0), count, endpoint=not closed).round().astype(int).tolist()


def cell_centres(cells: int, extent: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "cells 3"]:
    """Centres of the cells of a cube around the origin, x slowest.

    Args:
        cells: Number of cells along each axis.
        extent: Half the side of the cube.
        dtype: Type of the result.
    """
    line = (torch.arange(cells, dtype=dtype) + 0.5) * (2 * extent / cells) - extent
    return torch.cartesian_prod(line, line, line)
