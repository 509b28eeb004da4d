"""Which photos share a lens, and which are compared with each other."""

import numpy as np
import pytest

from eschernet_prior.data.photo_pictures import Picture
from eschernet_prior.data.photo_poses import ALL_PAIRS, choose_pairs, describe, lens_groups


def test_photos_share_a_lens_where_size_and_exif_say_so():
    def picture(width: int, lens: str) -> Picture:
        return Picture("x.jpg", "x.jpg", width, 60, lens, None, False)

    assert lens_groups([picture(80, "a"), picture(80, "b"), picture(90, "a"), picture(80, "a")]) == [[0, 3], [1], [2]]


def test_few_photos_are_all_compared():
    for video in (False, True):
        assert sorted(choose_pairs(5, video)) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert len(choose_pairs(ALL_PAIRS, False)) == ALL_PAIRS * (ALL_PAIRS - 1) // 2


@pytest.mark.parametrize("video", [False, True])
def test_many_photos_are_compared_with_neighbours_and_with_what_looks_alike(video: bool):
    count = 200
    angle = 2 * np.pi * np.arange(count) / 100  # twice around: 0 and 100 show the same
    pairs = choose_pairs(count, video, np.stack([np.cos(angle), np.sin(angle)], -1))
    assert len(pairs) == len(set(pairs))
    assert all(0 <= a < b < count for a, b in pairs)
    assert set(zip(range(count - 1), range(1, count))) <= set(pairs)
    assert {(n, n + 100) for n in range(100)} <= set(pairs)
    assert ((0, 64) in pairs) == video
    assert len(pairs) < 20 * count


def test_descriptors_tell_which_pictures_look_alike():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (3, 300, 128))
    descriptors = [
        (scenes[index % 3] + rng.normal(0, 5, (300, 128))).clip(0, 255).astype(np.uint8)[rng.permutation(300)[:200]]
        for index in range(9)
    ]
    signatures = describe([*descriptors, np.zeros((0, 128), np.uint8)])
    assert np.allclose(np.linalg.norm(signatures[:9], axis=1), 1, atol=1e-4)
    assert not signatures[9].any()
    alike = signatures[:9] @ signatures[:9].T
    same = np.arange(9)[:, None] % 3 == np.arange(9) % 3
    assert alike[same].min() > alike[~same].max() + 0.2
