"""Runs that are finished, or far enough to be looked at: which rounds they have, and their field."""

from __future__ import annotations

from pathlib import Path

from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.eval_utils import eval_setup

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.pipeline import StylePipeline


def finished_rounds(run: Path) -> list[int]:
    """Numbers of the finished rounds of a run, counted from 1."""
    folders = sorted((run / "restyled").glob("round_*"))
    return [int(folder.name.removeprefix("round_")) for folder in folders if (folder / "manifest.json").is_file()]


def load_run(run: Path) -> StylePipeline:
    """Load a run's newest checkpoint; the run folder may have been moved.

    Raises:
        UserError: if it is a run of another method.
    """

    def here(config: TrainerConfig) -> TrainerConfig:
        config.output_dir, config.experiment_name = run.resolve().parents[2], run.resolve().parents[1].name
        config.method_name, config.timestamp = run.resolve().parent.name, run.resolve().name
        return config

    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="test", update_config_callback=here)
    if not isinstance(pipeline, StylePipeline):
        raise UserError(f"{run} is a run of another method: only the style-nerf2nerf methods have rounds to show.")
    return pipeline
