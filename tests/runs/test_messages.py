"""A person's mistake costs one sentence and exit status 1: no stack trace, no long work first, nothing lost."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ns

PHOTOS = ("nerfstudio-data",)


def capture(folder: Path, views: int) -> Path:
    """A capture of grey photos with poses on a line."""
    frames = []
    for index in range(views):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (90, 90, 90)).save(folder / "images" / f"{index}.png")
        pose = torch.eye(4)
        pose[0, 3] = index
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": pose.tolist()})
    meta = {"w": 16, "h": 16, "fl_x": 16, "fl_y": 16, "cx": 8, "cy": 8, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def test_missing_folder(capsys, tmp_path):
    said = ns.refusal(capsys, tmp_path, data=tmp_path / "nowhere", parser=PHOTOS)
    assert "There is no" in said
    assert "--data" in said
    assert not list(tmp_path.rglob("config.yml"))


def test_no_poses(capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "photos-data" in ns.refusal(capsys, tmp_path, data=tmp_path / "photos", parser=PHOTOS)


def test_too_few_views(capsys, tmp_path):
    data = capture(tmp_path / "one", views=1)
    assert "1 views" in ns.refusal(capsys, tmp_path, data=data, parser=PHOTOS)


def test_missing_images(capsys, tmp_path):
    data = capture(tmp_path / "few", views=4)
    (data / "images" / "2.png").unlink()
    assert "There is no picture" in ns.refusal(capsys, tmp_path, data=data, parser=PHOTOS)


def test_broken_transforms(capsys, tmp_path):
    data = capture(tmp_path / "few", views=4)
    (data / "transforms.json").write_text("{")
    assert "not a JSON file" in ns.refusal(capsys, tmp_path, data=data, parser=PHOTOS)


def test_no_downscaled_images(capsys, tmp_path):
    data = capture(tmp_path / "few", views=4)
    assert "images_4" in ns.refusal(capsys, tmp_path, data=data, parser=(*PHOTOS, "--downscale-factor", "4"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("prompt", " ", "--prompt"),
        ("pipeline__rounds__strength", 1.5, "strength"),
        ("pipeline__rounds__retrain_steps", 0, "retrain-steps"),
        ("pipeline__restyle__num_inference_steps", 1, "less than one step"),
        ("pipeline__restyle__source", "/nowhere", "no restyling models"),
        ("pipeline__model__style_loss_mult", -1, "style-loss-mult"),
        ("pipeline__model__vgg_weights", "imagenet", "VGG19"),
        ("load_dir", "/nowhere", "no checkpoint"),
        ("load_checkpoint", "/nowhere.ckpt", "There is no file"),
    ],
)
def test_options_that_cannot_work(capsys, tmp_path, monkeypatch, option, value, words):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert words in ns.refusal(capsys, tmp_path, **{option: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_asked_for_and_absent(capsys, tmp_path):
    assert "not find a CUDA device" in ns.refusal(capsys, tmp_path, machine__device_type="cuda")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("ran",)


def test_a_checkpoint_with_code_in_it_is_not_loaded(capsys, tmp_path):
    folder = tmp_path / "nerfstudio_models"
    folder.mkdir()
    torch.save({"step": 3, "pipeline": Evil()}, folder / "step-000000003.ckpt")
    said = ns.refusal(capsys, tmp_path / "out", load_dir=folder)
    assert "more than weights" in said
    assert " ran " not in said


def test_a_truncated_checkpoint_is_named(run: Path, capsys, tmp_path):
    copy = tmp_path / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    (checkpoint,) = (copy / "nerfstudio_models").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert "cannot be read" in ns.refusal(capsys, tmp_path, timestamp=run.name)


def test_a_checkpoint_of_something_else_is_named(capsys, tmp_path):
    folder = tmp_path / "nerfstudio_models"
    folder.mkdir()
    (folder / "step-000000003.ckpt").write_bytes(pickle.dumps([1, 2]))
    said = ns.refusal(capsys, tmp_path / "out", load_dir=folder)
    assert "step-000000003.ckpt" in said


def test_a_timestamp_belongs_to_one_prompt(run: Path, capsys, tmp_path):
    copy = tmp_path / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    said = ns.refusal(capsys, tmp_path, timestamp=run.name, prompt="something else")
    assert "started with other options" in said
    assert (copy / "nerfstudio_models").is_dir()


def test_an_unknown_embedded_scene_lists_those_there_are(capsys, tmp_path):
    said = ns.refusal(capsys, tmp_path, parser=("procedural-data", "--scene", "atlantis"))
    assert "atlantis" in said
