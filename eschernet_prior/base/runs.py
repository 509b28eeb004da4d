"""Finished runs: what is in a run folder, read wherever that folder is now."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.eval_utils import eval_setup

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.run_folder import newest_checkpoint


def check_run(run: Path) -> None:
    """Refuse a folder that holds no trained field.

    Raises:
        UserError: It is no run folder, or has no checkpoint yet.
    """
    if not (run / "config.yml").is_file():
        raise UserError(f"There is no run in {run}: give the folder that has a config.yml.")
    if newest_checkpoint(run / "nerfstudio_models") is None:
        raise UserError(f"{run} has no checkpoint yet: let the run get on, or repeat its command.")


def load_run(run: Path, test_mode: Literal["test", "inference"] = "test") -> Pipeline:
    """The run's field as its newest checkpoint has it.

    Args:
        run: The run folder, also where it was moved or copied after training.
        test_mode: "inference" reads no photos.
    """
    return eval_setup(run / "config.yml", test_mode=test_mode)[1]
