"""The style distance of a round: weighted as its retraining, with the least that a blend can reach."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.rounds.losses import StyleView, block_distances
from style_nerf2nerf.rounds.report.measures import least_style_distance, style_distance

SIZE = 16


class Pixels(nn.Module):
    """Stands in for VGG19: the colours themselves are the features."""

    layers = ("conv1_1",)
    mean = torch.zeros(3, 1, 1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"conv1_1": pictures}


@pytest.fixture(scope="module")
def network() -> StyleLoss:
    return StyleLoss(VGG19Features("random", layers=("conv1_1", "conv2_1")))


def picture(seed: int) -> Tensor:
    return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def view(*seeds: int, mask: Tensor | None = None) -> StyleView:
    return StyleView(tuple(picture(seed) for seed in seeds), picture(0), torch.ones(1, SIZE, SIZE), mask)


def single(network: StyleLoss, shown: Tensor, restyled: Tensor) -> float:
    return block_distances(network, shown, network.encode(restyled[None]))["mean"]


def test_of_a_single_style_it_is_the_mean_over_the_views_and_may_be_0(network):
    views = [view(1), view(2)]
    shown = [picture(5), picture(6)]
    mean = np.mean([single(network, each, one.restyled[0]) for each, one in zip(shown, views)])
    assert style_distance(network, shown, views, (1.0,)) == mean
    assert least_style_distance(network, views, (1.0,)) == 0
    assert style_distance(network, [one.restyled[0] for one in views], views, (1.0,)) == 0


def test_styles_count_by_their_share(network):
    both, shown = view(1, 2), picture(5) / 2
    one, other = (single(network, shown, restyled) for restyled in both.restyled)
    assert style_distance(network, [shown], [both], (0.75, 0.25)) == pytest.approx(0.75 * one + 0.25 * other, rel=1e-6)
    assert style_distance(network, [shown], [both], (3, 1)) == pytest.approx(0.75 * one + 0.25 * other, rel=1e-6)
    assert style_distance(network, [shown], [both], (0.0, 0.4)) == other
    assert least_style_distance(network, [both], (0.0, 0.4)) == 0
    apart = single(network, both.restyled[0], both.restyled[1])
    assert least_style_distance(network, [both], (3, 1)) == pytest.approx(0.75 * 0.25 * apart, rel=1e-6)


@pytest.mark.parametrize("weights", [(0.75, 0.25), (0.2, 0.3, 0.5)])
def test_no_picture_is_below_the_least_one(network, weights):
    bright = view(1, 2, 3)
    views = [StyleView(tuple(p * (k + 1) / 3 for k, p in enumerate(bright.restyled)), bright.base, bright.base_depth)]
    least = least_style_distance(network, views, weights)
    assert least > 0
    mixed = torch.stack([weight * restyled for weight, restyled in zip(weights, views[0].restyled)]).sum(0)
    for shown in (*views[0].restyled, mixed, bright.base, torch.full_like(bright.base, 0.3)):
        assert style_distance(network, [shown], views, weights) >= least
    shown = mixed.clone().requires_grad_()
    optimiser = torch.optim.Adam([shown], 0.02)
    targets = [(weight, network.encode(restyled[None])) for weight, restyled in zip(weights, views[0].restyled)]
    for _ in range(30):
        optimiser.zero_grad()
        network.blended(network.features(shown[None]), targets).backward()
        optimiser.step()
    reached = style_distance(network, [shown.detach()], views, weights)
    assert least <= reached < style_distance(network, [mixed], views, weights)


def test_where_styles_differ_by_a_colour_the_least_is_reached():
    network, shift = StyleLoss(cast(Any, Pixels())), torch.tensor([0.3, -0.1, 0.2])[:, None, None]
    views = [StyleView((picture(1), picture(1) + shift), picture(0), torch.ones(1, SIZE, SIZE))]
    least = least_style_distance(network, views, (0.75, 0.25))
    assert least > 0
    assert style_distance(network, [picture(1) + 0.25 * shift], views, (0.75, 0.25)) == pytest.approx(least, rel=1e-3)


def test_what_is_outside_a_mask_counts_nowhere(network):
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, :8] = 1
    inside = [view(1, 2, mask=mask)]
    black = [StyleView(tuple(p * mask for p in inside[0].restyled), picture(0), torch.ones(1, SIZE, SIZE), mask)]
    pixels = StyleLoss(cast(Any, Pixels()))
    assert least_style_distance(pixels, inside, (1, 1)) == least_style_distance(pixels, black, (1, 1)) > 0
    empty = [view(1, 2, mask=torch.zeros(1, SIZE, SIZE))]
    assert least_style_distance(network, empty, (1, 1)) == style_distance(network, [picture(5)], empty, (1, 1)) == 0
