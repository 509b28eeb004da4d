"""The prior's frame, fields of view and target planning: round trips, naive formulas, the original's cases."""

import json
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from escher_cases import ring
from eschernet_prior.base.cameras import camera_to_world, look_at, on_sphere, rays, world_to_camera
from eschernet_prior.base.errors import UserError
from eschernet_prior.cape import RADIUS_RANGE, angles_4dof, matrices_6dof
from eschernet_prior.densify import targets
from eschernet_prior.frames import PRIOR_FOV_DEGREES, FovWindow, PriorFrame, cut_window, fov_window, object_centre
from properties import examples

SEEDS = st.integers(0, 2**31 - 1)


def cameras_around(
    seed: int, views: int = 6, centre: tuple[float, ...] = (0.0, 0.0, 0.0), spread: float = 0.3
) -> Tensor:
    """c2w that look at `centre` from 1 to 1 + spread away, every elevation up to 60 degrees, float64."""
    rng = torch.Generator().manual_seed(seed)
    at = torch.tensor(centre, dtype=torch.float64)
    u = torch.rand(3, views, generator=rng, dtype=torch.float64)
    position = on_sphere(1 + spread * u[0], 120 * u[1] - 60, 2 * math.pi * (torch.arange(views) + u[2]) / views)
    return look_at(at + position, at)


