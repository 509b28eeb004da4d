"""The sliced Wasserstein distance between two sets of feature vectors, and its gradient from ranks alone.

Vocabulary and axes, fixed here:
    a, b        features (batch, channels, pixels); `a` is optimised, `b` is the target. Inside a window, pixels are an
                unordered set.
    directions  (directions, channels), used as given; `random_directions` draws unit vectors.
    row         the projections of one image on one direction, one number per pixel.
    order       for a row, the pixel that holds each rank: `row[order]` ascends.
    window      a set of pixels of one image that is compared only with a set of pixels of the other image.

For one direction v and one window the distance compares sorted projections (Heitz et al. 2021, eq. 3;
Style-NeRF2NeRF, section 4.3), and the distance is the mean over directions and windows:

    SW(a, b) = mean over v, i of (sort(v·a)_i − sort(v·b)_i)²

Sorting only matches the pixels. For a fixed matching, the derivative by a projected value x that is matched with t is
2 (x − t) / N. The gradient therefore depends only on the matched values: it is computed together with the distance, a
few rows at a time, and projected back to the features by one matrix product. Sorted copies and indices are released
with their rows. Windows of several sizes share one projection and one back projection.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK_ELEMENTS = {"cpu": 2**18}
"""Number of projected values sorted at once: on a CPU, those that fit into the cache together with their order."""
_BLOCK_ELEMENTS_ELSEWHERE = 2**25
_LEVELS = 2**16 - 1
"""Number of levels between a row's least and greatest value by which a CPU sorts."""


@dataclass(frozen=True)
class Windows:
    """Windows of one size: which pixels of `a` are compared with which pixels of each target."""

    weight: float
    """Share of these windows in the distance."""
    own: Int[Tensor, "windows cells"] | None
    """The pixels of each window in `a`; None: one window with all pixels."""
    theirs: tuple[Int[Tensor, "windows _"] | None, ...]
    """The same for each target."""


