"""Load finished or partly finished runs of the restyling methods."""

from __future__ import annotations

from pathlib import Path

from eschernet_prior.base import runs
from eschernet_prior.base.errors import UserError
from style_nerf2nerf.pipeline import StylePipeline
from style_nerf2nerf.rounds.storage import finished_rounds

__all__ = ["finished_rounds", "load_run"]


def load_run(run: Path) -> StylePipeline:
    """Load a run's newest checkpoint; the run folder may have been moved.

    Raises:
        UserError: If the run belongs to another method.
    """
    pipeline = runs.load_run(run)
    if not isinstance(pipeline, StylePipeline):
        raise UserError(f"{run} is a run of another method: only the style-nerf2nerf methods have rounds to show.")
    return pipeline
