"""Restyle many scenes in many styles: scenes × prompts × seeds × variants, on this machine or a Ray cluster.

    python -m style_nerf2nerf.sweep plan.yaml

Each job is an ordinary run of `ns-train` in its own folder. A scene is reconstructed once, and a capture densified
once; all restyling jobs of a scene start from this field. Failed jobs are repeated and reported. Repeat an interrupted
command to resume it; finished jobs are not run again. At the end, `sweep.csv`, `sweep.md` and `sweep.html` are written
into the plan's output folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eschernet_prior.base.errors import UserError, exit_on_user_error
from style_nerf2nerf.sweeps.jobs import Outcome, run_jobs
from style_nerf2nerf.sweeps.plan import jobs_of, read_plan
from style_nerf2nerf.sweeps.report import write_report


@dataclass
class SweepOptions:
    """Options of the command."""

    plan: tyro.conf.Positional[Path]
    """YAML file that lists scenes, prompts, seeds and variants (see `style_nerf2nerf/sweeps/plan.py`)."""
    address: str | None = None
    """Address of a Ray cluster, e.g. `auto` or `ray://HOST:10001`; default: Ray on this machine."""


def main(options: SweepOptions) -> list[Outcome]:
    """Run a sweep and write its report.

    Returns:
        The outcome of each job.

    Raises:
        UserError: If the plan cannot be read or run, or if a job failed after all its retries.
    """
    plan = read_plan(options.plan)
    jobs = jobs_of(plan)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=CONSOLE) as progress:
        task = progress.add_task("Jobs", total=len(jobs))

        def show(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.state == "failed":
                last = (outcome.reason.splitlines() or [""])[-1]
                CONSOLE.print(f"Failed: {outcome.job.scene}/{outcome.job.name}: {last}", style="red", markup=False)

        outcomes = run_jobs(jobs, plan.output_dir, plan.resources, plan.retries, options.address, on_outcome=show)
    page = write_report(plan.output_dir, outcomes)
    CONSOLE.print(f"All pictures: {page}; the table: {page.with_suffix('.csv')}", soft_wrap=True, markup=False)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} jobs failed; their logs are in {plan.output_dir / 'jobs'}. Repeat the "
            "command to try them again."
        )
    return outcomes


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(SweepOptions, description=__doc__))
