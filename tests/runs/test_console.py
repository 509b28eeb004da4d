"""What a normal run prints: one screen; everything that nerfstudio has to say comes with --verbose."""

import re
from pathlib import Path

import pytest
import rich
from nerfstudio.utils.rich_utils import CONSOLE

import ns
from eschernet_prior.base.console import NoTable, StepLine, nerfstudio_muted, quiet_logging, show_everything


def test_a_normal_run_fits_on_one_screen_and_says_what_a_person_needs(tmp_path: Path, capfd, monkeypatch):
    monkeypatch.setattr("nerfstudio.utils.writer.EVENT_WRITERS", [])  # those of runs before it in this process
    ns.train(tmp_path, pipeline__rounds__rounds=1)
    out, err = capfd.readouterr()
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).splitlines() if line.strip()]
    run = ns.only_run(tmp_path)
    assert len(lines) <= 40
    text = "\n".join(lines)
    for needed in (
        "style-nerf2nerf-tiny",
        "12 steps of reconstruction, then 1 × 3 steps as “a cartoon”",
        "http://127.0.0.1:",
        "Reconstruction ━",
        "Round 1 of 1: retraining ━",
        "dB PSNR",
        "style distance",
        str(run / "report.html"),
        str(run / "config.yml"),
    ):
        assert needed in text, needed
    for noise in ("StyleTrainerConfig(", "Step (% Done)", "Printing profiling stats", "Websocket", "NOTE"):
        assert noise not in text, noise
    assert "FutureWarning" not in err


def test_verbose_brings_back_what_nerfstudio_prints(capsys):
    from nerfstudio.utils.writer import LocalWriter

    logging = quiet_logging()
    assert logging.local_writer._target is NoTable
    show_everything(logging)
    assert logging.local_writer._target is LocalWriter
    assert logging.profiler == "basic"
    from nerfstudio.engine import trainer

    for muted in (False, True):
        with nerfstudio_muted(muted):
            trainer.CONSOLE.print("from the trainer")
            rich.print("from viser")
            CONSOLE.print("from us")
        out = capsys.readouterr().out
        assert "from us" in out
        assert ("from the trainer" in out) == (not muted)
        assert ("from viser" in out) == (not muted)


def test_a_stage_has_one_line(capsys):
    line = StepLine(shown=True)
    for done in range(1, 5):
        line.update("Reconstruction", done, 4)
    for done in range(1, 3):
        line.update("Round 1", done, 2)
    line.close()
    line.close()
    out = capsys.readouterr().out
    assert [out.count(title) for title in ("Reconstruction", "Round 1")] == [1, 1]
    silent = StepLine(shown=False)
    silent.update("Reconstruction", 1, 4)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("markup", ["[red]", "[/]", "a" * 300])
def test_what_a_person_typed_is_printed_as_it_is(markup, capsys):
    from eschernet_prior.base.console import say

    say(markup)
    assert capsys.readouterr().out == markup + "\n"
