"""The sliced Wasserstein distance: against POT, a loop over NumPy rows, and its own symmetries."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from properties import examples
from style_nerf2nerf import swd
from style_nerf2nerf.swd import random_directions, sliced_wasserstein, sliced_wasserstein_mixture

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def features(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def naive(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """One row at a time: NumPy sorts, `np.interp` reads the quantiles, constant beyond the ends."""
    squares = []
    for image_a, image_b in zip(a.double().numpy(), b.double().numpy()):
        for direction in directions.double().numpy():
            x, y = np.sort(direction @ image_a), np.sort(direction @ image_b)
            at, known = (np.arange(len(x)) + 0.5) / len(x), (np.arange(len(y)) + 0.5) / len(y)
            squares.append(np.mean((x - np.interp(at, known, y)) ** 2))
    return float(np.mean(squares))


@examples(25)
@given(batch=st.integers(1, 3), channels=sizes, p=sizes, q=sizes, num=sizes, seed=seeds)
def test_equals_the_naive_loop_for_any_shapes(batch, channels, p, q, num, seed):
    a, b = features(seed, (batch, channels, p), (batch, channels, q))
    directions = random_directions(num, channels, torch.Generator().manual_seed(seed))
    assert sliced_wasserstein(a, b, directions).item() == pytest.approx(naive(a, b, directions), rel=1e-9)
    single = sliced_wasserstein(a.float(), b.float(), directions).item()
    assert single == pytest.approx(naive(a, b, directions), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_pot(dtype):
    a, b = features(0, (1, 16, 400), (1, 16, 400), dtype=dtype)
    directions = random_directions(32, 16, torch.Generator().manual_seed(1)).to(dtype)
    # POT takes samples as rows and directions as columns, and returns the root.
    theirs = ot.sliced_wasserstein_distance(a[0].T.numpy(), b[0].T.numpy(), projections=directions.T.numpy()) ** 2
    assert sliced_wasserstein(a, b, directions).item() == pytest.approx(float(theirs), abs=1e-5)


@examples(15)
@given(channels=sizes, p=st.integers(2, 40), seed=seeds)
def test_is_a_symmetric_distance_of_unordered_pixels(channels, p, seed):
    a, b = features(seed, (1, channels, p), (1, channels, p))
    directions = random_directions(5, channels, torch.Generator().manual_seed(seed))
    shuffled = a[:, :, torch.randperm(p, generator=torch.Generator().manual_seed(seed))]
    assert sliced_wasserstein(a, shuffled, directions).item() == pytest.approx(0, abs=1e-25)
    forth, back = sliced_wasserstein(a, b, directions).item(), sliced_wasserstein(b, a, directions).item()
    assert forth == pytest.approx(back, rel=1e-12)
    assert forth > 0
    # Moving every pixel by c moves every row by v·c, whatever the order.
    shift = features(seed + 1, (1, channels, 1))[0]
    expected = (directions.double() @ shift[0]).square().mean().item()
    assert sliced_wasserstein(a + shift, a, directions).item() == pytest.approx(expected, rel=1e-9)


def test_other_pixel_counts_of_one_distribution_are_near():
    a, b, other = features(3, (1, 4, 3000), (1, 4, 1111), (1, 4, 1111))
    directions = random_directions(16, 4, torch.Generator().manual_seed(0))
    same = sliced_wasserstein(a, b, directions).item()
    assert same < 0.02 * sliced_wasserstein(a, 2 * other, directions).item()
    assert same == pytest.approx(sliced_wasserstein(b, a, directions).item(), rel=0.1)
    doubled = b.repeat_interleave(2, dim=2)
    assert sliced_wasserstein(b, doubled, directions).item() < 1e-3


@pytest.mark.parametrize(("p", "q"), [(5, 5), (6, 4), (4, 6), (3, 1), (1, 3)])
def test_gradients_by_both_sides(p, q):
    a, b = features(p * 31 + q, (2, 2, p), (2, 2, q))
    directions = random_directions(3, 2, torch.Generator().manual_seed(0)).double()
    a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sliced_wasserstein(a, b, directions), (a, b))
    assert torch.autograd.gradcheck(lambda a: sliced_wasserstein(a, b.detach(), directions), (a,))
    assert torch.autograd.gradcheck(lambda b: sliced_wasserstein(a.detach(), b, directions), (b,))


def test_gradient_equals_that_through_the_sort():
    a, b = features(5, (2, 6, 50), (2, 6, 50), dtype=torch.float32)
    directions = random_directions(8, 6, torch.Generator().manual_seed(0))
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (3 * sliced_wasserstein(ours, b, directions)).backward()
    rows = [torch.einsum("dc,bcp->bdp", directions, x).sort(dim=2).values for x in (theirs, b)]
    (3 * torch.nn.functional.mse_loss(*rows)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0]
)


@examples(40)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=floats))
def test_order_ascends_but_for_what_lies_within_one_level(values):
    rows = torch.from_numpy(values)
    order = swd._order(rows)
    level = (rows.amax(1) - rows.amin(1)).double() / 65535
    falls = -rows.gather(1, order).double().diff(dim=1).amin(1) if rows.shape[1] > 1 else torch.zeros(len(rows))
    assert bool((falls <= 1.01 * level).all())
    assert torch.equal(order.sort(dim=1).values, torch.arange(rows.shape[1]).expand_as(order))


def test_sorting_by_levels_costs_no_accuracy():
    """Also where one value far off makes the levels coarse."""
    a, b = features(1, (1, 6, 4000), (1, 6, 4000), dtype=torch.float32)
    a[:, :, 0] *= 30
    directions = random_directions(8, 6, torch.Generator().manual_seed(0))
    assert sliced_wasserstein(a, b, directions).item() == pytest.approx(naive(a, b, directions), rel=1e-5)


def naive_windows(a: Tensor, b: Tensor, directions: Tensor, along_side: int) -> float:
    """Window by window of images whose sides can be divided."""
    tiles = [
        (x, y)
        for ra, rb in zip(a.chunk(along_side, 2), b.chunk(along_side, 2))
        for x, y in zip(ra.chunk(along_side, 3), rb.chunk(along_side, 3))
    ]
    return float(np.mean([naive(x.flatten(2), y.flatten(2), directions) for x, y in tiles]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_equal_the_distances_of_the_parts(dtype):
    """Whole, halves and quarters at once, on images of two sizes, with the gradient of the parts."""
    shapes = (2, 3, 8, 12), (2, 3, 4, 8)
    a, b = (x.to(dtype) for x in features(0, *shapes))
    directions = random_directions(5, 3, torch.Generator().manual_seed(0)).to(dtype)
    windows = [
        swd.Windows(1 / 3, swd.grid_windows(8, 12, count), (swd.grid_windows(4, 8, count),)) for count in (1, 2, 4)
    ]
    a.requires_grad_()
    value = swd.sliced_wasserstein_mixture(a.flatten(2), [(1.0, b.flatten(2))], directions, windows)
    expected = np.mean([naive_windows(a.detach(), b, directions, count) for count in (1, 2, 4)])
    assert value.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, a)
    parts = torch.zeros_like(a)
    for count in (1, 2, 4):
        for rows_a, rows_b in zip(range(count), range(count)):
            for column in range(count):
                here = np.s_[
                    :,
                    :,
                    rows_a * 8 // count : (rows_a + 1) * 8 // count,
                    column * 12 // count : (column + 1) * 12 // count,
                ]
                there = np.s_[
                    :,
                    :,
                    rows_b * 4 // count : (rows_b + 1) * 4 // count,
                    column * 8 // count : (column + 1) * 8 // count,
                ]
                part = a.detach()[here].requires_grad_()
                loss = sliced_wasserstein(part.flatten(2), b[there].flatten(2), directions) / (3 * count**2)
                parts[here] += torch.autograd.grad(loss, part)[0]
    torch.testing.assert_close(gradient, parts)


def test_gradients_by_both_sides_of_windows_that_overlap():
    a, b = features(7, (1, 2, 15), (1, 2, 15))
    directions = random_directions(3, 2, torch.Generator().manual_seed(0)).double()
    cells = swd.grid_windows(5, 3, 2)
    windows = [swd.Windows(0.5, None, (None,)), swd.Windows(0.5, cells, (cells,))]
    a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: swd.sliced_wasserstein_mixture(a, [(1.0, b)], directions, windows), (a, b)
    )


@pytest.mark.parametrize(("height", "width", "count"), [(8, 8, 4), (7, 10, 4), (3, 2, 4), (5, 5, 1)])
def test_every_pixel_is_in_a_window_of_the_grid(height, width, count):
    cells = swd.grid_windows(height, width, count)
    assert len(cells) == min(count, height) * min(count, width)
    assert set(cells.flatten().tolist()) == set(range(height * width))
    rows, columns = cells // width, cells % width
    for across in (rows, columns):
        assert bool((across.amax(1) - across.amin(1) < -(-max(height, width) // count) + 1).all())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_and_threads_change_nothing(monkeypatch, threads):
    a, b = features(9, (2, 4, 64), (2, 4, 48), dtype=torch.float32)
    directions = random_directions(7, 4, torch.Generator().manual_seed(0))
    a.requires_grad_()
    whole = sliced_wasserstein(a, b, directions)
    (expected,) = torch.autograd.grad(whole, a)
    monkeypatch.setitem(swd._BLOCK_ELEMENTS, "cpu", 200)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        blocked = sliced_wasserstein(a, b, directions)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, a)[0], expected)


def test_value_is_the_same_with_and_without_gradient():
    a, b = features(2, (1, 4, 30), (1, 4, 20), dtype=torch.float32)
    directions = random_directions(6, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sliced_wasserstein(a.requires_grad_(), b, directions).detach(),
                               sliced_wasserstein(a.detach(), b, directions))  # fmt: skip


def test_narrow_features_are_sorted_in_float32_also_under_autocast():
    a, b = features(4, (1, 8, 100), (1, 8, 100), dtype=torch.bfloat16)
    directions = random_directions(8, 8, torch.Generator().manual_seed(0))
    expected = naive(a.float(), b.float(), directions)
    a.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sliced_wasserstein(a, b, directions)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_channels_last_features_get_a_channels_last_gradient():
    image = torch.randn(1, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    directions = random_directions(3, 4)
    target = torch.randn(1, 4, 30)
    (gradient,) = torch.autograd.grad(sliced_wasserstein(image.flatten(2), target, directions), image)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    plain = image.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(sliced_wasserstein(plain.flatten(2), target, directions), plain)
    torch.testing.assert_close(gradient, expected)


def test_mixture_is_the_weighted_sum_and_exact_at_its_ends():
    a, b, c = features(6, (1, 5, 40), (1, 5, 40), (1, 5, 25), dtype=torch.float32)
    directions = random_directions(9, 5, torch.Generator().manual_seed(0))
    a.requires_grad_()
    mixed = sliced_wasserstein_mixture(a, [(0.25, b), (0.75, c)], directions)
    expected = 0.25 * sliced_wasserstein(a, b, directions) + 0.75 * sliced_wasserstein(a, c, directions)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(torch.autograd.grad(mixed, a), torch.autograd.grad(expected, a))
    end, single = sliced_wasserstein_mixture(a, [(1, b), (0, c)], directions), sliced_wasserstein(a, b, directions)
    assert torch.equal(end, single)
    assert torch.equal(torch.autograd.grad(end, a)[0], torch.autograd.grad(single, a)[0])


def test_descends_to_the_target_distribution():
    a, b = features(8, (1, 3, 60), (1, 3, 60))
    generator = torch.Generator().manual_seed(0)
    a.requires_grad_()
    for _ in range(200):
        loss = sliced_wasserstein(a, b, random_directions(3, 3, generator))
        (gradient,) = torch.autograd.grad(loss, a)
        a.data -= 30 * gradient  # 60 pixels share the mean: half of it is the whole way along a direction
    final = sliced_wasserstein(a.detach(), b, random_directions(50, 3, generator)).item()
    assert final < 1e-3


def test_directions_are_unit_and_repeatable():
    directions = random_directions(20, 7, torch.Generator().manual_seed(3))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20))
    assert torch.equal(directions, random_directions(20, 7, torch.Generator().manual_seed(3)))
    many = random_directions(4000, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.T @ many / 4000, torch.eye(3) / 3, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("a", "b", "directions", "message"),
    [
        ((1, 3, 5), (1, 4, 5), (2, 3), "equal batch and channels"),
        ((2, 3, 5), (1, 3, 5), (2, 3), "equal batch and channels"),
        ((3, 5), (3, 5), (2, 3), "equal batch and channels"),
        ((1, 3, 5), (1, 3, 5), (2, 4), "Directions must be"),
        ((1, 3, 0), (1, 3, 5), (2, 3), "not be empty"),
    ],
)
def test_refuses_shapes_that_do_not_fit(a, b, directions, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(torch.zeros(a), torch.zeros(b), torch.zeros(directions))


def test_refuses_weights_and_gradients_that_make_no_sense():
    a, directions = torch.zeros(1, 3, 4), torch.zeros(2, 3)
    for weights in [(), (0.0,), (-1.0, 2.0)]:
        with pytest.raises(ValueError, match="weights"):
            sliced_wasserstein_mixture(a, [(w, a) for w in weights], directions)
    with pytest.raises(ValueError, match="no gradient with respect to its directions"):
        sliced_wasserstein(a, a, directions.requires_grad_())
