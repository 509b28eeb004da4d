"""Objects in front of nothing: only they are restyled, and their background stays."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import ns
from eschernet_prior.base.images import read_image, read_mask
from style_nerf2nerf.config import style_nerf2nerf_tiny
from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.rounds.made_masks import object_masks

SIDE = 32
OBJECT_SCENE = ("procedural-data", "--scene", "bear", "--background", "False", "--num-views", "6")


def test_an_object_is_what_is_near_without_specks():
    depths = torch.zeros(1, 1, SIDE, SIDE)
    depths[..., 8:24, 8:24] = 2.0
    depths[..., 0:6, 24:32] = 40.0  # far fog
    depths[..., 28, 4] = 2.0  # a speck
    depths[..., 15, 15] = 0.0  # a hole
    (mask,) = object_masks(depths)
    assert mask[0, 10:22, 10:22].all()
    assert not mask[0, :6].any()
    assert not mask[0, 26:].any()


def test_views_that_show_nothing_have_empty_masks():
    assert not object_masks(torch.zeros(2, 1, SIDE, SIDE)).any()


@pytest.mark.parametrize(
    ("masks", "transparent", "generated", "expected"),
    [
        (None, False, 0, None),
        (None, True, 0, "object"),
        (None, False, 15, "object"),
        ("all", True, 15, None),
        ("words", True, 0, "words"),
    ],
)
def test_only_the_object_is_restyled_where_the_capture_has_one(
    masks: str | None, transparent: bool, generated: int, expected: str | None
):
    options = copy.deepcopy(style_nerf2nerf_tiny.config.pipeline)
    options.masks, options.datamanager.densify.num_views = masks, generated
    manager = cast(StyleDataManager, SimpleNamespace(train_dataset=SimpleNamespace(has_alpha=transparent)))
    assert options.masks_of(manager) == expected


def test_a_run_on_transparent_photos_keeps_the_background(cache, tmp_path: Path, capsys):
    ns.train(
        tmp_path,
        parser=(*OBJECT_SCENE, "--num-eval-views", "2", "--resolution", "32"),
        pipeline__rounds__reconstruct_steps=80,
        pipeline__rounds__rounds=1,
        pipeline__datamanager__train_num_rays_per_batch=256,
    )
    run = ns.only_run(tmp_path)
    masks, made = run / "masks" / "object", run / "restyled" / "round_01"
    assert f"Masks of the object, to check and correct: {masks}" in capsys.readouterr().out
    shares = []
    for picture in (made / "images").iterdir():
        inside = read_mask(masks / picture.name)
        shares.append(float(inside.float().mean()))
        changed = (read_image(picture) - read_image(made / "renders" / picture.name)).abs().amax(0) > 0
        assert not (changed & ~inside).any()
        assert changed[inside].float().mean() > 0.5
    assert 0.02 < min(shares) <= max(shares) < 0.6
    assert json.loads((made / "manifest.json").read_text())["request"]["masks"] == "object"
