"""The plan of a sweep: scenes × prompts × seeds × variants, read from YAML, and the `ns-train` command of each job.

A plan:

    method: style-nerf2nerf-tiny
    output_dir: outputs/sweep
    scenes:
      house: [procedural-data, --scene, house]
      bear: [--data, captures/bear, nerfstudio-data, --downscale-factor, "4"]
    prompts: [a mosaic, a pencil sketch]
    seeds: [0, 1]
    options: [--pipeline.rounds.retrain-steps, "60"]
    variants:
      default: []
      frozen: [--pipeline.model.freeze-density, "True"]
    resources: {cpus: 1, gpus: 0, memory_gb: 3}
    retries: 2
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eschernet_prior.base.errors import UserError

BASE = "reconstruction"
"""Name of the job that reconstructs a scene."""


class Resources(BaseModel):
    """Resources of one job."""

    model_config = ConfigDict(extra="forbid")

    cpus: float = Field(1, gt=0)
    """CPU cores."""
    gpus: float = Field(0, ge=0)
    """GPUs; a fraction lets several jobs share one."""
    memory_gb: float = Field(3, gt=0)
    """Main memory in gigabytes (10⁹ bytes)."""


class Plan(BaseModel):
    """Contents of a sweep."""

    model_config = ConfigDict(extra="forbid")

    method: str = "style-nerf2nerf-tiny"
    """A restyling method of `ns-train`."""
    output_dir: Path = Path("outputs/sweep")
    """Folder of all runs and of the report; on a cluster, one that all machines share."""
    scenes: dict[str, list[str]] = Field(min_length=1)
    """Scenes by a name of your choice: the arguments of `ns-train` that select the data."""
    prompts: list[str] = Field(min_length=1)
    """Descriptions of the styles."""
    seeds: list[int] = Field([0], min_length=1)
    """Seeds of the restyling."""
    options: list[str] = []
    """Further arguments of `ns-train`, for every job."""
    variants: dict[str, list[str]] = Field({"default": []}, min_length=1)
    """Further arguments of `ns-train` by variant, for the restyling jobs."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """Resources of one job."""
    retries: int = Field(2, ge=0)
    """Number of times that a failed job is repeated; it resumes where it stopped."""


@dataclass(frozen=True)
class Job:
    """One run of `ns-train`."""

    name: str
    """Unique in the sweep; also the last part of its run folder."""
    scene: str
    prompt: str | None
    """None for the reconstruction of a scene."""
    seed: int
    variant: str
    run_dir: Path
    """Its run folder."""
    arguments: tuple[str, ...]
    """Arguments of `ns-train`."""
    needs: str | None = None
    """Name of the job that must be finished first."""

    @property
    def fingerprint(self) -> str:
        """Digest of the arguments, which distinguishes the job from a finished one with other arguments."""
        return hashlib.sha256(json.dumps(self.arguments).encode()).hexdigest()[:16]


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: If the file is missing, is not YAML, or has an unknown or invalid entry.
    """
    try:
        content = yaml.safe_load(path.read_text("utf8"))
    except OSError as error:
        raise UserError(f"The plan {path} cannot be read ({error.strerror}): pass the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise UserError(f"The plan {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise UserError(f"The plan {path} has an invalid entry at {where}: {first['msg']}.") from None
    clashing = [name for name in (*plan.scenes, *plan.variants) if not re.fullmatch(r"[\w.-]+", name)]
    if clashing:
        raise UserError(
            f"The plan {path} has a scene or variant called {clashing[0]!r}, which cannot be the name of a folder: use "
            "only letters, digits, dots, hyphens and underscores."
        )
    return plan


def jobs_of(plan: Plan) -> list[Job]:
    """List all jobs of a plan: one reconstruction per scene, then one restyling for each combination.

    The restyling jobs start from their scene's reconstruction, so that every scene is reconstructed once. All runs of
    a scene share one experiment folder and the generated views in it.
    """
    jobs = []
    for scene, data in plan.scenes.items():
        folder = plan.output_dir / scene / plan.method

        def job(
            name: str,
            own: list[str],
            scene: str = scene,
            data: list[str] = data,
            folder: Path = folder,
            **about: object,
        ) -> Job:
            arguments = [
                plan.method,
                *("--output-dir", str(plan.output_dir), "--experiment-name", scene, "--timestamp", name),
                *("--vis", "tensorboard", "--viewer.quit-on-train-completion", "True"),
                *plan.options,
                *own,
                *data,
            ]
            return Job(name=name, scene=scene, run_dir=folder / name, arguments=tuple(arguments), **about)  # type: ignore[arg-type]

        jobs.append(job(BASE, ["--pipeline.rounds.rounds", "0"], prompt=None, seed=0, variant=""))
        start = ["--load-dir", str(folder / BASE / "nerfstudio_models")]
        for prompt in plan.prompts:
            for seed in plan.seeds:
                for variant, options in plan.variants.items():
                    own = [*start, "--prompt", prompt, "--pipeline.restyle.seed", str(seed), *options]
                    name = f"{_slug(prompt)}-{seed}-{variant}"
                    about = {"prompt": prompt, "seed": seed, "variant": variant, "needs": f"{scene}/{BASE}"}
                    jobs.append(job(name, own, **about))
    return jobs


def _slug(text: str) -> str:
    """Choose a folder name for a prompt: readable, and unique by a digest."""
    words = "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-")
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
