"""Folders of posed renders: what is read of them, what is passed over, and the procedural ones."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from escher_models import write_object
from eschernet_prior.base.errors import UserError
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.data.objaverse_dataparser import ObjaverseDataParserConfig
from eschernet_prior.data.procedural_renders import render_scenes, scene_folder
from eschernet_prior.data.render_folders import VALID_PATHS, RenderFolders


def test_bad_renders_are_passed_over_and_counted(tmp_path):
    for name, views in (("good", 4), ("mixed", 8), ("small", 1), ("hopeless", 2)):
        write_object(tmp_path / name, views)
    mixed = tmp_path / "mixed"
    (mixed / "000.png").write_bytes(b"no image")
    (mixed / "001.npy").write_bytes(b"no array")
    np.save(mixed / "002.npy", np.full((3, 4), np.nan))
    np.save(mixed / "003.npy", np.eye(3))
    np.save(mixed / "004.npy", 2 * np.eye(4)[:3])
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(mixed / "005.png")
    (mixed / "006.png").unlink()
    png = (mixed / "007.png").read_bytes()
    np.save(mixed / "007.npy", np.load(mixed / "007.npy").astype(np.float32))
    for name in ("000.png", "001.png"):
        (tmp_path / "hopeless" / name).write_bytes(png[: len(png) // 2])
    write_object(tmp_path / ".half-done", 3)
    record = tmp_path / "skipped.tsv"
    folders = RenderFolders([tmp_path], 16, record=record)
    assert [folder.name for folder in folders.objects] == ["good", "hopeless", "mixed"]
    (only,) = {tuple(view.pose.flatten().tolist()) for view in folders.read(2, range(7))}
    torch.testing.assert_close(torch.tensor(only).view(4, 4)[:3].float(), torch.from_numpy(np.load(mixed / "007.npy")))
    assert len(folders.read(1, [0, 1])) == 2  # the next object's
    expected = {
        "broken camera": 4,
        "broken image": 3,
        "empty image": 1,
        "no image beside the camera": 1,
        "no usable view": 1,
        "too few views": 1,
    }
    assert folders.counts() == expected
    assert RenderFolders([tmp_path], 16, record=record).counts() == expected  # another reader of the same record
    kept = RenderFolders([tmp_path], 16, keep_in_memory=True)
    for position in (3, 0, 3):
        for one, other in zip(kept.read(2, [position])[0], folders.read(2, [position])[0]):
            assert torch.equal(one, other)
    with pytest.raises(UserError, match="None of the 1 objects has a usable render"):
        RenderFolders([tmp_path / "hopeless"], 16).read(0, [0])
    with pytest.raises(UserError, match="There are no posed renders in"):
        RenderFolders([tmp_path / "small"], 16)
    with pytest.raises(UserError, match="There is no folder"):
        RenderFolders([tmp_path / "nowhere"], 16)


def test_a_list_of_objects_saves_looking_for_them(tmp_path):
    for name in ("a", "b", "c"):
        write_object(tmp_path / name, 2)
    (tmp_path / VALID_PATHS).write_text(json.dumps(["c", "a", "gone"]))
    assert [folder.name for folder in RenderFolders([tmp_path], 16).objects] == ["a", "c"]


def test_alpha_goes_to_white_blended_or_hard(tmp_path):
    write_object(tmp_path / "one", 2)
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = [200, 100, 0, 128]
    Image.fromarray(pixels).save(tmp_path / "one" / "000.png")
    blended, hard = (
        RenderFolders([tmp_path], 16, hard_alpha=hard).read(0, [0])[0].image[:, 3, [3, 12]].T.tolist()
        for hard in (False, True)
    )
    assert blended == [[227, 177, 127], [255, 255, 255]]
    assert hard == [[200, 100, 0], [255, 255, 255]]


def test_procedural_renders_are_written_once_in_that_layout(tmp_path):
    render_scenes(tmp_path, [3], views=3, size=12)
    folder = scene_folder(tmp_path, 3)
    stamp = (folder / "000.png").stat().st_mtime_ns
    render_scenes(tmp_path, [3], views=3, size=12)
    assert (folder / "000.png").stat().st_mtime_ns == stamp
    folders = RenderFolders([tmp_path], 12)
    views = folders.read(0, [0, 1, 2])
    assert folders.counts() == {}
    for view in views:
        distance = view.pose[:3, 3].norm()
        assert 1.5 <= distance <= 2.2
        torch.testing.assert_close(view.pose[:2, 3], torch.zeros(2).double(), atol=1e-5, rtol=0)
        assert (view.image[:, 0, 0] == 255).all()
        assert (view.image[:, 4:8, 4:8] < 250).any()


def test_renders_of_two_sizes_are_refused_before_anything_is_built(tmp_path, capsys):
    folder = tmp_path / "one"
    write_object(folder, 5)
    config = copy.deepcopy(eschernet_nerfacto_tiny.config)
    config.output_dir, config.vis = tmp_path / "out", "tensorboard"
    config.pipeline.datamanager.dataparser = ObjaverseDataParserConfig(data=folder)
    config.set_timestamp()
    with Image.open(folder / "003.png") as picture:
        picture.resize((24, 20)).save(folder / "003.png")
    again = copy.deepcopy(config)
    with pytest.raises(SystemExit):
        again.set_timestamp()
    said = " ".join(capsys.readouterr().out.split())
    assert "003.png has 24 × 20 pixels" in said
    assert "same size" in said or "one size" in said
