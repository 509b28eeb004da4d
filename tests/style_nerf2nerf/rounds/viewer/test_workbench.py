"""How the viewer is arranged: time for renders, the first view, and fields between the photos' and the restyled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from safetensors.torch import load_file

from style_nerf2nerf.rounds.storage import RECONSTRUCTION, original_field
from style_nerf2nerf.rounds.viewer.framing import first_viewpoint
from style_nerf2nerf.rounds.viewer.interpolation import interpolated_state, keep_amount
from style_nerf2nerf.rounds.viewer.render_budget import LEAST_SIDE, LONGEST_WAIT, RESTING, RenderBudget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# Time for renders.


def watched(budget: RenderBudget, clock: Clock, seconds: float, speed: float, moving: bool) -> float:
    """Seconds that rendering takes of a training while somebody looks all the time."""
    spent, end = 0.0, clock.now + seconds
    while clock.now < end:
        if moving:
            clock.now += budget.wait()
        elif not budget.may_refresh():
            clock.now += 0.05
            continue
        height, width = budget.size(1.28, sharp=not moving, longest=1024)
        took = height * width / speed
        clock.now += took
        spent += took
        budget.record(height * width, took)
    return spent


@pytest.mark.parametrize("speed", [4e3, 1e5, 5e6])
def test_a_resting_camera_costs_a_training_less_than_a_tenth(speed):
    clock = Clock()
    budget = RenderBudget(lambda: True, 5e3, clock)
    watched(budget, clock, 20.0, speed, moving=False)
    assert watched(budget, clock, 100.0, speed, moving=False) < 10.0


def test_a_camera_that_moves_all_the_time_is_slowed_down_and_a_rest_is_sharp_at_once():
    clock = Clock()
    budget = RenderBudget(lambda: True, 1e5, clock)
    assert watched(budget, clock, 100.0, 1e5, moving=True) < 12.0
    assert budget.wait() <= LONGEST_WAIT
    height, width = budget.size(1.28, sharp=True, longest=1024)
    assert height * width / 1e5 == pytest.approx(RESTING[0], rel=0.05), "less than a second, however much was spent"


def test_pictures_have_the_windows_aspect_and_are_no_larger_than_asked_for():
    clock = Clock()
    budget = RenderBudget(lambda: False, 1e7, clock)
    assert budget.size(2.0, sharp=True, longest=200) == (100, 200)
    assert budget.size(0.5, sharp=True, longest=200) == (200, 100)
    slow = RenderBudget(lambda: True, 10.0, clock)
    assert slow.size(2.0, sharp=False, longest=200) == (LEAST_SIDE, 2 * LEAST_SIDE), "never a fog of a few pixels"
    assert not slow.wait()


def test_the_first_measured_render_replaces_the_guess():
    clock = Clock()
    budget = RenderBudget(lambda: False, 10.0, clock)
    budget.record(10_000, 0.1)
    height, width = budget.size(1.0, sharp=True, longest=1000)
    assert height * width == pytest.approx(1.5e5, rel=0.02)


# The first view.


def ring(count: int, radius: float, centre=(0.5, -0.2, 0.3), size=(64, 48)) -> Cameras:
    """Cameras on a ring that all look at its centre from above, z up."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        back = np.array([np.cos(angle), np.sin(angle), 0.5])
        back /= np.linalg.norm(back)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        poses.append(np.column_stack([right, np.cross(back, right), back, np.array(centre) + radius * back]))
    poses = torch.from_numpy(np.stack(poses)).float()
    return Cameras(poses, fx=60.0, fy=60.0, cx=size[0] / 2, cy=size[1] / 2, width=size[0], height=size[1])


def test_the_first_view_is_a_cameras_own_and_turns_around_what_all_look_at():
    cameras = ring(8, 2.0)
    first = first_viewpoint(cameras, aspect=64 / 48)
    assert np.abs(cameras.camera_to_worlds[:, :, 3].numpy() - first.position).max(1).min() < 1e-5
    assert np.allclose(first.look_at, (0.5, -0.2, 0.3), atol=1e-4)
    assert np.allclose(first.up, (0, 0, 1), atol=1e-4)
    assert first.fov == pytest.approx(2 * np.arctan(24 / 60))


def test_a_narrow_window_shows_the_whole_picture_in_a_wider_angle():
    wide, narrow = (first_viewpoint(ring(8, 2.0), aspect) for aspect in (3.0, 0.5))
    assert wide.fov == pytest.approx(2 * np.arctan(24 / 60))
    assert narrow.fov == pytest.approx(2 * np.arctan(32 / 60 / 0.5))


def test_cameras_side_by_side_look_ahead():
    poses = torch.eye(4)[:3].repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([-1.0, 0.0, 1.0])
    first = first_viewpoint(Cameras(poses, fx=60.0, fy=60.0, cx=32.0, cy=24.0, width=64, height=48), 1.0)
    ahead = first.look_at - first.position
    assert np.allclose(ahead / np.linalg.norm(ahead), (0, 0, -1))
    assert np.allclose(first.up, (0, 1, 0))


# How much of the style.


def test_a_kept_amount_is_a_run_that_nerfstudio_reads(run: Path):
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, step = eval_setup(run / "config.yml", test_mode="inference")
    base = original_field(pipeline, run)
    path = keep_amount(run, base, pipeline.model, 0.25, step)
    try:
        _, kept, _, kept_step = eval_setup(path / "config.yml", test_mode="inference")
    finally:
        shutil.rmtree(run / "kept")
    assert kept_step == step
    before, after = load_file(run / RECONSTRUCTION), pipeline.model.field_state()
    between = kept.model.field_state()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, value in before.items():
        wanted = value + 0.25 * (after[name] - value)
        assert torch.allclose(between[name].to(wanted), wanted, atol=1e-6), name
    for amount, end in ((0.0, before), (1.0, after)):
        state = interpolated_state(base, pipeline.model, amount)
        assert all(torch.equal(state[name], value) for name, value in end.items())
