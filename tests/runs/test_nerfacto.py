"""nerfstudio's own nerfacto, by its command line, on the datasets that runs write."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts.train import main as train
from PIL import Image
from test_captures import QUICK, VIEWS, make_capture

import ns
from escher_models import tiny
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.densify.generate import DensifyConfig


@pytest.fixture
def torch_home(tmp_path: Path) -> Path:
    """Weights that nerfacto would download for its measure of pictures: zeros, which take no room."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.alexnet().state_dict().items()}
    name = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, folder / name)
    return tmp_path / "torch"


def restyled(folder: Path) -> Path:
    """The restyled dataset of a run on fisheye photos."""
    capture = make_capture(folder / "capture", camera_model="OPENCV_FISHEYE", k1=0.05, k2=-0.01)
    ns.train(folder / "out", parser=("nerfstudio-data",), data=capture, **QUICK)
    return ns.only_run(folder / "out") / "restyled" / "round_01"


def densified(folder: Path) -> Path:
    """The dataset of generated views of a run on masked photos."""
    tiny(image_size=32).save_pretrained(folder / "prior")
    capture = make_capture(
        folder / "capture", ((48, 48),) * VIEWS, lambda inside: Image.fromarray(inside), camera_model="OPENCV", k1=0.01
    )
    config = copy.deepcopy(eschernet_nerfacto_tiny.config)
    config.output_dir, config.max_num_iterations, config.vis = folder / "out", 2, "tensorboard"
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=capture)
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.datamanager.densify = DensifyConfig(
        num_views=4, prior=str(folder / "prior"), num_inference_steps=1, samples=1
    )
    train(config)
    (written,) = (path.parent for path in (folder / "out").glob("*/densified/*/transforms.json"))
    return written


@pytest.mark.slow
@pytest.mark.parametrize("make", [restyled, densified])
def test_ns_train_nerfacto_trains_on_what_runs_have_written(make, tmp_path: Path, cache, torch_home: Path):
    options = {
        "data": make(tmp_path / "ours"),
        "output-dir": tmp_path / "theirs",
        "max-num-iterations": 3,
        "vis": "tensorboard",
        "machine.device-type": "cpu",
        "pipeline.model.implementation": "torch",
        "pipeline.datamanager.train-num-rays-per-batch": 64,
        "pipeline.datamanager.eval-num-rays-per-batch": 64,
    }
    command = [Path(sys.executable).with_name("ns-train"), "nerfacto"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "TORCH_HOME": str(torch_home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Training Finished" in done.stdout
    assert len(list((tmp_path / "theirs").rglob("step-000000002.ckpt"))) == 1
