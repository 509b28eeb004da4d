"""A box or a sphere over the scene becomes masks of the views."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from viser.transforms import SO3

from eschernet_prior.base.images import read_mask
from style_nerf2nerf.rendering import RenderedView
from style_nerf2nerf.rounds.mask_shapes import MaskShape, write_masks
from style_nerf2nerf.rounds.schedule import RoundSchedule
from style_nerf2nerf.rounds.storage import RoundsConfig, RoundSettings

STRAIGHT = (1.0, 0.0, 0.0, 0.0)


def ahead(distance: float = 4.0) -> Cameras:
    """A camera that looks at the origin along −z, 32 × 32 pixels, half a unit a pixel's width at the origin's depth."""
    pose = torch.eye(4)[None, :3]
    pose[0, 2, 3] = distance
    return Cameras(pose, fx=32.0, fy=32.0, cx=16.0, cy=16.0, width=32, height=32)


def wall(depth: float = 4.0) -> RenderedView:
    return RenderedView(torch.zeros(3, 32, 32), torch.full((1, 32, 32), depth))


def test_a_box_turns_and_a_sphere_does_not_care():
    corner = torch.tensor([[0.9, 0.9, 0.0], [1.2, 0.0, 0.0]])
    eighth = tuple(SO3.from_z_radians(np.pi / 4).wxyz.tolist())
    assert MaskShape("box", (0.0, 0.0, 0.0), STRAIGHT, 1.0).contains(corner).tolist() == [True, False]
    assert MaskShape("box", (0.0, 0.0, 0.0), eighth, 1.0).contains(corner).tolist() == [False, True]
    for turned in (STRAIGHT, eighth):
        assert MaskShape("sphere", (0.2, 0.0, 0.0), turned, 1.05).contains(corner).tolist() == [False, True]


def test_a_view_sees_the_part_of_its_surface_that_is_inside():
    mask = MaskShape("box", (0.0, 0.0, 0.0), STRAIGHT, 1.0).mask(wall().depth, ahead())[0]
    seen = mask.nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([8, 8], [23, 23]), "two units of four, in the middle"
    assert int(mask.sum()) == 16 * 16
    behind = MaskShape("box", (0.0, 0.0, -3.0), STRAIGHT, 1.0)
    assert not behind.mask(wall().depth, ahead()).any(), "hidden behind the wall"
    assert not MaskShape("sphere", (0.0, 0.0, 0.0), STRAIGHT, 9.0).mask(wall(0.0).depth, ahead()).any(), "nothing there"


def test_masks_are_written_all_or_none_and_only_once(tmp_path: Path):
    folder, cameras = tmp_path / "masks", [ahead(), ahead(8.0)]
    shape = MaskShape("sphere", (0.0, 0.0, 0.0), STRAIGHT, 1.0)
    nowhere = MaskShape("sphere", (90.0, 0.0, 0.0), STRAIGHT, 1.0)
    assert not write_masks(folder, nowhere, ["a", "b"], [wall(), wall()], cameras)
    assert not folder.exists()
    assert write_masks(folder, shape, ["a", "b"], [wall(), wall()], cameras)
    assert read_mask(folder / "a.png").any()
    assert not read_mask(folder / "b.png").any(), "its wall is elsewhere"
    before = (folder / "a.png").stat().st_mtime_ns
    assert write_masks(folder, shape, ["a", "b"], [], [])
    assert (folder / "a.png").stat().st_mtime_ns == before
    larger = MaskShape("sphere", (0.0, 0.0, 0.0), STRAIGHT, 2.0)
    assert write_masks(folder, larger, ["a", "b"], [wall(), wall()], cameras)
    assert int(read_mask(folder / "a.png").sum()) > 500


@pytest.mark.parametrize("shape", [None, MaskShape("box", (0.1, 0.2, 0.3), STRAIGHT, 0.5)])
def test_a_round_remembers_its_shape(tmp_path: Path, shape):
    config = RoundsConfig(reconstruct_steps=10, rounds=1, retrain_steps=4)
    schedule, settings = RoundSchedule(tmp_path, config), RoundSettings("gold", "", 5.0, None, mask=shape)
    schedule.begin(10, settings)
    schedule.choose(settings)
    again = RoundSchedule(tmp_path, config)
    assert again.begun == schedule.begun
    assert again.begun[0].settings.mask == shape
    assert again.next_settings == settings
