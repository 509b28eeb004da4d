"""The README's commands: read out of its blocks, and run one after the other as a reader would in an empty folder."""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

PROGRAMS = ("uv", "pip", "git", "cd", "apt", "apt-get", "sudo", "python", "ns-train")
"""First words of the lines of a block that are commands."""
NOT_RUN = {
    r"pip install|uv sync|uv pip install|uv tool|git clone|cd |apt(-get)? |sudo ": "installs what is there already",
    r"uv run pytest|pytest": "is the suite that this script belongs to",
}
"""What is not run, and why."""
FULL_METHODS = ("style-nerf2nerf", "eschernet-nerfacto")
"""They need a GPU and weights from the network: elsewhere they end with one sentence."""
PLACEHOLDERS = ("RUN", "TIME", "PHOTOS", "CAPTURE", "MASKS", "PICTURES")
ADDRESS = r"http://(?:127\.0\.0\.1|localhost|0\.0\.0\.0):\d+"
READY = {"ns-train": "Ctrl-C ends the run", "ns-viewer": ADDRESS}
"""What a command prints that then stays until Ctrl-C: a finished training, and the viewer."""
SETTLING = 10.0
"""Seconds that a command goes on after its page was opened: a thread may end in a stack trace later."""
UGLY = ("Traceback (most recent call last)", "Exception in thread", "Segmentation fault", "DeprecationWarning")
"""What no command may print."""
QUICK = {
    "style-nerf2nerf-tiny": "--pipeline.rounds.reconstruct-steps 12 --pipeline.rounds.retrain-steps 2 "
    "--pipeline.datamanager.num-style-views 3 --pipeline.turntable-frames 2 --pipeline.restyle.num-inference-steps 4 "
    "--pipeline.datamanager.train-num-rays-per-batch 64 --pipeline.datamanager.densify.num-inference-steps 1 "
    "--pipeline.datamanager.densify.samples 1",
    "eschernet-nerfacto-tiny": "--max-num-iterations 12 --pipeline.datamanager.densify.num-inference-steps 1 "
    "--pipeline.datamanager.densify.samples 1 --pipeline.datamanager.train-num-rays-per-batch 64",
}
"""With README_QUICK=1 in the environment, what makes each training short: to test the script, not the README."""


@dataclass(frozen=True)
class Command:
    """A line of the README."""

    text: str

    @property
    def words(self) -> list[str]:
        """The words of the command, without `uv run`: the script's own environment is used."""
        words = shlex.split(self.text, comments=True)
        return words[2:] if words[:2] == ["uv", "run"] else words

    @property
    def skipped(self) -> str | None:
        """Why the command is not run; None where it is."""
        for pattern, reason in NOT_RUN.items():
            if re.match(pattern, self.text):
                return reason
        return None

    @property
    def placeholders(self) -> set[str]:
        """The words in capitals that stand for something of the reader's."""
        return set(re.findall(r"\b[A-Z]{3,}\b", re.sub(r'"[^"]*"', "", self.text)))

    @property
    def refused(self) -> bool:
        """Whether the command cannot work on this machine and says so."""
        words = self.words
        return words[0] == "ns-train" and words[1] in FULL_METHODS and not torch.cuda.is_available()

    @property
    def stays(self) -> bool:
        """Whether the command stays in the viewer until Ctrl-C."""
        return self.words[0] in READY and not self.refused


def commands(readme: str) -> list[Command]:
    """All commands of a README, in order: lines of fenced bash blocks and of indented blocks.

    A line that ends in a backslash goes on in the next; parts joined by `&&` are commands of their own.
    """
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", readme, re.M | re.S)
    fenced = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), readme, flags=re.M | re.S)
    indented = re.findall(r"(?:^ {4}[^\n]*\n)+", fenced, re.M)
    found = [(readme.index(block), block) for block in blocks]
    found += [(readme.index(block), textwrap.dedent(block)) for block in indented]
    lines = "\n".join(block for _, block in sorted(found)).replace("\\\n", " ").splitlines()
    parts = [part.strip().removeprefix("$ ") for line in lines for part in line.split("&&")]
    return [Command(part) for part in parts if part.split(" ")[0] in PROGRAMS]


