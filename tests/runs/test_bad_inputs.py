"""Options, run folders, checkpoints and models that cannot be used: each is refused in one clear sentence.

What a whole command does on such a sentence is in `test_messages.py`; faults of captures are in `test_bad_captures.py`.
"""

import copy
import errno
import io
import pickle
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras

from eschernet_prior.base.field import check_state
from eschernet_prior.base.run_folder import read_checkpoint, report_full_disk
from refused import refused
from style_nerf2nerf import gallery
from style_nerf2nerf.config import style_nerf2nerf_tiny
from style_nerf2nerf.features import VGG19Features
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.models.hub import ensure_ip_adapter, locate_clipseg, locate_lora
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.rounds.readiness import check_view_sizes
from style_nerf2nerf.trainer import StyleTrainerConfig

# Options.


def changed(**options: object) -> StyleTrainerConfig:
    """The tiny method's configuration with some options; underscores twice stand for dots."""
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    for name, value in options.items():
        owner, *path = config, *name.split("__")
        for part in path[:-1]:
            owner = getattr(owner, part)
        assert hasattr(owner, path[-1])
        setattr(owner, path[-1], value)
    return config


OPTIONS = {
    "prompt empty": ({"model__prompt": ""}, "--prompt"),
    "prompt of blanks": ({"model__prompt": " \n\t"}, "--prompt"),
    "further prompt empty": ({"model__more_prompts": ("",)}, "--prompt"),
    "prompt huge": ({"model__prompt": "very " * 5000}, "at most 1000"),
    "negative prompt huge": ({"model__negative_prompt": "ugly " * 5000}, "at most 1000"),
    "strength above 1": ({"rounds__strength": 1.5}, "rounds.strength"),
    "strength 0": ({"rounds__strength": 0.0}, "rounds.strength"),
    "decay 0": ({"rounds__strength_decay": 0.0}, "strength-decay"),
    "no retraining": ({"rounds__retrain_steps": 0}, "retrain-steps"),
    "negative reconstruction": ({"rounds__reconstruct_steps": -1}, "reconstruct-steps"),
    "negative rounds": ({"rounds__rounds": -1}, "rounds.rounds"),
    "too few denoising steps": ({"restyle__num_inference_steps": 1}, "less than one step"),
    "negative loss": ({"model__style_loss_mult": -1.0}, "style-loss-mult"),
    "all losses off": (
        {f"model__{name}_loss_mult": 0.0 for name in ("style", "aligned", "ray", "rgb", "gram")},
        "All losses that depend on the restyled views are off",
    ),
    "layer weights do not fit": ({"model__style_layer_weights": (1.0,)}, "one per layer"),
    "share negative": ({"model__more_prompts": ("b",), "style_weights": (-1.0, 2.0)}, "style-weights"),
    "shares all 0": ({"model__more_prompts": ("b",), "style_weights": (0.0, 0.0)}, "style-weights"),
    "shares too many": ({"style_weights": (0.5, 0.5)}, "1 styles and 2"),
    "no reference picture": ({"restyle__reference": Path("nowhere.png")}, "no picture nowhere.png"),
    "guidance negative": ({"restyle__guidance_scale": -1.0}, "guidance"),
    "guidance is NaN": ({"restyle__guidance_scale": float("nan")}, "guidance"),
    "sharing too strong": ({"restyle__share_strength": 2.0}, "sharing"),
    "two kinds of noise": ({"restyle__same_noise": True, "restyle__warped_noise": True}, "choose one"),
    "adapter without picture": ({"restyle__ip_adapter": "sdxl"}, "IP-Adapter"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_cannot_work_are_refused(fault: str):
    options, words = OPTIONS[fault]
    config = changed(**{f"pipeline__{name}": value for name, value in options.items()})
    with refused(words):
        config.pipeline.check()


@pytest.mark.parametrize("prompt", ["水彩画の庭", "картина маслом", "صورة زيتية", "🎨 colours", "naïve “quotes”"])
def test_prompts_in_any_script_are_fine(prompt: str):
    changed(pipeline__model__prompt=prompt).pipeline.check()


@pytest.fixture
def port():
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def in_the_way(folder: Path) -> dict:
    (folder / "out").write_text("a file where a folder should be")
    return {"output_dir": folder / "out"}


def checkpoint(folder: Path, name: str = "step-000000003.ckpt") -> Path:
    (folder / "nerfstudio_models").mkdir(exist_ok=True)
    torch.save({"step": 3, "pipeline": {}}, folder / "nerfstudio_models" / name)
    return folder / "nerfstudio_models"


def damaged(name: str, content: str):
    def make(folder: Path) -> dict:
        run = folder / "procedural-data" / "style-nerf2nerf-tiny" / "then"
        run.mkdir(parents=True)
        (run / name).write_text(content)
        return {"timestamp": "then", "output_dir": folder}

    return make


def of_version_0_1(folder: Path) -> dict:
    options = damaged("run.json", '{"first_step": 0, "asked": {}}')(folder)
    checkpoint(folder / "procedural-data" / "style-nerf2nerf-tiny" / "then")
    return options


RUNS = {
    "output folder is a file": (in_the_way, "Nothing can be written to"),
    "no folder of checkpoints": (lambda folder: {"load_dir": folder / "nowhere"}, "no checkpoint"),
    "empty folder of checkpoints": (lambda folder: {"load_dir": folder}, "no checkpoint"),
    "no such checkpoint": (lambda folder: {"load_checkpoint": folder / "step-1.ckpt"}, "no file"),
    "no such step": (lambda folder: {"load_dir": checkpoint(folder), "load_step": 7}, "no checkpoint of step 7"),
    "checkpoint without its step": (
        lambda folder: {"load_checkpoint": checkpoint(folder, "best.ckpt") / "best.ckpt"},
        "does not contain a step",
    ),
    "two devices": (lambda _: {"machine__num_devices": 2}, "num-devices"),
    "half a run.json": (damaged("run.json", '{"asked": {'), "run.json is damaged"),
    "run of version 0.1": (of_version_0_1, "version 0.1 and cannot be continued: .*--load-dir"),
    "half a rounds.json": (damaged("rounds.json", '{"begun": ['), "rounds.json is damaged"),
    "unknown scene": (lambda _: {"pipeline__datamanager__dataparser__scene": "atlantis"}, "atlantis"),
    "no views": (lambda _: {"pipeline__datamanager__dataparser__num_views": 0}, "procedural-data needs at least"),
}


@pytest.mark.parametrize("fault", RUNS)
def test_a_run_that_cannot_begin_is_refused(tmp_path: Path, fault: str):
    make, words = RUNS[fault]
    config = changed(**{"output_dir": tmp_path, **make(tmp_path)})
    with refused(words):
        config.prepare()


@pytest.mark.parametrize(
    "tag", ["object:style_nerf2nerf.rounds.RoundsConfig\n  rounds: 1", "name:eschernet_prior.field.FieldModel"]
)
def test_a_config_of_version_0_1_is_refused_by_every_command(tag: str, capsys):
    """ns-viewer, ns-eval and the like read it with this loader."""
    with pytest.raises(SystemExit):
        yaml.load(f"model: !!python/{tag}", Loader=yaml.Loader)  # noqa: S506
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"written by version 0\.1 .*--load-dir RUN/nerfstudio_models\.", said)


@pytest.mark.parametrize("viewer", ["viewer", "viewer+tensorboard"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, port: int, viewer: str):
    with refused(f"127.0.0.1:{port}"):
        changed(output_dir=tmp_path, viewer__websocket_port=port, vis=viewer).prepare()
    changed(output_dir=tmp_path, viewer__websocket_port=port, vis="tensorboard").prepare()


def test_a_port_that_is_none(tmp_path: Path):
    with refused("127.0.0.1:70000"):
        changed(output_dir=tmp_path, viewer__websocket_port=70000).prepare()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path):
    with refused("not find a CUDA device"):
        changed(output_dir=tmp_path, machine__device_type="cuda").prepare()


# Checkpoints.


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code out of a checkpoint ran",)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


CHECKPOINTS = {
    "empty": (b"", "cannot be read|holds more than"),
    "cut off": (saved({"step": 1, "pipeline": {"a": torch.zeros(500)}})[:900], "cannot be read"),
    "text": (b"this is no checkpoint", "cannot be read|holds more than"),
    "code": (saved({"step": 1, "pipeline": Evil()}), "more than weights"),
    "code in a plain pickle": (pickle.dumps(Evil()), "more than weights"),
    "another program's": (saved({"state_dict": {}}), "not a nerfstudio checkpoint"),
    "a list": (saved([1, 2]), "not a nerfstudio checkpoint"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, fault: str):
    content, words = CHECKPOINTS[fault]
    path = tmp_path / "step-000000001.ckpt"
    path.write_bytes(content)
    with refused(f"(?:{words})"):
        read_checkpoint(path)


OWN = {"field.mlp.weight": torch.zeros(4, 4), "field.embedding_appearance.weight": torch.zeros(7, 3)}
FIELDS = {
    "another method's": ({"field.mlp.bias": torch.zeros(4)}, (), "differ by name"),
    "another table size": ({"field.mlp.weight": torch.zeros(8, 4)}, (), r"\(8, 4\) there"),
    "another number of photos": (
        {"field.embedding_appearance.weight": torch.zeros(9, 3)},
        (),
        "another number of images",
    ),
    "tiny-cuda-nn's": ({"field.mlp.params": torch.zeros(16)}, ("field.mlp.weight",), "implementation tcnn"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_a_field_that_does_not_fit_is_refused(fault: str):
    other, without, words = FIELDS[fault]
    loaded = {name: value for name, value in {**OWN, **other}.items() if name not in without}
    with refused(words):
        check_state(OWN, loaded, "The checkpoint")


# Models and the disk.


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda _: locate_models("/nowhere"), "no restyling models"),
        (lambda _: locate_models("sdxl"), "restyle.source embedded"),
        (lambda _: locate_lora("sdxl"), "restyle.speed"),
        (lambda folder: locate_lora(folder / "lora.safetensors"), "no LoRA"),
        (lambda _: locate_clipseg("hub"), "pipeline.masks"),
        (lambda folder: locate_clipseg(folder), "no CLIPSeg"),
        (lambda folder: ensure_ip_adapter(folder), "no IP-Adapter"),
        (lambda _: VGG19Features("imagenet"), "VGG19"),
        (lambda folder: VGG19Features(str(folder / "vgg.pth")), "vgg"),
        (lambda _: Settings(prompt="").check(), "prompt is empty"),
        (lambda folder: gallery.GalleryOptions(folder).check(), "no run in"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch, ask, words: str):
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with refused(words):
        ask(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more_says_how_to_go_on(tmp_path: Path, number: int):
    with refused("--timestamp then"), report_full_disk(tmp_path, "then"):
        raise OSError(number, "No space left on device")
    with refused("--timestamp then"), report_full_disk(tmp_path, "then"):
        try:
            raise OSError(number, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  what torch.save makes of it
    with pytest.raises(RuntimeError, match=re.escape("of the program")), report_full_disk(tmp_path, "then"):
        raise RuntimeError("a fault of the program")


# Views and patches that the style loss cannot look at.


@pytest.mark.parametrize(
    ("sides", "patch", "words"),
    [
        ((31, 64), 0, "31 × 31 pixels are too small"),
        ((64, 16), 0, "16 × 16 pixels are too small"),
        ((64, 64), 16, "style-patch-size of 32 or more"),
    ],
)
def test_sizes_below_what_the_style_loss_needs(sides: tuple[int, int], patch: int, words: str):
    views, held_out = (
        Cameras(torch.eye(4)[None, :3], fx=50.0, fy=50.0, cx=8.0, cy=8.0, width=side, height=side) for side in sides
    )
    manager = SimpleNamespace(style_cameras=lambda: views, held_out_views=lambda count: (["0"], held_out))
    config = StylePipelineConfig(model=StyleModelConfig(style_patch_size=patch))
    with refused(words):
        check_view_sizes(cast(StyledRun, SimpleNamespace(config=config, datamanager=manager)), 32)