def as_tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@examples(25)
@given(SEEDS, st.floats(0.01, 100), st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_to_the_prior_and_back(seed, size, centre):
    c2w = cameras_around(seed, centre=tuple(centre))
    c2w[:, :3, 3] = as_tensor(centre) + size * (c2w[:, :3, 3] - as_tensor(centre))
    frame = PriorFrame.around(c2w)
    torch.testing.assert_close(frame.centre, as_tensor(centre), rtol=1e-6, atol=1e-6 * (1 + size))
    ours = frame.to_prior(c2w[:, :3])
    torch.testing.assert_close(frame.to_world(ours), c2w, rtol=1e-9, atol=1e-9 * (60 + size))
    radius = ours[:, :3, 3].norm(dim=-1)
    assert radius.min() >= RADIUS_RANGE[0] - 1e-6
    assert radius.max() <= RADIUS_RANGE[1] + 1e-6
    w2c = world_to_camera(ours)
    assert w2c[:, :2, 3].abs().max() < 1e-5  # they still look at the object
    assert (w2c[:, 2, 3] < 0).all()  # which is in front of them: OpenGL axes


@examples(25)
@given(SEEDS, st.floats(-3, 3), st.floats(0.2, 5))
def test_the_frame_of_the_capture_does_not_matter(seed, turn, scale):
    """A capture that is turned, moved and scaled gives the prior the same relative poses: CaPE sees no difference."""
    c2w = cameras_around(seed)
    moved = c2w.clone()
    world = look_at(as_tensor([1.0, 2.0, turn]), (0.3, 0.1, 0.0))
    moved[:, :3, 3] *= scale
    moved = world @ moved

    def relative(poses: Tensor) -> Tensor:
        query, key = matrices_6dof(world_to_camera(PriorFrame.around(poses).to_prior(poses)), torch.float64)
        return key[:, None] @ query.mT[None]

    torch.testing.assert_close(relative(moved), relative(c2w), rtol=1e-7, atol=1e-7)


@examples(25)
@given(SEEDS)
def test_inverses_are_the_inverses(seed):
    c2w = cameras_around(seed)
    w2c = world_to_camera(c2w[:, :3])
    torch.testing.assert_close(w2c, torch.linalg.inv(c2w))
    torch.testing.assert_close(camera_to_world(w2c), c2w)


@examples(25)
@given(SEEDS)
def test_the_centre_is_the_least_squares_point(seed):
    """No point nearby has smaller squared distances to the optical axes, though the cameras aim badly."""
    rng = torch.Generator().manual_seed(seed)
    c2w = cameras_around(seed)
    c2w[:, :3, 3] += 0.1 * torch.randn(len(c2w), 3, generator=rng, dtype=torch.float64)
    centre = object_centre(c2w)

    def cost(point: Tensor) -> float:
        total = 0.0
        for pose in c2w:
            away = point - pose[:3, 3]
            total += float((away - (away @ pose[:3, 2]) * pose[:3, 2]).square().sum())
        return total

    for offset in torch.randn(8, 3, generator=rng, dtype=torch.float64) * 0.05:
        assert cost(centre + offset) > cost(centre)


def test_cameras_without_a_common_point_or_at_it_are_refused():
    parallel = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    parallel[:, 0, 3] = torch.arange(3)
    with pytest.raises(ValueError, match="pass its centre"):
        PriorFrame.around(parallel)
    frame = PriorFrame.around(parallel, centre=as_tensor([1.0, 0.0, -2.0]))
    assert frame.scale == pytest.approx(math.sqrt(1.5 * 2.2 / (2 * math.sqrt(5))))
    with pytest.raises(ValueError, match="in the middle of the object"):
        PriorFrame.around(parallel, centre=as_tensor([1.0, 0.0, 0.0]))


def test_cases_of_the_original(shared):
    poses = json.loads((shared / "golden" / "poses.json").read_text())
    assert poses["intrinsics"]["fov_deg"] == pytest.approx(PRIOR_FOV_DEGREES)
    for case in poses["gso_objaverse"]:  # the files hold what the network is given
        w2c = as_tensor(case["w2c_3x4"])
        pose = torch.cat((w2c, as_tensor([[0.0, 0.0, 0.0, 1.0]])))
        torch.testing.assert_close(pose, as_tensor(case["pose_6dof_4x4"]))
        torch.testing.assert_close(camera_to_world(w2c)[:3, 3], as_tensor(case["camera_centre"]), rtol=1e-6, atol=1e-6)
    nerf = poses["nerf_synthetic"]
    frame = PriorFrame(as_tensor([0.0, 0.0, 0.0]), nerf["radius"] / nerf["max_t"])
    c2w = as_tensor([case["c2w_4x4"] for case in nerf["examples"]])
    query, key = matrices_6dof(world_to_camera(frame.to_prior(c2w)), torch.float64)
    theirs_query = as_tensor([case["pose_6dof_inverse_transposed"] for case in nerf["examples"]])
    theirs_key = as_tensor([case["pose_6dof_4x4"] for case in nerf["examples"]])
    # their world is flipped, which no relative pose shows
    torch.testing.assert_close(key[:, None] @ query.mT, theirs_key[:, None] @ theirs_query.mT)
    angles = angles_4dof(world_to_camera(c2w), torch.float64)
    torch.testing.assert_close(angles, as_tensor([case["pose_4dof"] for case in nerf["examples"]]))
    gso3d = poses["extras"]["GSO3D"]
    flipped = as_tensor([[1.0], [-1.0], [-1.0]]) * as_tensor(gso3d["target_input_w2c_opencv_3x4"])
    torch.testing.assert_close(flipped, as_tensor(gso3d["target_pose_6dof_4x4"])[:3])
    mvdream = poses["extras"]["MVDream"]
    for azimuth, pose in enumerate(mvdream["reference_pose_6dof"]):
        ours = look_at(on_sphere(as_tensor(1.5), as_tensor(0.0), as_tensor(azimuth * math.pi / 2)))
        torch.testing.assert_close(world_to_camera(ours), as_tensor(pose))
    for index in (0, 50):  # of 100 on a spiral from above to below, 0.4 radians of azimuth apart
        share = as_tensor(index / 99)
        elevation = 90 - 180 * (0.01 + 39.6 * share) / 40
        ours = look_at(on_sphere(as_tensor(1.5), elevation, -0.01 - 39.6 * share))
        theirs = as_tensor(mvdream[f"target{index}_pose_6dof"])
        torch.testing.assert_close(world_to_camera(ours), theirs, rtol=1e-5, atol=1e-5)
        theta, azimuth = angles_4dof(theirs, torch.float64)[:2].tolist()
        assert theta == pytest.approx(mvdream[f"target{index}_pose_4dof"][0])
        assert math.remainder(azimuth - mvdream[f"target{index}_pose_4dof"][1], 2 * math.pi) == pytest.approx(
            0, abs=1e-9
        )


@examples(25)
@given(
    st.floats(20, 90), st.floats(20, 90), st.integers(16, 64), st.floats(0.7, 1.4), st.floats(-5, 5), st.floats(-5, 5)
)
def test_a_window_sees_what_the_wanted_camera_sees(fov, wanted, size, aspect, dx, dy):
    """A window's corner lies in the direction of the wanted image's corner, and the field of view comes back."""
    width, height = 80, 60
    fx = 0.5 * width / math.tan(math.radians(fov) / 2)
    fy, cx, cy = fx * aspect, width / 2 + dx, height / 2 + dy
    window = fov_window(fx, fy, cx, cy, wanted)
    corner = ((window.left - cx) / fx, (window.top - cy) / fy)
    edge = math.tan(math.radians(wanted) / 2)
    assert corner == (pytest.approx(-edge), pytest.approx(-edge))
    new_fx, new_cx = fx * size / window.width, (cx - window.left) * size / window.width
    assert new_cx == pytest.approx(size / 2)
    assert math.degrees(2 * math.atan(size / (2 * new_fx))) == pytest.approx(wanted)


def test_a_cut_window_shows_the_scene_through_the_wanted_camera():
    """A smooth function of the viewing direction, photographed with 70 degrees and cut to 40 and to 95."""
    pose = look_at(as_tensor([[2.0, 1.0, 0.5]]))

    def photograph(fov: float, size: int) -> Tensor:
        directions = rays(pose, fov, size, size).directions
        return (0.5 + 0.5 * torch.sin(4 * directions)).squeeze(0).permute(2, 0, 1)

    size = 200
    focal = 0.5 * size / math.tan(math.radians(35))
    photo = photograph(70, size)
    closer = cut_window(photo, fov_window(focal, focal, 100, 100, 40), 64)
    torch.testing.assert_close(closer, photograph(40, 64), rtol=0, atol=2e-3)
    wider = cut_window(photo, fov_window(focal, focal, 100, 100, 95), 64)
    seen = photograph(95, 64)
    inside = slice(16, 48)
    torch.testing.assert_close(wider[:, inside, inside], seen[:, inside, inside], rtol=0, atol=6e-3)
    assert (wider[:, :5] == 1).all()  # white where the photo ends
    assert (wider[:, :, -5:] == 1).all()


def test_cutting_the_whole_image_changes_nothing_and_colour_is_kept():
    image = torch.rand(3, 10, 14)
    whole = cut_window(image, FovWindow(0, 0, 14, 10), 14)
    assert torch.equal(cut_window(image[:, :, :10], FovWindow(0, 0, 10, 10), 10), image[:, :, :10])
    assert whole.shape == (3, 14, 14)
    shifted = cut_window(image, FovWindow(-3, 2, 10, 10), 10, fill=0.25)
    assert torch.equal(shifted[:, :8, 3:], image[:, 2:, :7])
    assert (shifted[:, :, :3] == 0.25).all()
    assert (shifted[:, 8:] == 0.25).all()
    flat = cut_window(torch.full((1, 9, 9), 0.5), FovWindow(1.3, 2.1, 5.2, 4.9), 3)
    torch.testing.assert_close(flat, torch.full((1, 3, 3), 0.5))


@examples(12)
@given(SEEDS, st.sampled_from(get_args(targets.TargetPlan)), st.integers(1, 12), st.integers(2, 7))
def test_planned_targets_keep_away_inside_the_band(seed, plan, views, count):
    references = cameras_around(seed, views=count)
    try:
        planned = targets.plan_targets(references, views, plan, min_degrees=4)
    except UserError:
        assert plan == "between"
        return
    assert planned.shape == (views, 4, 4)
    position, taken = planned[:, :3, 3], references[:, :3, 3]
    low, high = targets.elevations(taken).min(), targets.elevations(taken).max()
    assert (targets.elevations(position) >= low - 1e-4).all(), "up to single precision"
    assert (targets.elevations(position) <= high + 1e-4).all()
    direction = torch.nn.functional.normalize(torch.cat((position, taken)), dim=-1)
    cosine = (direction @ direction.mT).fill_diagonal_(-1)[:views]
    assert cosine[:, views:].max() <= math.cos(math.radians(4)) + 1e-9
    assert cosine[:, :views].max() < 1 - 1e-7  # no two the same
    distance, given_distance = position.norm(dim=-1), taken.norm(dim=-1)
    assert distance.min() >= given_distance.min() - 1e-9
    assert distance.max() <= given_distance.max() + 1e-9
    torch.testing.assert_close(world_to_camera(planned)[:, :2, 3], torch.zeros(views, 2).double(), atol=1e-9, rtol=0)


def test_plans_use_the_room_and_refuse_when_there_is_none():
    references = camera_to_world(ring(1, 3, 0.0)[0])
    for plan in get_args(targets.TargetPlan):
        few, many = (targets.plan_targets(references, views, plan)[:, :3, 3] for views in (3, 20))

        def nearest(positions: Tensor) -> float:
            direction = torch.nn.functional.normalize(torch.cat((positions, references[:, :3, 3])), dim=-1)
            return float(torch.rad2deg(torch.arccos((direction @ direction.mT).fill_diagonal_(-1).max())))

        assert nearest(few) > nearest(many) > 1
        assert nearest(few) > 25
    with pytest.raises(UserError, match="finds 0 of 1 views"):
        targets.plan_targets(references[:1], 1, "between")
    with pytest.raises(UserError, match="choose fewer views or another plan"):
        targets.plan_targets(references, 10, "orbit", min_degrees=100)
