"""How far generated views are trusted: each sign on views whose truth is known."""

import pytest
import torch

from eschernet_prior.base.cameras import look_at, on_sphere, spherical_views
from eschernet_prior.densify import trust
from eschernet_prior.frames import PRIOR_FOV_DEGREES
from eschernet_prior.procedural.scenes import random_scene, render


@pytest.fixture(scope="module")
def toy():
    """Eight views of a toy: pictures, silhouettes and c2w poses."""
    poses = spherical_views(8, (1.7, 1.9), (0.0, 50.0), torch.Generator().manual_seed(3))
    shown = render(random_scene(11), poses, 48, 48, PRIOR_FOV_DEGREES)
    return shown.colour.permute(0, 3, 1, 2), shown.alpha.permute(0, 3, 1, 2), poses


def around(*degrees: float) -> torch.Tensor:
    azimuth = torch.deg2rad(torch.tensor(degrees))
    places = on_sphere(torch.full_like(azimuth, 1.8), torch.full_like(azimuth, 20.0), azimuth)
    return look_at(places)


def test_samples_that_agree_are_trusted_and_others_the_less_the_more_they_differ():
    same = torch.rand(1, 2, 3, 12, 12).expand(3, -1, -1, -1, -1)
    assert torch.equal(trust.agreement(same), torch.ones(2, 1, 12, 12))
    apart = torch.stack([same[0], same[0]])
    apart[1, 0, :, :6] += 0.05
    apart[1, 1, :, :6] += 0.3
    weights = trust.agreement(apart)
    assert torch.equal(weights[:, :, 9:], torch.ones(2, 1, 3, 12)), "far from where they differ"
    # Two samples 0.05 apart have a variance of 0.05² / 2.
    assert weights[0, 0, 2, 5] == pytest.approx(2.718281828 ** (-(0.05**2) / 2 / trust.DEVIATION**2), rel=1e-4)
    assert weights[1, 0, 2, 5] < 0.02 < weights[0, 0, 2, 5]


def test_one_sample_says_nothing_about_itself():
    assert torch.equal(trust.agreement(torch.rand(1, 2, 3, 8, 8)), torch.ones(2, 1, 8, 8))


def test_nearness_halves_every_twenty_degrees_from_the_nearest_reference():
    references = look_at(torch.tensor([[1.8, 0, 0], [0, 1.5, 0]]))
    targets = look_at(torch.tensor([[2.0, 0, 0], [-0.9, -1.5588, 0], [-1.5, 1.5, 0]]))
    assert trust.angles_to_nearest(references, targets).tolist() == pytest.approx([0.0, 120.0, 45.0], abs=0.01)
    assert trust.nearness(references, targets).tolist() == pytest.approx([1.0, 0.5**6, 0.5**2.25], abs=1e-3)


def test_true_views_do_not_contradict_the_outlines(toy):
    pictures, silhouettes, poses = toy
    chosen = [0, 3, 6]
    found = trust.disagreement(silhouettes[chosen], poses[chosen], pictures, poses)
    assert float(found.max()) < 0.01


@pytest.mark.parametrize("change", ["larger", "smaller", "blank"])
def test_wrong_views_contradict_the_outlines(toy, change):
    pictures, silhouettes, poses = toy
    chosen = [0, 3, 6]
    wrong = {
        "larger": torch.nn.functional.interpolate(pictures[..., 12:36, 12:36], size=48),
        "smaller": 1 - torch.nn.functional.pad(torch.nn.functional.interpolate(1 - pictures, size=24), (12,) * 4),
        "blank": torch.ones_like(pictures),
    }[change]
    right = trust.disagreement(silhouettes[chosen], poses[chosen], pictures, poses)
    found = trust.disagreement(silhouettes[chosen], poses[chosen], wrong, poses)
    assert bool((found >= right).all())
    assert int((found > trust.MAX_DISAGREEMENT).sum()) >= 3, found
    if change == "blank":
        assert bool((found == 1).all())


def test_disagreement_does_not_depend_on_the_world_frame(toy):
    pictures, silhouettes, poses = toy
    turned = torch.eye(4, dtype=torch.float64)
    turned[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn maps the grid of cells onto itself
    wrong = pictures.roll(1, 0)
    first = trust.disagreement(silhouettes[:3], poses[:3], wrong, poses)
    second = trust.disagreement(silhouettes[:3], turned @ poses[:3].double(), wrong, turned @ poses.double())
    assert torch.allclose(first, second, atol=0.02)
    assert float(first.max()) > 0
