"""A run that is killed in the middle of any stage goes on with the same command, and ends like an unbroken one."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import ns
from eschernet_prior.base.files import read_json
from eschernet_prior.base.run_folder import newest_checkpoint, read_checkpoint
from presses import press_at
from processes import forkserver

TIMESTAMP = "then"


def kill_at(moment: str, output_dir: Path, cache: Path, press: tuple | None = None) -> None:
    """Train in this process and die, without any chance to clean up, at the named moment."""
    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    from style_nerf2nerf.restyler import resume
    from style_nerf2nerf.rounds import restyling, runner, schedule, storage
    from style_nerf2nerf.rounds.report import reports

    if press is not None:
        press_at(setattr, *press)

    def die_at_call(owner, name: str, count: int) -> None:
        """Replace owner.name by a version of it that dies at its count-th call."""
        original, calls = getattr(owner, name), [0]

        def counted(*args, **kwargs):
            calls[0] += 1
            if calls[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    owner, name, count = {
        "reconstruct": (runner.RoundRunner, "enter", 9),
        "render": (restyling, "render_view", 2),
        "denoise": (resume.ResumeState, "keep_latents", 2),
        "decode": (resume.ResumeState, "keep_view", 2),
        "write": (restyling, "write_image", 2),
        "retrain": (runner.RoundRunner, "retrain_losses", 2),
        "second round": (storage.RoundFolder, "finish", 2),
        "measure": (reports, "contact_sheet", 1),
        "last measure": (reports, "contact_sheet", 2),
        "checkpoint": (os, "replace", 9),
        "undo": (schedule.RoundSchedule, "finish_undo", 1),
        "undo's checkpoint": (runner, "set_aside", 1),
        "asked-for round": (storage.RoundFolder, "finish", 2),
    }[moment]
    die_at_call(owner, name, count)
    ns.train(output_dir, timestamp=TIMESTAMP)


SLOW = [pytest.param(moment, marks=pytest.mark.slow) for moment in ("second round", "measure", "checkpoint")]


@pytest.mark.parametrize(
    "moment", ["reconstruct", "render", "denoise", "decode", "write", "retrain", "last measure", *SLOW]
)
def test_a_killed_run_ends_like_an_unbroken_one(moment: str, run: Path, cache: Path, tmp_path: Path):
    victim = forkserver().Process(target=kill_at, args=(moment, tmp_path, cache))
    victim.start()
    victim.join(300)
    assert victim.exitcode == -signal.SIGKILL, "it was killed where it should be"
    killed = ns.only_run(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in killed.rglob("restyled/round_*/**/*") if path.is_file()}

    ns.train(tmp_path, timestamp=TIMESTAMP)

    assert ns.only_run(tmp_path) == killed
    assert names(killed) == names(run), "the same files, nothing missing, nothing half done"
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "finished rounds are not made again"
    assert read_checkpoint(newest_checkpoint(killed / "nerfstudio_models"))["step"] == 17


@pytest.mark.parametrize("moment", ["undo", "undo's checkpoint"])
def test_a_round_that_was_being_undone_is_undone(moment: str, cache: Path, tmp_path: Path):
    victim = forkserver().Process(target=kill_at, args=(moment, tmp_path, cache, (17, "undo")))
    victim.start()
    victim.join(300)
    assert victim.exitcode == -signal.SIGKILL
    ns.train(tmp_path, timestamp=TIMESTAMP)
    killed = ns.only_run(tmp_path)
    assert sorted(path.name for path in (killed / "restyled").iterdir()) == ["round_01", "undone_02"]
    assert sorted(ns.metrics(killed)) == ["reconstruction", "round_01"]
    assert read_checkpoint(newest_checkpoint(killed / "nerfstudio_models"))["step"] == 16
    assert not read_json(killed / "rounds.json")["undoing"]


def test_a_round_that_was_asked_for_is_made_after_a_kill(cache: Path, tmp_path: Path):
    victim = forkserver().Process(target=kill_at, args=("asked-for round", tmp_path, cache, (13, "restyle")))
    victim.start()
    victim.join(300)
    assert victim.exitcode == -signal.SIGKILL
    ns.train(tmp_path, timestamp=TIMESTAMP)
    killed = ns.only_run(tmp_path)
    assert read_json(killed / "restyled" / "round_02" / "manifest.json")["request"]["step"] == 13
    assert read_checkpoint(newest_checkpoint(killed / "nerfstudio_models"))["step"] == 15


def train_again(output_dir: Path, cache: Path) -> None:
    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    ns.train(output_dir, timestamp=TIMESTAMP)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_nothing(seed: int, run: Path, cache: Path, tmp_path: Path):
    """The run is killed again and again after a random time, and must get to its end all the same."""
    drawn, kills = np.random.default_rng(seed), 0
    while True:
        victim = forkserver().Process(target=train_again, args=(tmp_path, cache))
        victim.start()
        # Later attempts get longer, so that one reaches the end.
        victim.join(drawn.uniform(2, 12) + 4 * kills)
        if victim.exitcode is not None:
            break
        victim.kill()
        victim.join()
        kills += 1
        for killed in tmp_path.glob("*/*/*"):
            check_whole(killed)
    assert victim.exitcode == 0
    assert kills >= 2
    (killed,) = tmp_path.glob("*/*/*")
    check_whole(killed)
    assert names(killed) == names(run)
    for number in (1, 2):
        ours, theirs = (
            read_json(each / "restyled" / f"round_0{number}" / "manifest.json")["request"] for each in (killed, run)
        )
        assert ours == theirs
    assert read_checkpoint(newest_checkpoint(killed / "nerfstudio_models"))["step"] == 17


def check_whole(run: Path) -> None:
    """Whatever has its final name can be read from its first to its last byte."""
    for path in run.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(run).parts):
            continue
        if path.suffix == ".ckpt":
            read_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".safetensors":
            load_file(path)
    for manifest in run.glob("restyled/round_*/manifest.json"):
        views = json.loads(manifest.read_text())["request"]["views"]
        assert sorted(views) == sorted(path.stem for path in (manifest.parent / "images").iterdir())


def names(run: Path) -> set[str]:
    """All files of a run that a person sees."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_the_same_views_are_made_after_a_kill_while_denoising(run: Path, cache: Path, tmp_path: Path):
    """Restyling is determined by the views and the seed: a broken run makes the pictures of an unbroken one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ns.train(whole, timestamp=TIMESTAMP, pipeline__rounds__rounds=1)
    victim = forkserver().Process(target=kill_at, args=("denoise", broken, cache))
    victim.start()
    victim.join(300)
    ns.train(broken, timestamp=TIMESTAMP, pipeline__rounds__rounds=1)
    pictures = sorted(ns.only_run(whole).glob("restyled/round_01/images/*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        other = ns.only_run(broken) / picture.relative_to(ns.only_run(whole))
        assert picture.read_bytes() == other.read_bytes()
