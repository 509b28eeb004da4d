"""Choosing an even subset of things in an order."""

from __future__ import annotations

import numpy as np


def evenly_spaced(count: int, available: int, *, closed: bool = False) -> list[int]:
    """Indices of an even subset, ascending; all indices where there are no more than `count`.

    Args:
        count: size of the subset.
        available: size of the whole.
        closed: whether the whole is a loop whose end meets its beginning; else first and last belong to the subset.
    """
    count = min(count, available)
    last = available if closed else available - 1
    return np.linspace(0, max(last, 0), count, endpoint=not closed).round().astype(int).tolist()