def grid_windows(height: int, width: int, along_side: int) -> Int[Tensor, "windows cells"]:
    """Pixels of a grid of equal windows, as indices into the flattened image.

    If a side cannot be divided evenly, neighbouring windows overlap by a pixel, so that every pixel is in a window.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        along_side: Windows per side, at most one per pixel.
    """
    starts, sizes = [], []
    for side in (height, width):
        count = min(along_side, side)
        size = -(-side // count)
        starts.append(torch.linspace(0, side - size, count, dtype=torch.float64).round().long())
        sizes.append(size)
    rows = starts[0][:, None] + torch.arange(sizes[0])
    columns = starts[1][:, None] + torch.arange(sizes[1])
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def random_directions(
    num: int, channels: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Float[Tensor, "num channels"]:
    """Draw directions uniformly on the unit sphere (normalised Gaussians), in float32.

    A generator draws on its own device, so that a seed gives the same directions on any device of the features.
    """
    drawn_on = generator.device if generator is not None else device
    gaussian = torch.randn(num, channels, generator=generator, device=drawn_on)
    return torch.nn.functional.normalize(gaussian, dim=1).to(device)


def sliced_wasserstein(
    a: Float[Tensor, "batch channels pixels_a"],
    b: Float[Tensor, "batch channels pixels_b"],
    directions: Float[Tensor, "directions channels"],
) -> Float[Tensor, ""]:
    """Compute the mean squared difference of sorted projections, over batch, directions and the pixels of `a`.

    If the pixel counts P and Q differ, the i-th smallest value of `a` is at the quantile (i + ½) / P and is compared
    with `b` at that quantile: the sorted projections of `b`, of which the j-th is at (j + ½) / Q, are interpolated
    linearly and extended by their end values. Only `b` is resampled, so that every pixel of `a`, which is optimised,
    gets a gradient. The distance is symmetric for P = Q, otherwise up to this interpolation.

    Sorting is in float32 for float32 and narrower features (in float64 for float64), also under autocast.
    Differentiable once with respect to `a` and `b`.

    Raises:
        ValueError: If shapes do not fit, there are no pixels, or the directions require a gradient, which is not
            supported.
    """
    return sliced_wasserstein_mixture(a, [(1.0, b)], directions)


def sliced_wasserstein_mixture(
    a: Float[Tensor, "batch channels pixels_a"],
    targets: Sequence[tuple[float, Float[Tensor, "batch channels _"]]],
    directions: Float[Tensor, "directions channels"],
    windows: Sequence[Windows] | None = None,
) -> Float[Tensor, ""]:
    """Compute the weighted sum of the distances of `a` to several targets, minimal at their Wasserstein barycentre.

    `a` is projected and sorted once for all targets. A target of weight 0 is skipped, so that weights 1 and 0 give
    exactly the single distance.

    Args:
        a: Features to compare.
        targets: Pairs (weight >= 0, features); the weights are not normalised. Pixel counts may differ (see
            `sliced_wasserstein`).
        directions: Directions of the projections, used as given.
        windows: Windows of each size, with one entry in `theirs` for each target; their weights are not normalised.
            None: one window with all pixels.

    Raises:
        ValueError: As in `sliced_wasserstein`, or if a weight is negative or all are 0.
    """
    weights = [float(weight) for weight, _ in targets]
    if not weights or min(weights) < 0 or max(weights) <= 0:
        raise ValueError(f"Style weights must be at least 0 and one of them positive, got {weights}.")
    present = [index for index, weight in enumerate(weights) if weight > 0]
    for index in present:
        _check_shapes(a, targets[index][1], directions)
    sizes = [Windows(1.0, None, (None,) * len(targets))] if windows is None else windows
    sizes = [Windows(each.weight, each.own, tuple(each.theirs[index] for index in present)) for each in sizes]
    return _SortedMatch.apply(  # type: ignore[no-any-return]
        directions, [weights[index] for index in present], sizes, a, *(targets[index][1] for index in present)
    )


def _check_shapes(a: Tensor, b: Tensor, directions: Tensor) -> None:
    if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != b.shape[:2]:
        raise ValueError(
            "Features must have the shape (batch, channels, pixels) with equal batch and channels, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if directions.ndim != 2 or directions.shape[1] != a.shape[1]:
        raise ValueError(f"Directions must be (directions, {a.shape[1]}), got {tuple(directions.shape)}.")
    if 0 in a.shape or 0 in b.shape or 0 in directions.shape:
        raise ValueError("Features and directions must not be empty.")
    if directions.requires_grad:
        raise ValueError("The sliced Wasserstein distance has no gradient with respect to its directions.")


class _SortedMatch(torch.autograd.Function):
    """Computes value and gradients together; only the gradients of the features are stored for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, directions: Tensor, weights: list[float], sizes: list[Windows], a: Tensor, *targets: Tensor
    ) -> Tensor:
        needs_a, *needs_targets = ctx.needs_input_grad[3:]
        dtype = torch.promote_types(a.dtype, torch.float32)
        with torch.autocast(a.device.type, enabled=False):
            directions = directions.to(dtype)
            rows_a = _project(a, directions)
            rows_targets = [_project(target, directions) for target in targets]
            if needs_a or any(needs_targets):
                value = _match(rows_a, rows_targets, weights, sizes, needs_targets)
            else:
                value = _distance(rows_a, rows_targets, weights, sizes)
            # From here on the rows contain the gradients of the projections; each is released after back projection.
            grads: list[Tensor | None] = []
            rows = [rows_a, *rows_targets]
            del rows_a, rows_targets
            for features, needed in zip((a, *targets), (needs_a, *needs_targets)):
                gradient = rows.pop(0)
                grads.append(_project_back(gradient, directions, features) if needed else None)
                del gradient
            ctx.save_for_backward(*grads)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = (None if grad is None else grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors)
        return (None, None, None, *grads)


def _project(features: Tensor, directions: Tensor) -> Float[Tensor, "rows pixels"]:
    """Compute all rows, with index `image * directions + direction`, by one product per image in any memory layout."""
    images = features.to(directions.dtype)
    if len(images) == 1:
        return directions @ images[0]
    return torch.cat([directions @ image for image in images])


def _project_back(rows: Tensor, directions: Tensor, like: Tensor) -> Tensor:
    """Multiply by the transposed directions, in the memory layout of the features (e.g. channels-last)."""
    per_image = rows.unflatten(0, (like.shape[0], directions.shape[0]))
    if like.stride(1) == 1:
        return torch.matmul(per_image.mT, directions).mT.to(like.dtype)
    return torch.matmul(directions.mT, per_image).to(like.dtype)


def _match(
    rows_a: Tensor,
    rows_targets: list[Tensor],
    weights: list[float],
    sizes: Sequence[Windows],
    needs_targets: Sequence[bool],
) -> Tensor:
    """Compute the value; overwrite rows of `a`, and of targets that need it, with the gradients of the projections."""

    def match(span: slice) -> Tensor:
        value = rows_a.new_zeros((), dtype=torch.float64)
        block = rows_a[span]
        gradient = torch.zeros_like(block)
        pulls = [torch.zeros_like(rows[span]) if needed else None for rows, needed in zip(rows_targets, needs_targets)]
        for size in sizes:
            own = _window_rows(block, size.own)
            cells = own.shape[1]
            order = _order(own)
            total = gradient if size.own is None else torch.zeros_like(own)
            for index, (weight, rows) in enumerate(zip(weights, rows_targets)):
                scale = weight * size.weight / (len(rows_a) * (own.numel() // len(block)))
                target, pull = _window_rows(rows[span], size.theirs[index]), pulls[index]
                target_order = _order(target)
                partner = torch.empty_like(own).scatter_(1, order, _at_quantiles(target.gather(1, target_order), cells))
                difference = torch.sub(own, partner, out=partner)
                value += scale * torch.linalg.vector_norm(difference).square()
                total.add_(difference, alpha=2 * scale)
                if pull is not None:
                    back = _at_quantiles_transposed(difference.gather(1, order).mul_(-2 * scale), target.shape[1])
                    _add_to_windows(pull, size.theirs[index], torch.empty_like(target).scatter_(1, target_order, back))
            if size.own is not None:
                _add_to_windows(gradient, size.own, total)
        block.copy_(gradient)
        for rows, pull in zip(rows_targets, pulls):
            if pull is not None:
                rows[span].copy_(pull)
        return value

    return torch.stack(_for_each_block(match, rows_a)).sum().to(rows_a.dtype)


def _distance(rows_a: Tensor, rows_targets: list[Tensor], weights: list[float], sizes: Sequence[Windows]) -> Tensor:
    """Compute the value without gradients, which needs only sorted values."""

    def distance(span: slice) -> Tensor:
        value = rows_a.new_zeros((), dtype=torch.float64)
        block = rows_a[span]
        for size in sizes:
            ascending = _ascending(_window_rows(block, size.own))
            for index, (weight, rows) in enumerate(zip(weights, rows_targets)):
                scale = weight * size.weight / (len(rows_a) * (ascending.numel() // len(block)))
                target = _ascending(_window_rows(rows[span], size.theirs[index]))
                value += scale * (ascending - _at_quantiles(target, ascending.shape[1])).square().sum()
        return value

    return torch.stack(_for_each_block(distance, rows_a)).sum().to(rows_a.dtype)


def _window_rows(
    rows: Float[Tensor, "rows pixels"], pixels: Int[Tensor, "windows cells"] | None
) -> Float[Tensor, "rows_windows cells"]:
    """Extract the windows of each row as separate rows."""
    if pixels is None:
        return rows
    return rows.index_select(1, pixels.flatten()).reshape(-1, pixels.shape[1])


def _add_to_windows(
    rows: Float[Tensor, "rows pixels"],
    pixels: Int[Tensor, "windows cells"] | None,
    added: Float[Tensor, "rows_windows cells"],
) -> None:
    """Add values of windows to the pixels of their rows."""
    if pixels is None:
        rows.add_(added)
    else:
        rows.scatter_add_(1, pixels.flatten().expand(len(rows), -1), added.reshape(len(rows), -1))


def _quantile_neighbours(
    num: int, pixels: int, like: Tensor
) -> tuple[Int[Tensor, " num"], Int[Tensor, " num"], Tensor]:
    """Locate the quantiles of `num` ranks among `pixels` ranks: rank below, rank above, and the fraction between."""
    rank = (torch.arange(num, device=like.device, dtype=torch.float64) + 0.5) * (pixels / num) - 0.5
    rank = rank.clamp(0, pixels - 1)
    below = rank.long()
    return below, (below + 1).clamp(max=pixels - 1), (rank - below).to(like.dtype)


def _at_quantiles(ascending: Float[Tensor, "rows pixels"], num: int) -> Float[Tensor, "rows num"]:
    pixels = ascending.shape[1]
    if pixels == num:
        return ascending
    below, above, towards = _quantile_neighbours(num, pixels, ascending)
    return torch.lerp(ascending[:, below], ascending[:, above], towards)


def _at_quantiles_transposed(gradient: Float[Tensor, "rows num"], pixels: int) -> Float[Tensor, "rows pixels"]:
    num = gradient.shape[1]
    if pixels == num:
        return gradient
    below, above, towards = _quantile_neighbours(num, pixels, gradient)
    spread = gradient.new_zeros(gradient.shape[0], pixels)
    return spread.index_add_(1, below, gradient * (1 - towards)).index_add_(1, above, gradient * towards)


def _blocks(rows: Tensor) -> list[slice]:
    elements = _BLOCK_ELEMENTS.get(rows.device.type, _BLOCK_ELEMENTS_ELSEWHERE)
    step = max(1, elements // rows.shape[1])
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _for_each_block(work: Callable[[slice], Tensor], rows: Tensor) -> list[Tensor]:
    """Apply `work` to each block of rows, on a CPU in parallel threads.

    NumPy does not sort in parallel, so as many blocks as torch has threads are processed at the same time. Meanwhile
    torch is limited to one thread, because its waiting workers spin and would occupy the cores.
    """
    blocks, threads = _blocks(rows), torch.get_num_threads()
    if rows.device.type != "cpu" or min(threads, len(blocks)) == 1:
        return [work(block) for block in blocks]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, blocks))
    finally:
        torch.set_num_threads(threads)


def _order(rows: Float[Tensor, "rows pixels"]) -> Int[Tensor, "rows pixels"]:
    """Sort the pixels of each row by value, ascending; on a CPU, equal values are ordered by pixel.

    On a CPU float32 values are sorted by their level among 65,536 between the row's least and greatest value, because
    NumPy's stable sort of 16-bit integers takes time proportional to the pixels and does not depend on the processor's
    vector instructions. Values in the same level, which differ by at most 1/65,535 of the range, keep the order of
    their pixels.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return rows.argsort(dim=1)
    values = rows.numpy()
    least = values.min(axis=1, keepdims=True)
    levels = values - least
    spread = levels.max(axis=1, keepdims=True)
    levels /= np.where(spread > 0, spread, 1)
    levels *= _LEVELS
    return torch.from_numpy(np.argsort(levels.astype(np.uint16), axis=1, kind="stable"))


def _ascending(rows: Float[Tensor, "rows pixels"]) -> Float[Tensor, "rows pixels"]:
    """Sort each row, on a CPU with the resolution of `_order`."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return rows.sort(dim=1).values
    return rows.gather(1, _order(rows))
