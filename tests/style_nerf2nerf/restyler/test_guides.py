"""Patterns that belong to surfaces: where they are, and what the ControlNet sees of them."""

import pytest
import torch

from level_ground import LENSES, POSES, SIZE, ground
from style_nerf2nerf.embedded.models import EMBEDDED, STAND_IN, build_controlnet
from style_nerf2nerf.reprojection import match, sample
from style_nerf2nerf.restyler.depths import clean_depths
from style_nerf2nerf.restyler.guides import (
    CHANNELS,
    DEPTH_CHANNELS,
    NOWHERE,
    SIXTEENTH,
    Lattice,
    guide_pictures,
    sees_guides,
)
from style_nerf2nerf.restyler.inputs import Inputs
from style_nerf2nerf.restyler.position import PERIODS, waves


def test_control_pictures_hold_depth_and_then_guides():
    inputs = Inputs.from_tensors(
        torch.rand(2, 3, SIZE, SIZE), ground(POSES), reference=torch.rand(3, 8, 8), cameras=LENSES
    )
    controls = inputs.controls((32, 32), with_reference=True, with_guides=True)
    assert controls.shape == (3, DEPTH_CHANNELS + CHANNELS, 32, 32)
    assert 0 <= controls.min() <= controls.max() <= 1
    assert torch.equal(controls[:, :DEPTH_CHANNELS], inputs.controls((32, 32), with_reference=True))
    assert torch.equal(controls[-1, DEPTH_CHANNELS:, 5, 7], torch.tensor(NOWHERE)), "a reference has no place"
    assert not torch.equal(controls[0, DEPTH_CHANNELS:], controls[1, DEPTH_CHANNELS:])


def test_a_controlnet_tells_by_its_channels_whether_it_sees_guides():
    assert sees_guides(build_controlnet(EMBEDDED))
    assert not sees_guides(build_controlnet(STAND_IN))


def test_views_agree_about_the_guides_of_a_place():
    depths = ground(POSES)
    guides = guide_pictures(depths, depths > 0, LENSES)
    pixels, visible = match(LENSES, depths, 0, 1)
    apart = (sample(guides[1], pixels, "bilinear") - guides[0])[:, visible].abs().mean(1)
    elsewhere = (guides[1].flip(-1) - guides[0])[:, visible].abs().mean(1)
    changing = elsewhere > 0.05
    assert changing.sum() >= 10
    assert (apart[changing] < 0.5 * elsewhere[changing]).all()


def test_views_without_cameras_have_worlds_of_their_own():
    depths = ground(POSES)
    alone = guide_pictures(depths, depths > 0, None)
    torch.testing.assert_close(alone[0], alone[1], atol=1e-2, rtol=0)
    assert guide_pictures(depths, depths > 0, LENSES).diff(dim=0).abs().mean() > 0.02


@pytest.mark.parametrize("width", [0.15, 0.3])
def test_grid_lines_are_a_period_apart_and_have_their_width(width: float):
    points = torch.zeros(1, 3, 4, 512)
    points[0, 0] = torch.linspace(0, 8 * PERIODS[SIXTEENTH], 513)[:-1]
    points[0, 1] = PERIODS[SIXTEENTH] / 2  # between two lines along x
    up = torch.tensor([0.0, 0.0, 1.0]).expand(1, 4, 512, 3)
    lines = Lattice(waves(points).movedim(1, -1), up).grid(SIXTEENTH, width)[0, 0, :, 0] > 0.5
    starts = (lines[1:] & ~lines[:-1]).nonzero()[:, 0]
    assert len(starts) == 8
    assert (starts.diff() - 64).abs().max() <= 1
    assert lines.float().mean() == pytest.approx(width, abs=0.08)


def test_a_hazy_sky_is_nothing_and_a_smooth_hill_stays():
    generator = torch.Generator().manual_seed(0)
    depths = torch.full((1, 1, 128, 128), 2.0)
    depths[..., :40, :] = 7.0 + torch.linspace(0, 2, 128)
    depths[..., :3, :] = 60.0
    _, inside = clean_depths(depths)
    assert inside[..., 8:, :].all()
    blotches = torch.rand(10, 16, generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)
    depths[..., :40, :64] *= 1 + 0.5 * blotches
    _, inside = clean_depths(depths)
    assert inside[..., :36, :50].float().mean() < 0.1
    assert inside[..., 44:, :].all()
    assert inside[..., 8:36, 78:].all()


def test_haze_may_fill_most_of_the_picture():
    generator = torch.Generator().manual_seed(0)
    depths = 6 * (
        1 + 0.5 * torch.rand(1, 1, 32, 32, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    depths[..., 48:96, 40:88] = 2.0
    _, inside = clean_depths(depths)
    assert inside[..., 52:92, 44:84].all()
    assert inside[..., :40, :].float().mean() < 0.1
