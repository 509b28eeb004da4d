"""Load a finished run from its folder, which may have been moved."""

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
        UserError: If it is not a run folder, or has no checkpoint yet.
    """
    if not (run / "config.yml").is_file():
        raise UserError(f"There is no run in {run}: use the folder that contains its config.yml.")
    if newest_checkpoint(run / "nerfstudio_models") is None:
        raise UserError(f"{run} has no checkpoint yet: let the run continue, or repeat its command.")


def load_run(run: Path, test_mode: Literal["test", "inference"] = "test") -> Pipeline:
    """Load a run's pipeline from its newest checkpoint.

    Args:
        run: The run folder, which may have been moved or copied after training.
        test_mode: nerfstudio's mode; in "inference" no photos are read.
    """
    return eval_setup(run / "config.yml", test_mode=test_mode)[1]
