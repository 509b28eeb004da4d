"""A start that is refused or crashes: refused before any photo is loaded, and no empty run folder is left."""

import copy
from pathlib import Path

import pytest
from nerfstudio.scripts.train import main as train
from PIL import Image
from test_captures import make_capture

import ns
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.run_folder import remove_if_empty
from eschernet_prior.densify.datamanager import DensifyDataManagerConfig
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from style_nerf2nerf.config import style_nerf2nerf_tiny
from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.trainer import StyleTrainerConfig

SCENE = ProceduralDataParserConfig(num_views=6, num_eval_views=2, resolution=64)


def start(output_dir: Path) -> StyleTrainerConfig:
    """The tiny method on the scene of the other tests."""
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    config.output_dir = output_dir / "outputs"
    config.pipeline.datamanager.dataparser = copy.deepcopy(SCENE)
    config.viewer.quit_on_train_completion = True
    return config


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("L", (64, 64), 255).save(folder / f"{name}.png")
    return folder


MISTAKES = {
    "strength": (lambda pipeline, _: setattr(pipeline.rounds, "strength", 1.5), "--pipeline.rounds.strength"),
    "source": (lambda pipeline, _: setattr(pipeline.restyle, "source", "/nowhere"), "no restyling models"),
    "adapter": (
        lambda pipeline, folder: (
            setattr(pipeline.restyle, "ip_adapter", "/nowhere"),
            setattr(pipeline.restyle, "reference", pictures(folder / "reference", "a") / "a.png"),
        ),
        "IP-Adapter",
    ),
    "no masks": (lambda pipeline, _: setattr(pipeline, "masks", "/nowhere"), "There is no folder /nowhere"),
    "masks of other photos": (
        lambda pipeline, folder: setattr(pipeline, "masks", str(pictures(folder / "masks", "somebody"))),
        "8 photos have no mask",
    ),
    "masks of some photos": (
        lambda pipeline, folder: setattr(
            pipeline,
            "masks",
            str(pictures(folder / "masks", *(f"train_{index:03d}" for index in range(6)), "eval_000")),
        ),
        "1 photos have no mask, eval_001",
    ),
    "no restyled pictures": (
        lambda pipeline, folder: setattr(pipeline, "restyled_data", (folder / "nothing",)),
        "There is no folder",
    ),
    "restyled pictures of other photos": (
        lambda pipeline, folder: setattr(pipeline, "restyled_data", (pictures(folder / "views", "somebody"),)),
        "named like a photo",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_before_the_photos_are_loaded(cache, tmp_path: Path, capsys, monkeypatch, mistake: str):
    make, words = MISTAKES[mistake]
    monkeypatch.setattr(StyleDataManager, "setup_train", lambda _: pytest.fail("the photos are loaded"))
    config = start(tmp_path)
    make(config.pipeline, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train(config)
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 1
    assert words in said
    assert not list(tmp_path.glob("outputs/*")), "no run folder is left"


CAPTURES = {
    "360°": ({"camera_model": "EQUIRECTANGULAR"}, (), "equirectangular cameras: only views of perspective and fisheye"),
    "smaller photos": ({}, ("--downscale-factor", "2"), "no folder images_2"),
    "split": ({"train_filenames": ["images/0.png", "images/1.png"]}, (), "val_filenames"),
    "lens": ({"camera_model": "opencv"}, (), "opencv, which"),
}


@pytest.mark.parametrize("fault", CAPTURES)
def test_a_capture_is_refused_before_anything_is_built(cache, tmp_path: Path, capsys, monkeypatch, fault: str):
    """No photo is kept in memory and no model is loaded: both come after the data manager."""
    top, options, words = CAPTURES[fault]
    monkeypatch.setattr(StyleDataManager, "__init__", lambda *_, **__: pytest.fail("the capture is loaded"))
    capture = make_capture(tmp_path / "capture", **top)
    said = ns.refusal(capsys, tmp_path / "outputs", parser=("nerfstudio-data", *options), data=capture)
    assert words in said
    assert not list(tmp_path.glob("outputs/*")), "no run folder is left"


@pytest.mark.parametrize("fault", [RuntimeError("a fault of the program"), UserError("A mistake that shows late.")])
def test_a_start_that_crashes_leaves_no_run_folder(cache, tmp_path: Path, monkeypatch, fault: Exception):
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("style_nerf2nerf.rounds.runner.VGG19Features", fail)
    with pytest.raises((RuntimeError, SystemExit)):
        train(start(tmp_path))
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize("kept", ["nerfstudio_models/step-000000004.ckpt", "rounds.json", "restyled/round_01/a.png"])
def test_a_run_that_has_begun_is_never_removed(tmp_path: Path, kept: str):
    run = tmp_path / "scene" / "method" / "time"
    for name in ("config.yml", "run.json", "events.out.tfevents.1.host", kept):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    remove_if_empty(run)
    assert (run / "config.yml").is_file()
    (run / kept).unlink()
    other = tmp_path / "scene" / "another"
    other.mkdir()
    remove_if_empty(run)
    assert not run.parent.exists()
    assert other.is_dir()
    remove_if_empty(run)


def test_two_photos_are_refused_unless_a_prior_adds_views(cache, capsys):
    parser = ProceduralDataParserConfig(num_views=2, num_eval_views=1, resolution=16)
    config = DensifyDataManagerConfig(dataparser=parser, train_num_rays_per_batch=8)
    with pytest.raises(SystemExit):
        config.setup(device="cpu", test_mode="val")
    said = " ".join(capsys.readouterr().out.split())
    assert "2 photos are too few" in said
    assert "--pipeline.datamanager.densify.num-views" in said
    parser.num_views = 3
    config.setup(device="cpu", test_mode="val")
