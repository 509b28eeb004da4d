"""Masks from words: a small random CLIPSeg in the hub's layout, and masks that agree between views."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import ns
from clipseg import save_clipseg
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import read_image, read_mask
from style_nerf2nerf.reprojection import ViewCameras, match
from style_nerf2nerf.restyler.models.hub import CLIPSEG
from style_nerf2nerf.rounds.word_masks import WordSegmenter, check_clipseg, consistent, masks_from

VIEWS, SIDE = 3, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clipseg(tmp_path_factory.mktemp("clipseg"))


def wall() -> tuple[torch.Tensor, ViewCameras]:
    """A wall two units before three cameras beside each other."""
    poses = torch.eye(4)[:3].repeat(VIEWS, 1, 1)
    poses[:, 0, 3] = torch.tensor([-0.25, 0.0, 0.25])
    return torch.full((VIEWS, 1, SIDE, SIDE), 2.0), ViewCameras.from_fov(poses, 53.13, SIDE, SIDE)


def test_the_small_model_has_the_hubs_files(folder):
    for name in (*CLIPSEG.weights, *CLIPSEG.configurations):
        assert (folder / name).is_file(), name


def test_every_view_gets_probabilities_of_its_size_that_follow_the_words(folder):
    segmenter = WordSegmenter(folder)
    images = torch.rand(2, 3, 30, 44, generator=torch.Generator().manual_seed(1))
    tents, trees = (segmenter.probabilities(images, words) for words in ("the tents", "trees"))
    assert tents.shape == (2, 1, 30, 44)
    assert 0 < float(tents.min()) < float(tents.max()) < 1
    assert not torch.allclose(tents, trees)
    torch.testing.assert_close(segmenter.probabilities(images[:1], "the tents"), tents[:1], atol=1e-4, rtol=0)


def test_views_that_see_one_point_agree_on_it():
    """One view misses what the two others find."""
    depths, cameras = wall()
    found = torch.zeros(VIEWS, 1, SIDE, SIDE)
    found[0, :, 10:20, 14:26] = 1
    found[2, :, 10:20, 6:18] = 1
    assert not masks_from(found, 0.5)[1].any()
    masks = masks_from(consistent(found, depths, cameras), 0.5)
    assert masks[1, 0, 12:18, 12:20].all(), "the middle view has it, where the others saw it"
    for other in (0, 2):
        there = match(cameras, depths, 1, other)
        x, y = (there.pixels[..., axis].floor().long().clamp(0, SIDE - 1) for axis in (0, 1))
        agree = (masks[other, 0][y, x] == masks[1, 0])[there.visible]
        assert agree.float().mean() > 0.95


def test_what_is_hidden_in_a_view_does_not_count():
    depths, cameras = wall()
    depths[0] = 1.0  # something stands before the first camera
    found = torch.zeros(VIEWS, 1, SIDE, SIDE)
    found[0] = 1
    means = consistent(found, depths, cameras)
    assert means[0].min() == 1
    assert means[1:].max() == 0


def test_masks_have_no_specks():
    found = torch.zeros(1, 1, SIDE, SIDE)
    found[..., 5, 5] = 1
    found[..., 10:25, 10:25] = 0.7
    found[..., 15, 15] = 0
    masks = masks_from(found, 0.5)
    assert not masks[..., 3:8, 3:8].any()
    assert masks[..., 12:23, 12:23].all()
    assert not masks_from(found, 0.8)[..., 12:23, 12:23].any()


def test_files_that_lack_weights_are_refused(folder, tmp_path):
    copy = save_clipseg(tmp_path)
    tensors = load_file(copy / "model.safetensors")
    del tensors["decoder.reduces.0.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        check_clipseg(copy)
    (copy / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="could not be loaded"):
        check_clipseg(copy)


def test_a_run_restyles_what_the_words_say(run, folder, tmp_path, capsys):
    """Masks are written where a person can look at and correct them, for held-out views too."""
    words = {"pipeline__masks": "words", "pipeline__mask_words": "the tents", "pipeline__mask_model": folder}
    options = {"pipeline__rounds__rounds": 1, "timestamp": "then", **words}
    ns.train(tmp_path, **options, pipeline__mask_threshold=threshold_between(folder, run))
    made = ns.only_run(tmp_path)
    folder_of_masks = made / "masks" / "words"
    assert f"Masks of “the tents”, to check and correct: {folder_of_masks}" in capsys.readouterr().out
    names = {path.stem for path in folder_of_masks.iterdir()}
    restyled = {path.stem for path in (made / "restyled" / "round_01" / "images").iterdir()}
    assert restyled < names, "held-out views have masks, too"
    shares = [float(read_mask(path).float().mean()) for path in folder_of_masks.iterdir()]
    assert 0 < sum(shares) < len(shares)
    request = json.loads((made / "restyled" / "round_01" / "manifest.json").read_text())["request"]
    assert request["masks"].startswith("words: the tents")


def threshold_between(folder, run) -> float:
    """A random network's answers have no meaning: a threshold that some of them pass and some do not."""
    images = [read_image(path) for path in sorted((run / "restyled" / "round_01" / "renders").iterdir())]
    found = WordSegmenter(folder).probabilities(torch.stack(images), "the tents")
    return round(float(found.median()), 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline__masks": "words"}, "--pipeline.mask-words"),
        ({"pipeline__mask_words": "the tents"}, "--pipeline.masks words"),
        ({"pipeline__masks": "words", "pipeline__mask_words": "a", "pipeline__mask_threshold": 1.5}, "mask-threshold"),
        ({"pipeline__masks": "words", "pipeline__mask_words": "a", "pipeline__mask_model": "/nowhere"}, "no CLIPSeg"),
    ],
)
def test_words_that_cannot_work_are_refused(capsys, tmp_path, options, words):
    assert words in ns.refusal(capsys, tmp_path, **options)
