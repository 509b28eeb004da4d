"""A sweep on a real local Ray: plans, the order of jobs, kills of workers and of the driver, jobs that always fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json
from style_nerf2nerf.sweeps.jobs import JobFailedError, Outcome, finished_before, outcome_path, run_job, run_jobs
from style_nerf2nerf.sweeps.plan import BASE, Job, Plan, Resources, jobs_of, read_plan
from style_nerf2nerf.sweeps.report import row_of, write_report

TINY = Resources(cpus=1, memory_gb=0.05)
STAND_IN = """
import json, os, sys, time
from pathlib import Path
name, folder, behaviour = sys.argv[1:4]
with open(folder + "/order.txt", "a") as file:
    file.write(name + "\\n")
mark = Path(folder, name + ".pid")
first = not mark.exists()
mark.write_text(str(os.getpid()))
if behaviour == "fails":
    sys.exit("There is no folder nowhere: give --data a folder.")
if behaviour == "slow" and first:
    time.sleep(120)
Path(folder, name + ".done").write_text("done")
"""
"""Stands for `ns-train` where only starting, killing and repeating matter: importing nerfstudio takes half a minute."""


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> tuple[str, str]:
    script = tmp_path_factory.mktemp("command") / "stand_in.py"
    script.write_text(STAND_IN)
    return sys.executable, str(script)


def job(name: str, folder: Path, behaviour: str = "quick", needs: str | None = None) -> Job:
    return Job(name, "scene", "a mosaic", 0, "default", folder / name, (name, str(folder), behaviour), needs)


def order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().split()


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_a_plan_has_one_reconstruction_a_scene_and_a_job_for_each_combination(tmp_path):
    plan = Plan(
        output_dir=tmp_path,
        scenes={"house": ["procedural-data", "--scene", "house"], "bear": ["procedural-data", "--scene", "bear"]},
        prompts=["a mosaic", "a pencil sketch"],
        seeds=[0, 1],
        variants={"default": [], "frozen": ["--pipeline.model.freeze-density", "True"]},
    )
    jobs = jobs_of(plan)
    assert len(jobs) == 2 * (1 + 2 * 2 * 2)
    assert len({str(each.run_dir) for each in jobs}) == len(jobs)
    bases = [each for each in jobs if each.name == BASE]
    assert [each.scene for each in bases] == ["house", "bear"]
    for each in jobs:
        assert each.arguments[-1] == each.scene
        assert each.run_dir == tmp_path / each.scene / plan.method / each.name
        if each.name != BASE:
            assert each.needs == f"{each.scene}/{BASE}"
            start = each.arguments[each.arguments.index("--load-dir") + 1]
            assert start == str(tmp_path / each.scene / plan.method / BASE / "nerfstudio_models")
        assert ("True" in each.arguments[each.arguments.index(each.name) + 5 :]) == (each.variant == "frozen")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("scenes: {a: []}", "prompts"),
        ("scenes: {a: []}\nprompts: [x]\nprompt: y", "prompt"),
        ("scenes: {a/b: []}\nprompts: [x]", "a/b"),
        ("scenes: {a: []}\nprompts: [x]\nretries: many", "retries"),
        ("scenes: [", "not valid YAML"),
        ("- a list", "top level"),
    ],
)
def test_a_plan_that_cannot_work_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as refused:
        read_plan(path)
    assert "\n" not in str(refused.value)


def test_a_plan_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")


@pytest.mark.slow
def test_eight_jobs_with_a_killed_worker_and_one_that_always_fails(tmp_path, command):
    """The killed job is repeated and finishes; the failing one is tried three times; nothing finished runs again."""
    jobs = [job("base", tmp_path), *(job(f"job{index}", tmp_path, needs="scene/base") for index in range(5))]
    jobs += [job("killed", tmp_path, "slow", "scene/base"), job("broken", tmp_path, "fails")]
    jobs += [job("orphan", tmp_path, needs="scene/broken")]
    seen: list[Outcome] = []

    def on_outcome(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 5:  # by now the slow job is running or next
            wait_for(tmp_path / "killed.pid")
            training = int((tmp_path / "killed.pid").read_text())
            worker = int(Path(f"/proc/{training}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            os.kill(worker, signal.SIGKILL)
            end = time.monotonic() + 300
            while alive(training):
                assert time.monotonic() < end, "the training outlived its killed worker"
                time.sleep(0.05)

    # The jobs that precede the slow one in Ray's queue number more than those that must end before the kill.
    outcomes = {
        each.job.name: each for each in run_jobs(jobs, tmp_path, TINY, 2, command=command, on_outcome=on_outcome)
    }
    assert {name for name, each in outcomes.items() if each.state == "failed"} == {"broken", "orphan"}
    assert outcomes["killed"].attempts == 2
    assert outcomes["broken"].attempts == 3
    assert "There is no folder nowhere" in outcomes["broken"].reason
    assert "reconstruction" in outcomes["orphan"].reason
    ran = order(tmp_path)
    assert ran.index("base") < min(ran.index(f"job{index}") for index in range(5))
    assert "orphan" not in ran

    before = len(ran)
    again = run_jobs(jobs[:7], tmp_path, TINY, 2, command=("false",))
    assert {each.state for each in again} == {"finished"}
    assert len(order(tmp_path)) == before, "finished jobs ran again"


DRIVER = """
import sys
from pathlib import Path
from style_nerf2nerf.sweeps.jobs import run_jobs
from style_nerf2nerf.sweeps.plan import Job, Resources
folder = Path(sys.argv[1])
jobs = [Job(n, "scene", "p", 0, "v", folder / n, (n, str(folder), b)) for n, b in (("one", "quick"), ("two", "slow"))]
run_jobs(jobs, folder, Resources(cpus=1, memory_gb=0.05), 1, command=(sys.executable, sys.argv[2]))
"""


def test_a_job_runs_its_command_and_keeps_the_end_of_its_log(tmp_path, command):
    assert run_job(job("one", tmp_path), tmp_path, command) > 0
    assert (tmp_path / "one.done").exists()
    with pytest.raises(JobFailedError, match="There is no folder nowhere"):
        run_job(job("broken", tmp_path, "fails"), tmp_path, command)


def test_a_finished_job_counts_only_with_the_same_arguments(tmp_path):
    one = job("one", tmp_path)
    assert finished_before(tmp_path, one) is None
    kept = {"state": "finished", "fingerprint": one.fingerprint, "seconds": 2.0, "attempts": 1}
    write_json(outcome_path(tmp_path, one), kept)
    assert finished_before(tmp_path, one) == Outcome(one, "finished", 2.0, 1)
    assert finished_before(tmp_path, job("one", tmp_path, "slow")) is None
    write_json(outcome_path(tmp_path, one), kept | {"state": "failed"})
    assert finished_before(tmp_path, one) is None


@pytest.mark.slow
def test_a_killed_driver_repeats_only_what_was_not_finished(tmp_path, command):
    arguments = [sys.executable, "-c", DRIVER, str(tmp_path), command[1]]
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(arguments, cwd=root, start_new_session=True)
    wait_for(tmp_path / "two.pid")
    wait_for(tmp_path / "jobs" / "scene" / "one.json")
    training = int((tmp_path / "two.pid").read_text())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    end = time.monotonic() + 300
    while alive(training):
        assert time.monotonic() < end, "the training outlived its killed driver"
        time.sleep(0.1)
    assert subprocess.run(arguments, cwd=root, check=False, timeout=600).returncode == 0
    assert order(tmp_path).count("one") == 1
    assert order(tmp_path).count("two") == 2
    assert read_json(tmp_path / "jobs" / "scene" / "two.json")["state"] == "finished"


@pytest.mark.slow
def test_a_job_that_no_machine_can_run_is_refused(tmp_path, command):
    with pytest.raises(UserError, match="largest machine"):
        run_jobs([job("one", tmp_path)], tmp_path, Resources(cpus=10_000), 0, command=command)
    assert not (tmp_path / "order.txt").exists()


def test_the_report(tmp_path, run):
    finished = Job("job", "house", "a mosaic | <b>", 1, "default", run, ())
    failed = Job("bad", "house", "neon", 2, "default", tmp_path / "none", ())
    outcomes = [Outcome(finished, "finished", 90.0, 1), Outcome(failed, "failed", 0.0, 3, "There is no <folder>.")]
    page = write_report(tmp_path, outcomes).read_text()
    assert page.count("data:image/webp;base64,") == len(list((run / "previews").glob("round_*.png"))) > 0
    assert "&lt;folder&gt;" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    row = row_of(outcomes[0])
    metrics = json.loads((run / "metrics.json").read_text())
    assert row["PSNR"] == f"{metrics['reconstruction']['psnr']:.2f}"
    assert float(row["style after"]) >= 0
    assert row["minutes"] == "1.5"
    table = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(table) == 3
    assert "a mosaic \\| <b>" in (tmp_path / "sweep.md").read_text()


@pytest.mark.slow
def test_eight_real_jobs(tmp_path):
    """Two scenes, three prompts: real trainings on a real local Ray, each as small as it gets."""
    small = {
        "pipeline.datamanager.train-num-rays-per-batch": 64,
        "pipeline.rounds.reconstruct-steps": 12,
        "pipeline.rounds.retrain-steps": 2,
        "pipeline.datamanager.num-style-views": 3,
        "pipeline.num-eval-views": 2,
        "pipeline.turntable-frames": 0,
    }
    parser = ["--num-views", "6", "--num-eval-views", "2", "--resolution", "64"]
    plan = {
        "output_dir": str(tmp_path / "out"),
        "scenes": {name: ["procedural-data", "--scene", name, *parser] for name in ("bear", "7")},
        "prompts": ["a mosaic", "a pencil sketch", "a gold statue"],
        "options": [word for key, value in small.items() for word in (f"--{key}", str(value))],
        "variants": {"one": ["--pipeline.rounds.rounds", "1"]},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "style_nerf2nerf.sweep", str(tmp_path / "plan.yaml")]
    for _ in range(2):  # the second time nothing is left to do
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stdout + done.stderr
    kept = [read_json(path) for path in (tmp_path / "out" / "jobs").glob("*/*.json")]
    assert len(kept) == 8
    assert all(each["state"] == "finished" and each["attempts"] == 1 for each in kept)
    assert (tmp_path / "out" / "sweep.html").read_text().count("data:image/webp") == 6
