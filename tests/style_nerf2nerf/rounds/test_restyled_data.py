"""Retraining on pictures that others have made, blended and limited by masks: through ns-train, on a trained run."""

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ns
from eschernet_prior.base.errors import UserError
from style_nerf2nerf.evaluation.finished_runs import load_run
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.rounds.report.scores import style_scores
from style_nerf2nerf.rounds.sources import find_pictures, read_view
from style_nerf2nerf.rounds.viewer.panel import StyleMixer


def test_two_folders_and_masks_from_a_trained_field(run, others, photos, tmp_path):
    ns.train(
        tmp_path,
        load_dir=run / "nerfstudio_models",
        pipeline__restyled_data=[others["red"], others["blue"]],
        pipeline__style_weights=[0.75, 0.25],
        pipeline__masks=others["masks"],
        pipeline__rounds__rounds=1,
        pipeline__model__depth_loss_mult=0.1,
        pipeline__model__content_loss_mult=0.1,
        pipeline__model__freeze_density=True,
    )
    made = ns.only_run(tmp_path)
    folder = made / "restyled" / "round_01"
    manifest = json.loads((folder / "manifest.json").read_text())
    views = {path.stem for path in photos if path.stem.startswith("train")}
    assert set(manifest["request"]["views"]) == views - {"train_001"}, "all that both folders have"
    for inside, colour in ((folder, (220, 30, 20)), (folder / "style_02", (20, 40, 200))):
        frames = json.loads((inside / "transforms.json").read_text())["frames"]
        assert [Path(frame["file_path"]).stem for frame in frames] == manifest["request"]["views"]
        with Image.open(inside / frames[0]["file_path"]) as picture:
            assert picture.size == (64, 64)
            assert np.abs(np.asarray(picture, int)[32, 32] - colour).max() < 8
    measured = ns.metrics(made)["round_01"]
    assert measured["style_weights"] == [0.75, 0.25]
    least, before = measured["style_distance_least"], measured["style_distance_before"]
    assert 0 < least < before
    page = (made / "report.html").read_text()
    assert f"{least:.3f}" in page
    assert "above the blend's least" in html.unescape(page)
    scores = style_scores(load_run(made), made)
    assert scores["style_distance_least"] == pytest.approx(least, rel=0.01)
    assert scores["style_distance_before"] == pytest.approx(before, rel=0.05), "weighted as in the training"
    held_out = measured["held_out"]
    assert set(held_out["style_distance"]) == {"red", "blue"}
    assert {"block1", "block4", "mean"} <= set(held_out["style_distance"]["red"])
    assert held_out["psnr_to_base"] > 15
    assert held_out["depth_change"] == 0, "the density was held"
    assert len(held_out["targets"]) == len(held_out["views"]), "red has no pictures of the held-out views"


def test_an_own_picture_is_what_a_held_out_view_is_measured_against(run, others, tmp_path):
    ns.train(
        tmp_path,
        load_dir=run / "nerfstudio_models",
        pipeline__restyled_data=others["blue"],
        pipeline__rounds__rounds=1,
        pipeline__model__rgb_loss_mult=20,
    )
    measured = ns.metrics(ns.only_run(tmp_path))["round_01"]["held_out"]
    assert measured["targets"] == "their own"
    assert measured["style_distance"]["blue"]["mean"] != measured["style_distance_base"]["blue"]["mean"]
    assert 26 < measured["psnr_to_base"] < 33, "the field has changed a little"  # 29.5 dB


