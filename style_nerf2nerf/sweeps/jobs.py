"""Run the jobs of a sweep on Ray: in order, with retries, each at most once.

The outcome of a job is written to `jobs/SCENE/NAME.json` when it ends, so that a restarted driver does not run it
again. An interrupted job is an ordinary run, which the same command resumes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json
from style_nerf2nerf.sweeps.plan import Job, Resources

TAIL = 2000
"""Number of bytes at the end of a failed job's log that are reported as the reason."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job."""

    job: Job
    state: Literal["finished", "failed"]
    seconds: float
    """Wall time of its last attempt."""
    attempts: int
    reason: str = ""
    """Reason of a failure: the end of the log."""


class JobFailedError(RuntimeError):
    """Raised if a command ends with a status other than 0; Ray then repeats the job."""


def outcome_path(output_dir: Path, job: Job) -> Path:
    """File with the outcome of a job."""
    return output_dir / "jobs" / job.scene / f"{job.name}.json"


def finished_before(output_dir: Path, job: Job) -> Outcome | None:
    """Read the outcome of a job that an earlier sweep finished with the same arguments; None for other jobs."""
    kept = read_json(outcome_path(output_dir, job))
    if kept is None or kept["state"] != "finished" or kept["fingerprint"] != job.fingerprint:
        return None
    return Outcome(job, "finished", kept["seconds"], kept["attempts"])


def run_job(job: Job, output_dir: Path, command: Sequence[str], needs: object = None) -> float:
    """Run one job to its end; called in a worker process.

    Args:
        job: The job.
        output_dir: Folder of the sweep, for the log.
        command: Command to which the job's arguments are appended.
        needs: Result of the job from which this one starts; Ray waits for it.

    Returns:
        Wall time in seconds.

    Raises:
        JobFailedError: If the command ended with a status other than 0; the message is the end of its log.
    """
    log = outcome_path(output_dir, job).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    attempts = log.with_suffix(".attempts")
    with attempts.open("a", encoding="utf8") as file:
        file.write(f"{time.time():.0f}\n")
    begin = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603
            [*command, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )
        status = process.wait()
    if status != 0:
        raise JobFailedError(
            log.read_bytes()[-TAIL:].decode("utf8", "replace").strip() or f"It ended with status {status}."
        )
    return time.monotonic() - begin


def _end_with_parent() -> None:
    """Make Linux end this process when its parent ends, so that a killed worker leaves no running training.

    Has no effect on other systems, where a training outlives its killed worker.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def ns_train_command() -> tuple[str, ...]:
    """The `ns-train` command of this environment."""
    return (sys.executable, "-m", "nerfstudio.scripts.train")


def run_jobs(
    jobs: Sequence[Job],
    output_dir: Path,
    resources: Resources,
    retries: int,
    address: str | None = None,
    command: Sequence[str] | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run all jobs that are not finished yet.

    Args:
        jobs: The jobs, each after the job that it needs.
        output_dir: Folder of the sweep.
        resources: Resources of one job.
        retries: Number of times that a failed job is repeated.
        address: Address of a Ray cluster; None starts Ray on this machine.
        command: Command to which each job's arguments are appended; default: `ns-train`.
        on_outcome: Called with each outcome, starting with those of earlier sweeps.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        UserError: If Ray is missing, the cluster cannot be reached, or no machine has the resources of a job.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise UserError("A sweep needs Ray: install it with pip install 'style-nerf2nerf[sweep]'.") from None
    outcomes = {f"{job.scene}/{job.name}": finished_before(output_dir, job) for job in jobs}
    for outcome in outcomes.values():
        if outcome is not None:
            on_outcome(outcome)
    waiting = [job for job in jobs if outcomes[f"{job.scene}/{job.name}"] is None]
    if waiting:
        _start_ray(ray, address, resources)
    try:
        # One call per process, so that a job does not affect the next one.
        remote = ray.remote(max_calls=1)(run_job).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=int(resources.memory_gb * 1e9),
            max_retries=retries,
            retry_exceptions=[JobFailedError],
        )
        start: Any = remote.remote
        running: dict[Any, Job] = {}
        results: dict[str, Any] = {}
        for job in waiting:
            before = results.get(job.needs or "")
            ref = start(job, output_dir, tuple(command or ns_train_command()), before)
            results[f"{job.scene}/{job.name}"], running[ref] = ref, job
        while running:
            done, _ = ray.wait(list(running), timeout=1.0)
            for ref in done:
                job = running.pop(ref)
                try:
                    outcome = Outcome(job, "finished", ray.get(ref), _attempts(output_dir, job))
                except RayTaskError as error:
                    reason = str(error.cause) if isinstance(error.cause, JobFailedError) else str(error)
                    ran = _attempts(output_dir, job)
                    reason = reason if ran else f"The reconstruction of {job.scene} failed."
                    outcome = Outcome(job, "failed", 0.0, ran, reason)
                except RayError as error:  # its worker has ended repeatedly
                    outcome = Outcome(job, "failed", 0.0, _attempts(output_dir, job), str(error).splitlines()[0])
                _keep(output_dir, outcome)
                outcomes[f"{job.scene}/{job.name}"] = outcome
                on_outcome(outcome)
    finally:
        if waiting:
            ray.shutdown()
    return [outcome for outcome in outcomes.values() if outcome is not None]


def _start_ray(ray: Any, address: str | None, resources: Resources) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address is None:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises bare exceptions, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = "on this machine" if address is None else f"at {address}"
        raise UserError(
            f"Ray {where} cannot be used ({reason}): start it with `ray start --head` and pass --address auto."
        ) from None
    for name, needed in (("CPU", resources.cpus), ("GPU", resources.gpus), ("memory", resources.memory_gb * 1e9)):
        most = max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if needed > most:
            shown = (
                (f"{needed / 1e9:g} GB", f"{most / 1e9:.1f} GB") if name == "memory" else (f"{needed:g}", f"{most:g}")
            )
            ray.shutdown()
            raise UserError(
                f"A job needs {shown[0]} of {name}, and the largest machine offers {shown[1]}: lower `resources`."
            )


def _attempts(output_dir: Path, job: Job) -> int:
    path = outcome_path(output_dir, job).with_suffix(".attempts")
    return len(path.read_text("utf8").splitlines()) if path.is_file() else 0


def _keep(output_dir: Path, outcome: Outcome) -> None:
    write_json(
        outcome_path(output_dir, outcome.job),
        {
            "state": outcome.state,
            "fingerprint": outcome.job.fingerprint,
            "seconds": round(outcome.seconds, 1),
            "attempts": outcome.attempts,
            "reason": outcome.reason,
            "arguments": list(outcome.job.arguments),
        },
    )
