"""A run that is killed in the middle of any stage goes on with the same command, and ends like an unbroken one."""

import os
import signal
from pathlib import Path

import pytest

import ns
from eschernet_prior.trainer import newest_checkpoint, read_checkpoint
from processes import forkserver

TIMESTAMP = "then"


def kill_at(moment: str, output_dir: Path, cache: Path) -> None:
    """Train in this process and die, without any chance to clean up, at the named moment."""
    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    import style_nerf2nerf.stages as stages
    from style_nerf2nerf import restyler_record, rounds

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
        "reconstruct": (stages.Stages, "enter", 9),
        "render": (stages, "render_view", 2),
        "denoise": (restyler_record.Record, "keep_latents", 2),
        "decode": (restyler_record.Record, "keep_view", 2),
        "write": (stages, "write_image", 2),
        "retrain": (stages.Stages, "retrain_losses", 2),
        "second round": (rounds.RoundFolder, "finish", 2),
        "measure": (stages, "contact_sheet", 1),
        "last measure": (stages, "contact_sheet", 2),
        "checkpoint": (os, "replace", 8),
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
