"""Frames, rays and viewpoints: what a camera matrix means, seen from pixels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eschernet_prior.base.cameras import focal_length, look_at, orbit, rays, spherical_views
from properties import examples

numbers = st.floats(-3, 3)


@examples(30)
@given(position=st.tuples(numbers, numbers, numbers), target=st.tuples(numbers, numbers, numbers))
def test_cameras_are_upright_rotations_that_look_at_their_target(position: tuple, target: tuple):
    if math.dist(position, target) < 1e-2:
        return
    pose = look_at(torch.tensor(position, dtype=torch.float64), target)
    rotation = pose[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    forward = torch.tensor(target, dtype=torch.float64) - pose[:3, 3]
    assert torch.allclose(-rotation[:, 2], forward / forward.norm(), atol=1e-6)
    assert rotation[2, 0].abs() < 1e-6  # the horizon is level
    assert rotation[2, 1] > -1e-6  # up is up
    assert torch.equal(pose[3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))


def test_a_camera_that_looks_straight_down_is_still_a_camera():
    pose = look_at(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    assert torch.allclose(pose[:, :3, :3] @ pose[:, :3, :3].mT, torch.eye(3).expand(2, 3, 3), atol=1e-6)
    with pytest.raises(ValueError, match="cannot look at its own position"):
        look_at(torch.zeros(3))


def test_rays_pass_through_their_pixels():
    pose = look_at(torch.tensor([[2.0, 0.0, 0.0]]))
    bundle = rays(pose, 49.13, 6, 8)
    focal = focal_length(49.13, 8)
    assert focal == pytest.approx(280 / 256 * 8, rel=1e-3)
    for row, column in ((0, 0), (2, 5), (5, 7)):
        # Seen from +x towards the origin: right is +y, up is +z.
        expected = torch.tensor([-1.0, (column + 0.5 - 4) / focal, (3 - row - 0.5) / focal])
        assert torch.allclose(bundle.directions[0, row, column], expected / expected.norm(), atol=1e-6)
        assert bundle.z_factors[0, row, column, 0].item() == pytest.approx(1 / expected.norm().item(), rel=1e-5)
    assert torch.equal(bundle.origins, pose[:, None, None, :3, 3].expand(1, 6, 8, 3))


def test_orbits_are_even_and_close():
    poses = orbit(8, 1.7, (10.0, 40.0), 0.3)
    centres = poses[:, :3, 3]
    assert torch.allclose(centres.norm(dim=1), torch.tensor(1.7))
    azimuth = torch.atan2(centres[:, 1], centres[:, 0])
    steps = (azimuth.roll(-1) - azimuth).remainder(2 * math.pi)
    assert torch.allclose(steps, torch.tensor(math.pi / 4), atol=1e-5)
    elevation = torch.rad2deg(torch.asin(centres[:, 2] / 1.7))
    assert elevation[0].item() == pytest.approx(10, abs=1e-3)
    assert elevation[4].item() == pytest.approx(40, abs=1e-3)


@examples(15)
@given(count=st.integers(1, 60), seed=st.integers(0, 1000))
def test_spherical_views_keep_to_their_band_and_apart(count: int, seed: int):
    poses = spherical_views(count, (1.5, 2.2), (-10.0, 70.0), torch.Generator().manual_seed(seed))
    assert torch.equal(poses, spherical_views(count, (1.5, 2.2), (-10.0, 70.0), torch.Generator().manual_seed(seed)))
    radius = poses[:, :3, 3].norm(dim=1)
    assert ((radius >= 1.5 - 1e-5) & (radius <= 2.2 + 1e-5)).all()
    directions = poses[:, :3, 3] / radius[:, None]
    assert ((directions[:, 2] >= math.sin(math.radians(-10.001))) & (directions[:, 2] <= 0.9398)).all()
    if count > 1:
        apart = torch.cdist(directions, directions) + 10 * torch.eye(count)
        assert apart.min() > 0.25 / math.sqrt(count)


@pytest.mark.parametrize("fov", [0.0, 180.0, -5.0])
def test_impossible_fields_of_view_are_refused(fov: float):
    with pytest.raises(ValueError, match="field of view"):
        focal_length(fov, 64)
