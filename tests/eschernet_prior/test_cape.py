"""CaPE: the original's numbers, naive loops, and the invariances that define it."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from escher_cases import assert_reproduced
from eschernet_prior.cape import angles_4dof, apply_cape_4dof, apply_cape_6dof, matrices_6dof
from properties import examples

HEADS, SEEDS = 8, st.integers(0, 2**31 - 1)


def per_token(poses: Tensor, tokens: int) -> Tensor:
    """(scenes, views, ...) -> (scenes, tokens, ...), view-major."""
    return poses.repeat_interleave(tokens // poses.shape[1], dim=1)


def logits(query: Tensor, key: Tensor, heads: int = HEADS) -> Tensor:
    """(scenes, tokens, channels) twice -> (scenes, heads, queries, keys), scaled."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.mT / math.sqrt(query.shape[-1])


def random_rigid(count: int, generator: torch.Generator, distance: float = 2.0) -> Tensor:
    """Random rigid transforms, float64."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    rotation = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1))[:, None]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    transform = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    transform[:, :3, :3] = rotation
    transform[:, :3, 3] = distance * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return transform


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, dict[str, Tensor]]:
    return {dof: load_file(shared / "golden" / f"cape_{dof}.safetensors") for dof in ("6dof", "4dof")}


@pytest.mark.parametrize("case", ["a", "b"])
def test_6dof_reproduces_the_original(golden, case):
    g = {k.removeprefix(f"{case}."): v for k, v in golden["6dof"].items() if k.startswith(f"{case}.")}
    (query_out, key_out), (query_in, key_in) = matrices_6dof(g["pose_out"]), matrices_6dof(g["pose_in"])
    assert_reproduced(query_out, g["pose_out_invT"])
    assert_reproduced(query_in, g["pose_in_invT"])
    query = apply_cape_6dof(g["q"], per_token(query_out, g["q"].shape[1]))
    k_self = apply_cape_6dof(g["k_self"], per_token(key_out, g["k_self"].shape[1]))
    k_cross = apply_cape_6dof(g["k_cross"], per_token(key_in, g["k_cross"].shape[1]))
    check_case(g, query, k_self, k_cross)


@pytest.mark.parametrize("case", ["a", "b"])
def test_4dof_reproduces_the_original(golden, case):
    g = {k.removeprefix(f"{case}."): v for k, v in golden["4dof"].items() if k.startswith(f"{case}.")}
    query, k_self = (apply_cape_4dof(g[n], per_token(g["pose_out"], g[n].shape[1])) for n in ("q", "k_self"))
    check_case(g, query, k_self, apply_cape_4dof(g["k_cross"], per_token(g["pose_in"], g["k_cross"].shape[1])))


def check_case(g: dict[str, Tensor], query: Tensor, k_self: Tensor, k_cross: Tensor) -> None:
    for ours, name in ((query, "q_embed"), (k_self, "k_self_embed"), (k_cross, "k_cross_embed")):
        assert_reproduced(ours, g[name])
    assert_reproduced(logits(query, k_self), g["logits_self"])
    assert_reproduced(logits(query, k_cross), g["logits_cross"])
    assert (logits(query, k_self) - g["nope_logits_self"]).abs().max() > 1  # poses matter


def test_encodings_of_the_originals_cameras(shared):
    poses = json.loads((shared / "golden" / "poses.json").read_text())
    for case in poses["gso_objaverse"]:
        w2c = torch.tensor(case["pose_6dof_4x4"], dtype=torch.float64)
        query, key = matrices_6dof(w2c, torch.float64)
        torch.testing.assert_close(query, torch.tensor(case["pose_6dof_inverse_transposed"], dtype=torch.float64))
        assert torch.equal(key, w2c)
        expected = torch.tensor(case["pose_4dof"], dtype=torch.float64)
        torch.testing.assert_close(angles_4dof(w2c, torch.float64), expected)
    for case in poses["get_pose_4dof_examples"]:  # all radii, the clipped ones too
        expected = torch.tensor(case["pose_4dof"], dtype=torch.float64)
        w2c = torch.tensor(case["w2c_4x4"], dtype=torch.float64)
        torch.testing.assert_close(angles_4dof(w2c, torch.float64), expected)


@examples(20)
@given(seed=SEEDS, groups=st.integers(1, 4), tokens=st.integers(1, 3))
def test_6dof_is_the_naive_loop(seed, groups, tokens):
    rng = torch.Generator().manual_seed(seed)
    features, matrices = torch.randn(2, tokens, 4 * groups, generator=rng), torch.randn(2, tokens, 4, 4, generator=rng)
    expected = torch.empty_like(features)
    for b in range(2):
        for t in range(tokens):
            for g in range(groups):
                for column in range(4):
                    expected[b, t, 4 * g + column] = sum(
                        features[b, t, 4 * g + row] * matrices[b, t, row, column] for row in range(4)
                    )
    torch.testing.assert_close(apply_cape_6dof(features, matrices), expected)
    shared_matrix = matrices[:, :1]
    torch.testing.assert_close(
        apply_cape_6dof(features, shared_matrix), apply_cape_6dof(features, shared_matrix.expand(-1, tokens, -1, -1))
    )


@examples(20)
@given(seed=SEEDS, pairs=st.integers(1, 3), tokens=st.integers(1, 3))
def test_4dof_is_the_naive_loop(seed, pairs, tokens):
    rng, channels = torch.Generator().manual_seed(seed), 8 * pairs
    features, angles = torch.randn(2, tokens, channels, generator=rng), 4 * torch.randn(2, tokens, 4, generator=rng)
    expected = torch.empty_like(features)
    for b in range(2):
        for t in range(tokens):
            for c in range(0, channels, 2):
                turn = complex(math.cos(a := float(angles[b, t, 4 * c // channels])), math.sin(a))
                rotated = complex(float(features[b, t, c]), float(features[b, t, c + 1])) * turn
                expected[b, t, c], expected[b, t, c + 1] = rotated.real, rotated.imag
    torch.testing.assert_close(apply_cape_4dof(features, angles), expected)
    torch.testing.assert_close(
        apply_cape_4dof(features, angles[:, :1]), apply_cape_4dof(features, angles[:, :1].expand(-1, tokens, -1))
    )


def logits_6dof(query: Tensor, key: Tensor, query_poses: Tensor, key_poses: Tensor, heads: int = HEADS) -> Tensor:
    encoded_query = apply_cape_6dof(query, matrices_6dof(query_poses, query.dtype)[0])
    return logits(encoded_query, apply_cape_6dof(key, matrices_6dof(key_poses, key.dtype)[1]), heads)


def logits_4dof(query: Tensor, key: Tensor, query_angles: Tensor, key_angles: Tensor) -> Tensor:
    return logits(apply_cape_4dof(query, query_angles), apply_cape_4dof(key, key_angles))


@examples(30)
@given(seed=SEEDS, scale=st.floats(0.3, 3.0))
def test_6dof_logits_ignore_any_shared_world_transform(seed, scale):
    rng = torch.Generator().manual_seed(seed)
    query, key = torch.randn(1, 5, 64, generator=rng).double(), torch.randn(1, 7, 64, generator=rng).double()
    query_poses, key_poses, world = random_rigid(5, rng)[None], random_rigid(7, rng)[None], random_rigid(1, rng)
    world[..., :3, :] *= scale  # any invertible transform of the world, not only a rigid one
    before = logits_6dof(query, key, query_poses, key_poses)
    after = logits_6dof(query, key, query_poses @ world, key_poses @ world)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    moved_alone = logits_6dof(query, key, query_poses @ world, key_poses)
    assert (moved_alone - before).abs().max() > 1e-3  # the relative pose does count


@examples(30)
@given(seed=SEEDS, shift=st.lists(st.floats(-6, 6), min_size=4, max_size=4))
def test_4dof_logits_ignore_any_shared_shift(seed, shift):
    rng = torch.Generator().manual_seed(seed)
    query, key = torch.randn(1, 5, 64, generator=rng).double(), torch.randn(1, 7, 64, generator=rng).double()
    query_angles, key_angles = (torch.rand(1, n, 4, generator=rng).double() * math.pi for n in (5, 7))
    moved = torch.tensor(shift, dtype=torch.float64)
    before = logits_4dof(query, key, query_angles, key_angles)
    torch.testing.assert_close(
        logits_4dof(query, key, query_angles + moved, key_angles + moved), before, rtol=1e-9, atol=1e-9
    )
    assert (logits_4dof(query, key, query_angles + 0.5, key_angles) - before).abs().max() > 1e-3


def test_4dof_is_blind_to_a_camera_roll_and_moves_under_a_roll_of_the_world():
    """What 4DoF lacks: the roll of one camera leaves no trace, and a shared roll of the world changes its logits."""
    rng = torch.Generator().manual_seed(5)
    query, key = torch.randn(1, 3, 64, generator=rng).double(), torch.randn(1, 3, 64, generator=rng).double()
    targets, references = random_rigid(3, rng)[None], random_rigid(3, rng)[None]
    cos, sin = math.cos(0.7), math.sin(0.7)
    roll = torch.tensor([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    around_x = roll[[2, 0, 1, 3]][:, [2, 0, 1, 3]]

    def both(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return logits_6dof(query, key, q, k), logits_4dof(query, key, angles_4dof(q, q.dtype), angles_4dof(k, k.dtype))

    before_6dof, before_4dof = both(targets, references)
    camera_6dof, camera_4dof = both(roll @ targets, references)
    torch.testing.assert_close(camera_4dof, before_4dof)
    assert (camera_6dof - before_6dof).abs().max() > 0.1
    world_6dof, world_4dof = both(targets @ around_x, references @ around_x)
    torch.testing.assert_close(world_6dof, before_6dof)
    assert (world_4dof - before_4dof).abs().max() > 0.1


def test_per_head_use_equals_the_full_width_for_6dof_only():
    rng = torch.Generator().manual_seed(6)
    features = torch.randn(1, 4, 64, generator=rng)
    matrices, angles = torch.randn(1, 4, 4, 4, generator=rng), torch.rand(1, 4, 4, generator=rng)
    heads = features.unflatten(-1, (HEADS, -1)).movedim(2, 0)
    per_head_6dof = torch.stack([apply_cape_6dof(h, matrices) for h in heads], dim=2).flatten(2)
    per_head_4dof = torch.stack([apply_cape_4dof(h, angles) for h in heads], dim=2).flatten(2)
    torch.testing.assert_close(per_head_6dof, apply_cape_6dof(features, matrices))
    assert (per_head_4dof - apply_cape_4dof(features, angles)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_poses_of_any_precision_leave_the_features_in_theirs(dtype):
    features = torch.randn(2, 3, 16, dtype=dtype)
    matrices, angles = torch.eye(4).repeat(2, 3, 1, 1), torch.zeros(2, 3, 4)
    for poses in (matrices, matrices.double(), matrices.bfloat16()):
        assert torch.equal(apply_cape_6dof(features, poses), features)
    for poses in (angles, angles.double(), angles.half()):
        assert torch.equal(apply_cape_4dof(features, poses), features)


def test_azimuth_of_the_negative_x_axis_is_plus_pi():
    for y in (0.0, -0.0):
        w2c = torch.eye(4, dtype=torch.float64)
        w2c[:3, 3] = torch.tensor([2.0, y, 0.0])
        assert angles_4dof(w2c)[1].item() == pytest.approx(math.pi)


def test_wrong_channel_counts_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        apply_cape_6dof(torch.zeros(1, 2, 6), torch.eye(4)[None, None])
    with pytest.raises(ValueError, match="multiple of 8"):
        apply_cape_4dof(torch.zeros(1, 2, 12), torch.zeros(1, 1, 4))