def test_folders_that_cannot_work_are_refused_before_training(run, others, capsys, tmp_path):
    base = {"load_dir": run / "nerfstudio_models"}
    assert "no folder" in ns.refusal(capsys, tmp_path, **base, pipeline__restyled_data=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in ns.refusal(capsys, tmp_path, **base, pipeline__restyled_data=tmp_path / "empty")
    strange = tmp_path / "strange"
    strange.mkdir()
    Image.new("RGB", (64, 64)).save(strange / "holiday.png")
    assert "named like a photo" in ns.refusal(capsys, tmp_path, **base, pipeline__restyled_data=strange)
    few = tmp_path / "few"
    few.mkdir()
    first = sorted(others["masks"].iterdir())[0]
    shutil.copy(first, few / first.name)
    assert "have no mask" in ns.refusal(capsys, tmp_path, **base, pipeline__masks=few)
    assert "no picture" in ns.refusal(capsys, tmp_path, **base, pipeline__restyle__reference=tmp_path / "none.png")
    assert "has no masks" in ns.refusal(capsys, tmp_path, **base, pipeline__masks="dataset")
    said = ns.refusal(
        capsys, tmp_path, **base, pipeline__restyled_data=others["red"], pipeline__style_weights=[0.5, 0.5]
    )
    assert "style-weights" in said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_pictures_are_found_and_brought_to_the_size_of_their_view(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    found = find_pictures(tmp_path, "--here")
    assert read_view(found["a"], (4, 4)).flatten()[0] == 0
    assert read_view(found["a"], (8, 8)).shape == (3, 8, 8)
    with pytest.raises(UserError, match="aspect"):
        read_view(found["a"], (4, 8))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        read_view(tmp_path / "b.png", (4, 4))


def test_sliders_say_the_weights_of_the_next_step():
    mixer = StyleMixer(("red", "blue"), (0.25, 0.75))
    assert mixer.weights == (0.25, 0.75)
    first, second = mixer.sliders
    assert [first.name, second.name] == ["Style 1: red", "Style 2: blue"]
    first.value = 1.0
    assert mixer.weights == (1.0, 0.75)
    first.value = second.value = 0.0
    assert mixer.weights == (1.0, 1.0)


def test_the_slider_of_the_prompt_does_not_name_it():
    """Another prompt may be typed in while the viewer is open."""
    model = StyleModelConfig(prompt="a mosaic", more_prompts=("a gold statue",))
    assert StylePipelineConfig(model=model).style_labels == ("the prompt", "a gold statue")
    two = (Path("here/red"), Path("here/blue"))
    assert StylePipelineConfig(restyled_data=two).style_labels == ("red", "blue")


def test_two_prompts_a_reference_and_masks_through_the_diffusion_models(run, others, photos, tmp_path):
    ns.train(
        tmp_path,
        load_dir=run / "nerfstudio_models",
        prompt="a painting by van gogh",
        pipeline__model__more_prompts="gold",
        pipeline__masks=others["masks"],
        pipeline__restyle__reference=photos[0],
        pipeline__restyle__warped_noise=True,
        pipeline__restyle__max_views_per_batch=2,
        pipeline__rounds__rounds=1,
        pipeline__rounds__retrain_steps=1,
    )
    folder = ns.only_run(tmp_path) / "restyled" / "round_01"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["request"]["more_prompts"] == ["gold"]
    assert manifest["models"]["views_per_batch"] == 2
    name = manifest["request"]["views"][0]
    before, first, second = (
        np.asarray(Image.open(path / f"{name}.png"), int)
        for path in (folder / "renders", folder / "images", folder / "style_02" / "images")
    )
    # White, and so to be restyled, is the left half; the seam takes four latent cells of four pixels.
    for restyled in (first, second):
        assert np.abs(restyled - before)[:, :32].mean() > 2
        assert np.abs(restyled - before)[:, 32 + 16 :].max() <= 1
    assert np.abs(first - second)[:, :32].mean() > 0.5


def test_pictures_that_two_views_could_take_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match="belong to one photo"):
        find_pictures(tmp_path, "--here")
    for content in ("[]", "{}", '{"frames": [{}]}'):
        (tmp_path / "transforms.json").write_text(content)
        with pytest.raises(UserError, match="no frames that name their file_path"):
            find_pictures(tmp_path, "--here")
