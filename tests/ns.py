"""nerfstudio's own command lines, run in this process: importing nerfstudio takes longer than a small training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tyro

COMMON = {
    "pipeline.datamanager.train-num-rays-per-batch": 64,
    "steps-per-save": 5,
    "vis": "viewer",
    "viewer.quit-on-train-completion": True,
}
SMALL = {
    **COMMON,
    "prompt": "a cartoon",
    "pipeline.rounds.reconstruct-steps": 12,
    "pipeline.rounds.rounds": 2,
    "pipeline.rounds.retrain-steps": 3,
    "pipeline.datamanager.num-style-views": 3,
    "pipeline.restyle.num-inference-steps": 4,
    "pipeline.num-eval-views": 2,
    "pipeline.turntable-frames": 2,
}
"""Every stage for real, each as short as it gets."""
SCENE = ("procedural-data", "--num-views", "6", "--num-eval-views", "2", "--resolution", "64")


def train(
    output_dir: Path, *, method: str = "style-nerf2nerf-tiny", parser: tuple[str, ...] = SCENE, **options: object
) -> None:
    """`ns-train` with small settings; underscores in `options` stand for the command line's dots and dashes.

    An option whose value is a list is given once for each of its entries.
    """
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
    from nerfstudio.scripts.train import main

    chosen = {
        **(SMALL if method.startswith("style") else COMMON),
        "output-dir": output_dir,
        **{key.replace("__", ".").replace("_", "-"): value for key, value in options.items()},
    }
    each = [(key, entry) for key, value in chosen.items() for entry in (value if isinstance(value, list) else [value])]
    arguments = [word for key, entry in each for word in (f"--{key}", str(entry))]
    main(tyro.cli(AnnotatedBaseConfigUnion, args=[method, *arguments, *parser]))


def only_run(output_dir: Path) -> Path:
    """The one run folder below an output folder."""
    (run,) = {path.parent for path in output_dir.glob("*/*/*/config.yml")}
    return run


def metrics(run: Path) -> dict:
    """What a run has measured."""
    return json.loads((run / "metrics.json").read_text())


def refusal(capsys, *args, **kwargs) -> str:
    """What a command says before it ends with status 1."""
    with pytest.raises(SystemExit) as stopped:
        train(*args, **kwargs)
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Traceback" not in said
    assert not re.search(r"(Training|Reconstruction|retraining) +━", said), "it was refused before training"
    return said


def data_folder(run: Path) -> str:
    """Where the embedded scene of a run is cached."""
    from nerfstudio.utils.eval_utils import eval_setup

    from eschernet_prior.procedural.dataparser import cached_scene

    config, *_ = eval_setup(run / "config.yml")
    return str(cached_scene(config.pipeline.datamanager.dataparser))