@dataclass
class Reader:
    """Somebody who types the README's commands into a shell, in a folder of their own."""

    folder: Path
    have: dict[str, Path]
    """What stands for the placeholders PHOTOS, CAPTURE, MASKS and PICTURES."""
    environment: dict[str, str] = field(default_factory=lambda: reader_environment())
    trained: list[tuple[Command, Path]] = field(default_factory=list)
    """The trainings that have ended well, and their run folders."""

    @property
    def newest_run(self) -> Path:
        """The run folder that the last training has left."""
        runs = {path.parents[1] for path in self.folder.glob("outputs/*/*/*/nerfstudio_models/*.ckpt")}
        assert runs, "a training comes first in the README"
        return max(runs, key=lambda run: (run / "config.yml").stat().st_mtime)

    @property
    def last_run(self) -> Path:
        """The run folder of the last training that ended well."""
        return self.trained[-1][1]

    def runs_to_look_at(self, command: Command) -> list[Path]:
        """The runs that a command about RUN is tried on: the first, the last, and one of each other kind of data.

        What is made of a restyling cannot be made of a field that was not restyled.
        """
        chosen: dict[object, Path] = {}
        for training, run in self.trained:
            if training.words[1].startswith("style") or "gallery" not in command.text:
                chosen.setdefault((training.words[1], *sorted(training.placeholders - {"MASKS", "PICTURES"})), run)
        runs = [*chosen.values(), *([self.newest_run] if self.newest_run.parent.name.startswith("style") else [])]
        return list(dict.fromkeys(runs))

    def line(self, command: Command, quick: bool = False, run: Path | None = None) -> list[str]:
        """The words to run, with the reader's own names for the placeholders.

        Args:
            command: of the README.
            quick: make trainings short.
            run: what RUN stands for; default: the newest.
        """

        def filled(word: str) -> str:
            for name in command.placeholders:
                value = (run or self.newest_run) if name in ("RUN", "TIME") else self.have[name]
                value = value.relative_to(self.folder) if value.is_relative_to(self.folder) else value
                word = re.sub(rf"\b{name}\b", value.name if name == "TIME" else str(value), word)
            return word

        words = [filled(word) for word in command.words]
        if quick and words[0] == "ns-train" and words[1] in QUICK:
            words[2:2] = QUICK[words[1]].split()
        programs = {"python": [sys.executable]}
        return programs.get(words[0], [str(Path(sys.executable).parent / words[0])]) + words[1:]

    def run(
        self, command: Command, quick: bool = False, run: Path | None = None, limit: float = 3600.0
    ) -> tuple[float, float, str]:
        """Run a command to its end, and one that stays until the viewer answers and Ctrl-C ends it.

        Returns:
            Seconds, seconds of one core, and all that it has printed, which is kept in `logs/`.
        """
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{len(list(logs.iterdir())) + 1:02d}.txt"
        # A shell's background jobs ignore Ctrl-C, and what they start does, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        began, began_cpu, before_end = time.monotonic(), _seconds_of_children(), None
        before = self._runs()
        with log.open("w") as output:
            process = subprocess.Popen(
                self.line(command, quick, run), cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
            try:
                while process.poll() is None and time.monotonic() - began < limit:
                    said = log.read_text(errors="replace")
                    if command.stays and re.search(READY[command.words[0]], said):
                        self._look(said)
                        time.sleep(SETTLING)
                        before_end = log.read_text(errors="replace")
                        process.send_signal(signal.SIGINT)
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(120)
                        break
                    time.sleep(0.5)
            finally:
                process.kill()
                status = process.wait()
        seconds, cpu = time.monotonic() - began, _seconds_of_children() - began_cpu
        said = log.read_text(errors="replace")
        assert not any(words in (before_end or said) for words in UGLY), said[-4000:]
        if command.stays:
            assert before_end is not None, f"It ended by itself with status {status}. {said[-4000:]}"
            if command.words[0] == "ns-train":
                assert status == 0, f"After Ctrl-C: status {status}. {said[-4000:]}"
                assert not any(words in said for words in UGLY), said[-4000:]
        else:
            assert status == (1 if command.refused else 0), said[-4000:]
        new = self._runs() - before
        if command.words[0] == "ns-train" and not command.refused:
            (made,) = new
            self.trained.append((command, made))
        else:
            assert not new, f"Left behind: {new}"
        return seconds, cpu, said

    def _runs(self) -> set[Path]:
        """All run folders, finished or not."""
        return {path for path in self.folder.glob("outputs/*/*/*") if path.parent.name != "densified"}

    def _look(self, said: str) -> None:
        """Open the viewer's page."""
        address = re.findall(ADDRESS, said)[-1]
        with urllib.request.urlopen(address.replace("0.0.0.0", "127.0.0.1"), timeout=60) as page:  # noqa: S310, S104
            assert b"<html" in page.read().lower()


def _seconds_of_children() -> float:
    """Seconds of one core that all processes took that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reader_environment() -> dict[str, str]:
    """The reader's: that of this process, and where there is no network, no word to anybody about it.

    Where there is one, the hub of models stays switched off, or a GPU's weights would be downloaded.
    """
    changed = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        changed.pop("HF_HUB_OFFLINE", None)
    return changed
