"""nerfstudio's torch hash grid, the same numbers several times faster.

Where tiny-cuda-nn is not, a field spends most of its time in `HashEncoding.pytorch_fwd`: eight hashes, eight gathers,
seven interpolations, each a tensor of its own, and a scattered gradient for every gather. Here the hash of a corner is
put together from the products of its three axes, gather, weighting and sum are one `embedding_bag`, and the tables'
gradient is one `index_add_`. Parameters, their names and the results are those of nerfstudio's module.

Notation: a point has 8 corners on each of L levels; `a` is the part of the point that belongs to the upper corner.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRIMES = (1, 2654435761, 805459861)
"""Of the spatial hash (Müller et al. 2022, eq. 4)."""


def encode(
    grid: HashEncoding, points: Float[Tensor, "*batch 3"], by_points: bool = True
) -> Float[Tensor, "*batch features"]:
    """What `grid.pytorch_fwd(points)` returns.

    Args:
        grid: a torch hash grid, whose tables have a power of two of entries.
        points: In [0, 1].
        by_points: Whether the gradient by the points is wanted. nerfstudio's fields always ask for it, and it takes a
            sixth of a training step.

    Returns:
        All levels' features side by side, trilinearly interpolated. Differentiable with respect to the tables, and to
        the points through the weights, as the original.
    """
    points = points if by_points else points.detach()
    scaled = points.reshape(-1, 1, 3) * grid.scalings.to(points.device).view(-1, 1)
    lower = scaled.detach().floor()
    a = scaled - lower
    corners = torch.stack([lower, scaled.detach().ceil()]).long()
    hashed = [corners[..., axis] * prime for axis, prime in enumerate(PRIMES)]
    weight = [(1 - a[..., axis], a[..., axis]) for axis in range(3)]
    ids, weights = [], []
    for x, y, z in product((0, 1), repeat=3):
        ids.append(hashed[0][x] ^ hashed[1][y] ^ hashed[2][z])
        weights.append(weight[0][x] * weight[1][y] * weight[2][z])
    mask = grid.hash_table_size - 1
    index = torch.stack(ids, dim=-1).bitwise_and_(mask).add_(grid.hash_offset.to(points.device)[:, None])
    features = _WeightedSum.apply(grid.hash_table, index.reshape(-1, 8), torch.stack(weights, dim=-1).reshape(-1, 8))
    return features.reshape(*points.shape[:-1], -1)


class _WeightedSum(torch.autograd.Function):
    """Rows of a table, weighted and summed; its own gradient because embedding_bag's sorts the indices first."""

    @staticmethod
    def forward(
        ctx: Any, table: Float[Tensor, "rows features"], index: Int[Tensor, "bags 8"], weights: Float[Tensor, "bags 8"]
    ) -> Float[Tensor, "bags features"]:
        ctx.save_for_backward(table, index, weights)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "bags features"]) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, index, weights = ctx.saved_tensors
        by_table = by_weights = None
        if ctx.needs_input_grad[0]:
            shares = weights[..., None] * grad[:, None]
            by_table = torch.zeros_like(table).index_add_(0, index.flatten(), shares.flatten(0, 1))
        if ctx.needs_input_grad[2]:
            by_weights = (table[index] @ grad[..., None]).squeeze(-1)
        return by_table, None, by_weights


def use_fast_grids(module: nn.Module, by_points: bool = True) -> None:
    """Let every torch hash grid below `module` compute with `encode`.

    Args:
        module: a field.
        by_points: Whether gradients by the points are wanted: for normals, and for cameras that are optimised.
    """
    for grid in module.modules():
        if isinstance(grid, HashEncoding) and grid.tcnn_encoding is None:
            grid.pytorch_fwd = functools.partial(encode, grid, by_points=by_points)  # pyright: ignore[reportAttributeAccessIssue]
