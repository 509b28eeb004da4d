"""Even subsets: indices out of an order, points of a cube."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def evenly_spaced(count: int, available: int, *, closed: bool = False) -> list[int]:
    """Indices of an even subset, ascending; all indices where there are no more than `count`.

    Args:
        count: Size of the subset.
        available: Size of the whole.
        closed: Whether the whole is a loop whose end meets its beginning; else first and last belong to the subset.
    """
    count = min(count, available)
    last = available if closed else available - 1
    return np.linspace(0, max(last, 0), count, endpoint=not closed).round().astype(int).tolist()


def cell_centres(cells: int, extent: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "cells 3"]:
    """Centres of the cells of a cube around the origin, x slowest.

    Args:
        cells: Number along each axis.
        extent: Half the cube's side.
        dtype: Of the result.
    """
    line = (torch.arange(cells, dtype=dtype) + 0.5) * (2 * extent / cells) - extent
    return torch.cartesian_prod(line, line, line)
