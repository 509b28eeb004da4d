"""The main job through ns-train: what a run leaves on disk, and how it goes on or starts from another's field."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts.train import main as train_main
from nerfstudio.utils import writer
from PIL import Image
from safetensors.torch import load_file

import ns
from eschernet_prior.base.files import read_json
from eschernet_prior.base.run_folder import newest_checkpoint, read_checkpoint
from style_nerf2nerf.config import style_nerf2nerf_tiny
from style_nerf2nerf.rounds.storage import RECONSTRUCTION

TOTAL = 12 + 2 * 3


def test_the_run_folder_holds_all_that_the_readme_names(run: Path):
    assert newest_checkpoint(run / "nerfstudio_models").name == f"step-{TOTAL - 1:09d}.ckpt"
    for number in ("01", "02"):
        folder = run / "restyled" / f"round_{number}"
        names = sorted(path.stem for path in (folder / "images").iterdir())
        assert len(names) == 3
        assert names == sorted(path.stem for path in (folder / "depth").iterdir())
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["request"]["settings"]["prompt"]
        assert manifest["models"]
        with Image.open(run / "previews" / f"round_{number}.png") as sheet:
            assert min(sheet.size) > 300
    measured = ns.metrics(run)
    assert len(measured["reconstruction"]["held_out_views"]) == 2
    assert measured["reconstruction"]["psnr"] > 9.5  # 10.5 dB after 12 steps
    for name, share in (("round_01", 0.75), ("round_02", 0.65)):  # 0.62 and 0.51
        assert measured[name]["style_distance_after"] < share * measured[name]["style_distance_before"]
    hidden = [path for path in run.rglob("*") if path.name.startswith(".")]
    assert not hidden, "nothing half done is left"


def test_the_strength_falls_and_the_views_change(run: Path):
    first, second = (
        json.loads((run / "restyled" / f"round_0{n}" / "manifest.json").read_text())["request"] for n in (1, 2)
    )
    assert second["settings"]["strength"] < first["settings"]["strength"]
    assert second["step"] == first["step"] + 3
    folder = run / "restyled" / "round_01"
    name = first["views"][0]
    before, after = (
        np.asarray(Image.open(folder / kind / f"{name}.png"), np.float32) for kind in ("renders", "images")
    )
    assert before.shape == after.shape == (64, 64, 3)
    assert np.abs(before - after).mean() > 2


def test_restyled_views_are_a_dataset_in_the_frame_of_the_capture(run: Path):
    """nerfstudio reads them, and their poses are those of the same photos in the capture's own transforms.json."""
    folder = run / "restyled" / "round_01"
    parser = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all"
    ).setup()
    outputs = parser.get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == 3
    written = {
        Path(frame["file_path"]).stem: frame for frame in json.loads((folder / "transforms.json").read_text())["frames"]
    }
    capture = Path(ns.data_folder(run))
    original = {
        Path(frame["file_path"]).stem: frame
        for frame in json.loads((capture / "transforms.json").read_text())["frames"]
    }
    for name, frame in written.items():
        assert np.allclose(frame["transform_matrix"], original[name]["transform_matrix"], atol=1e-5)


def test_repeating_the_command_with_its_timestamp_has_nothing_left_to_do(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writer, "GLOBAL_BUFFER", {})  # as in a fresh process
    copy = tmp_path / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    before = {path: path.stat().st_mtime_ns for path in (copy / "restyled").rglob("*")}
    ns.train(tmp_path, timestamp=run.name)
    assert {path: path.stat().st_mtime_ns for path in (copy / "restyled").rglob("*")} == before
    assert newest_checkpoint(copy / "nerfstudio_models").name == f"step-{TOTAL - 1:09d}.ckpt"
    assert ns.only_run(tmp_path) == copy


