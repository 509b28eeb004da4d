"""Pictures of a run: sheets and a turntable made anew, and images of each round in the log."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image

import ns
from eschernet_prior.base.errors import UserError
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig, split_poses
from style_nerf2nerf import gallery
from style_nerf2nerf.rounds.report.previews import round_trip, turntable_path


@pytest.fixture(scope="module")
def logged(cache, tmp_path_factory) -> Path:
    """A run of one round with TensorBoard's log."""
    output_dir = tmp_path_factory.mktemp("logged")
    ns.train(output_dir, vis="viewer+tensorboard", pipeline__rounds__rounds=1)
    return ns.only_run(output_dir)


def test_the_log_has_an_image_of_each_round(logged: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(logged), size_guidance={"images": 0})
    log.Reload()
    (image,) = log.Images("Rounds/01")
    assert min(image.width, image.height) > 300


def test_wandb_has_an_image_of_each_round(cache, tmp_path, monkeypatch):
    import wandb
    from nerfstudio.utils import writer

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(writer, "EVENT_WRITERS", [])  # nerfstudio keeps its writers for the whole process
    ns.train(tmp_path / "outputs", vis="viewer+wandb", pipeline__rounds__rounds=1)
    wandb.finish()
    (picture,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/Rounds/01_*.png")
    with Image.open(picture) as sheet:
        assert min(sheet.size) > 300


def test_the_gallery_is_made_anew(logged: Path, monkeypatch, capsys):
    monkeypatch.setattr("style_nerf2nerf.rounds.report.previews.WORTH_SAYING", 0.0)
    sheet, turntable = (logged / "previews" / name for name in ("round_01.png", "turntable_01.webp"))
    with Image.open(turntable) as picture:
        assert (picture.n_frames, picture.size) == (2, (128, 64)), "the round has left one"
    before = np.asarray(Image.open(sheet), int)
    sheet.unlink()
    gallery.main(gallery.GalleryOptions(logged, frames=5, size=48))
    assert "5 pictures of two fields at 48 × 48 pixels: about" in capsys.readouterr().out
    again = np.asarray(Image.open(sheet), int)
    assert again.shape == before.shape
    assert np.abs(again - before).mean() < 1, "the field is what it was when the round ended"
    with Image.open(turntable) as moving:
        assert moving.size == (96, 48)
        pictures, milliseconds = [], 0
        for frame in range(moving.n_frames):  # those that look the same are one
            moving.seek(frame)
            moving.load()
            milliseconds += moving.info["duration"]
            pictures.append(np.asarray(moving.convert("RGB"), int))
    assert milliseconds == 3000, "a turn in three seconds"
    assert np.abs(pictures[0] - pictures[len(pictures) // 2]).mean() > 1, "the camera moves"
    assert np.abs(pictures[0][:, :48] - pictures[0][:, 48:]).mean() > 1, "before is not after"
    assert not list((logged / "previews").glob(".*"))


def test_what_a_processor_makes_by_default_takes_two_minutes_at_most(logged: Path, monkeypatch):
    made, looked_at = {}, []
    pipeline = gallery.load_run(logged)
    render = gallery.render_view

    def write_turntable(path, before, after, cameras, frames_per_second):
        made.update(
            frames=len(cameras), size=(int(cameras.width[0]), int(cameras.height[0])), a_second=frames_per_second
        )

    def render_view(model, camera):
        looked_at.append(camera)
        return render(model, camera)

    monkeypatch.setattr(gallery, "write_turntable", write_turntable)
    monkeypatch.setattr(gallery, "render_view", render_view)
    monkeypatch.setattr(gallery, "ROWS", 2)
    gallery.main(gallery.GalleryOptions(logged), lambda run: pipeline)
    assert made == {"frames": 24, "size": (128, 128), "a_second": 8.0}, "1.3 seconds of one core for a picture"
    assert len(looked_at) == 2, "views that are not on the sheet are not rendered"


def test_the_path_goes_round_evenly_and_never_stands_still(logged: Path):
    cameras = gallery.load_run(logged).datamanager.style_cameras()
    path = turntable_path(cameras, 9, 100)
    assert len(path) == 9
    assert (int(path.height[0]), int(path.width[0])) == (100, 100)
    places = path.camera_to_worlds[:, :, 3]
    assert torch.allclose(path.camera_to_worlds[0], cameras.camera_to_worlds[0], atol=1e-5)
    steps = (places.roll(-1, 0) - places).norm(dim=-1)
    assert steps.min() > 0.05, "the last one is not the first again, either"
    assert path.fx[0] == pytest.approx(float(cameras.fx[0]) * 100 / float(cameras.width[0]), rel=1e-4)


def test_the_path_takes_neighbours_one_after_the_other():
    turn = torch.arange(6) * torch.pi / 3
    corners = torch.stack([turn.cos(), turn.sin(), torch.full_like(turn, 0.5)], dim=1)
    shuffled = [0, 3, 1, 4, 2, 5]
    trip = [shuffled[index] for index in round_trip(corners[shuffled])]
    assert trip in ([0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1])
    assert round_trip(corners[:1]) == [0]
    poses = split_poses(ProceduralDataParserConfig())["train"][:, :3]
    cameras = Cameras(poses, fx=50.0, fy=50.0, cx=32.0, cy=32.0, width=64, height=64)
    places = turntable_path(cameras, 36, 64).camera_to_worlds[:, :, 3]
    assert places.norm(dim=1).min() > 0.7 * poses[:, :, 3].norm(dim=1).min(), "it stays outside the scene"


@pytest.mark.parametrize(("have", "words"), [((), "no run"), (("config.yml",), "no checkpoint")])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, have, words):
    for name in have:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=words):
        gallery.main(gallery.GalleryOptions(tmp_path))


def test_impossible_numbers_are_refused(logged: Path):
    for wrong in ({"frames": 1}, {"frames_per_second": 0.0}, {"size": 4}):
        with pytest.raises(UserError, match="turntable"):
            gallery.GalleryOptions(logged, **wrong).check()
