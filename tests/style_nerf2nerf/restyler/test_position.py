"""Positions as waves: the same place has the same waves in every view, at every scale of the scene."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from level_ground import FOV, LENSES, POSES, SIZE, ground
from properties import examples
from style_nerf2nerf.reprojection import ViewCameras, match, sample
from style_nerf2nerf.restyler.position import PERIODS, surface_normals, surface_points, waves


def test_a_place_has_the_same_waves_in_every_view():
    depths = ground(POSES)
    seen = waves(surface_points(depths, depths > 0, LENSES))
    pixels, visible = match(LENSES, depths, 0, 1)
    assert visible.float().mean() > 0.3
    both = sample(seen[1], pixels, "bilinear")[:6, visible], seen[0, :6, visible]
    assert float((both[0] - both[1]).abs().mean()) < 0.06
    level = surface_points(depths, depths > 0, LENSES)[:, 2][(depths > 0)[:, 0]]
    torch.testing.assert_close(level, level[:1].expand_as(level), atol=1e-4, rtol=0)


@examples(20)
@given(scale=st.floats(0.01, 100.0))
def test_the_scene_s_unit_does_not_matter(scale):
    depths, larger = ground(POSES), POSES.clone()
    larger[:, :3, 3] *= scale
    lenses = ViewCameras.from_fov(larger, FOV, SIZE, SIZE)
    points = surface_points(depths * scale, depths > 0, lenses)
    torch.testing.assert_close(points, surface_points(depths, depths > 0, LENSES), atol=1e-3, rtol=1e-3)


def test_one_height_at_the_median_depth_is_the_unit():
    depths = torch.full((1, 1, SIZE, SIZE), 3.0)
    points = surface_points(depths, depths > 0, ViewCameras.from_fov(torch.eye(4)[None], FOV, SIZE, SIZE))
    height = points[0, 1, 0] - points[0, 1, -1]
    torch.testing.assert_close(height, torch.full_like(height, (SIZE - 1) / SIZE))


@pytest.mark.parametrize("pixels_per_period", [1.0, 2.0, 4.0, 16.0])
def test_waves_fade_where_pixels_are_too_far_apart(pixels_per_period):
    step = PERIODS[-1] / pixels_per_period
    points = torch.zeros(1, 3, 1, 64)
    points[0, 0, 0] = step * torch.arange(64)
    finest = waves(points)[0, -6:].view(2, 3, 64)[:, 0]
    expected = math.exp(-0.5 * (2 * math.pi / pixels_per_period * 0.5) ** 2)
    torch.testing.assert_close(finest.norm(dim=0), torch.full((64,), expected), atol=1e-4, rtol=1e-4)


def test_supersampled_pixels_fade_like_those_that_they_become():
    points = torch.zeros(1, 3, 1, 64)
    points[0, 0, 0] = 0.01 * torch.arange(64)
    coarse = waves(points[..., ::2])[0, -6:].view(2, 3, 32)[:, 0].norm(dim=0)
    fine = waves(points, pixels=2)[0, -6:].view(2, 3, 64)[:, 0].norm(dim=0)
    torch.testing.assert_close(fine[::2], coarse)


def test_nothing_is_a_sphere_of_directions():
    nothing = torch.zeros(2, 1, SIZE, SIZE)
    points = surface_points(nothing, nothing > 0, LENSES)
    radius = points.norm(dim=1)
    torch.testing.assert_close(radius, radius[:1, :1, :1].expand_as(radius))
    moved = POSES.clone()
    moved[:, :3, 3] += 1
    torch.testing.assert_close(
        surface_points(nothing, nothing > 0, ViewCameras.from_fov(moved, FOV, SIZE, SIZE)), points
    )


def test_the_normals_of_level_ground_point_up():
    depths = ground(POSES)
    normals = surface_normals(surface_points(depths, depths > 0, LENSES))
    inner = -torch.nn.functional.max_pool2d(-(depths > 0).float(), 3, 1, 1) > 0
    up = normals[:, 2:][inner]
    torch.testing.assert_close(up, torch.ones_like(up), atol=1e-3, rtol=0)