def test_more_rounds_go_on_in_the_folder_of_the_run(run: Path, tmp_path: Path):
    copy = tmp_path / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    ns.train(tmp_path / "elsewhere", load_dir=copy / "nerfstudio_models", pipeline__rounds__rounds=3)
    assert (copy / "restyled" / "round_03" / "transforms.json").is_file()
    assert newest_checkpoint(copy / "nerfstudio_models").name == f"step-{TOTAL + 3 - 1:09d}.ckpt"
    assert not list((tmp_path / "elsewhere").rglob("*.ckpt"))


def test_the_number_of_iterations_is_a_total(run: Path, tmp_path: Path):
    copy = tmp_path / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    ns.train(tmp_path, timestamp=run.name, max_num_iterations=TOTAL + 2)
    assert newest_checkpoint(copy / "nerfstudio_models").name == f"step-{TOTAL + 2 - 1:09d}.ckpt"


def test_another_prompt_starts_from_what_the_run_had_reconstructed(run: Path, tmp_path: Path):
    ns.train(
        tmp_path,
        load_dir=run / "nerfstudio_models",
        prompt="a pencil sketch",
        max_num_iterations=12,
        pipeline__rounds__rounds=1,
    )
    other = ns.only_run(tmp_path)
    assert other != run
    assert read_json(other / "run.json")["first_step"] == 12
    assert not (other / "restyled").exists(), "the total was reached before the first round"
    state = read_checkpoint(newest_checkpoint(other / "nerfstudio_models"))["pipeline"]
    for key, value in load_file(run / RECONSTRUCTION).items():
        assert torch.equal(state[f"_model.{key}"], value), key


def test_a_foreign_run_lends_its_field_and_is_left_alone(run: Path, tmp_path: Path):
    """A nerfacto checkpoint has other extras (LPIPS, camera poses), its own optimizers, and no run.json."""
    foreign = tmp_path / "scene" / "nerfacto" / "then" / "nerfstudio_models"
    foreign.mkdir(parents=True)
    state = read_checkpoint(newest_checkpoint(run / "nerfstudio_models"))
    state["pipeline"]["_model.lpips.net.lin0.model.1.weight"] = torch.zeros(1)
    state["pipeline"]["_model.camera_optimizer.pose_adjustment"] = torch.zeros(6, 6)
    state["optimizers"]["camera_opt"] = state["optimizers"].pop("fields")
    torch.save({**state, "step": 29999}, foreign / "step-000029999.ckpt")
    ns.train(tmp_path / "ours", load_dir=foreign, max_num_iterations=30003, pipeline__rounds__rounds=1)
    ours = ns.only_run(tmp_path / "ours")
    assert (ours / "restyled" / "round_01" / "transforms.json").is_file()
    assert read_json(ours / "restyled" / "round_01" / "manifest.json")["request"]["step"] == 30000
    assert newest_checkpoint(ours / "nerfstudio_models").name == "step-000030002.ckpt"
    assert [path.name for path in foreign.iterdir()] == ["step-000029999.ckpt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("_model.field.mlp_head.layers.0.weight"), "differ by name"),
        (lambda state: state.update({"_model.field.mlp_head.layers.0.weight": torch.zeros(2, 2)}), "(2, 2)"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_in_a_sentence(run: Path, tmp_path: Path, capsys, change, words):
    foreign = tmp_path / "nerfstudio_models"
    foreign.mkdir()
    state = read_checkpoint(newest_checkpoint(run / "nerfstudio_models"))
    change(state["pipeline"])
    torch.save(state, foreign / "step-000029999.ckpt")
    with pytest.raises(SystemExit) as stopped:
        ns.train(tmp_path / "ours", load_dir=foreign)
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert words in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_main_job_of_the_readme_brings_the_field_to_its_restyled_views(tmp_path):
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    config.output_dir, config.viewer.quit_on_train_completion = tmp_path, True
    train_main(config)
    measured = ns.metrics(ns.only_run(tmp_path))
    assert measured["reconstruction"]["psnr"] > 24
    first = measured["round_01"]
    assert first["style_distance_after"] < 0.2 * first["style_distance_before"]
