"""What a training prints: what a person reads fits on one screen; all that nerfstudio has comes with --verbose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import rich
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from rich.console import Console
from rich.progress import Progress, TaskID

TALKATIVE = (
    "nerfstudio.engine.trainer",
    "nerfstudio.utils.writer",
    "nerfstudio.data.datamanagers.base_datamanager",
    "nerfstudio.data.utils.dataloaders",
)
"""Modules of nerfstudio that print what they are doing, and nothing that a person has to act on."""


class NoTable(writer.LocalWriter):
    """nerfstudio's local log without its table, which is printed again every few steps."""

    def write_stats_log(self, step: int) -> None:
        """Print nothing."""


def quiet_logging() -> LoggingConfig:
    """nerfstudio's logging without its table of steps and its timing of functions."""
    return LoggingConfig(local_writer=LocalWriterConfig(_target=NoTable, enable=True), profiler="none")


def show_everything(logging: LoggingConfig) -> None:
    """Set nerfstudio's logging to what it is by default."""
    logging.local_writer._target = writer.LocalWriter
    logging.profiler = "basic"


@contextmanager
def nerfstudio_muted(muted: bool) -> Iterator[None]:
    """What nerfstudio's trainer and viser say about themselves is not printed inside the block.

    Our own messages, warnings and errors are.

    Args:
        muted: whether to do anything at all.
    """
    with ExitStack() as stack:
        if muted:
            silent = Console(quiet=True)
            for module in TALKATIVE:
                stack.enter_context(mock.patch(f"{module}.CONSOLE", silent))
            # viser prints by this function; bars of progress do not.
            stack.enter_context(mock.patch.object(rich, "print"))
        yield


class StepLine:
    """One line of progress for the training steps of a stage, with the time left.

    Where the output is no terminal, only how the stage ended is printed.
    """

    def __init__(self, shown: bool) -> None:
        """Nothing is printed yet.

        Args:
            shown: whether to print anything at all.
        """
        self._shown = shown
        self._title = ""
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def update(self, title: str, done: int, total: int) -> None:
        """So many of a stage's steps are done; another title begins another line."""
        if not self._shown:
            return
        if title != self._title or self._progress is None:
            self.close()
            self._title = title
            self._progress = get_progress(title, suffix="steps")
            # What a resumed run has behind it took no time now.
            self._task = self._progress.add_task("", total=total, completed=done - 1)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """End the line, so that others can be printed; the next update begins a new one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def say(text: str) -> None:
    """Print a line for people that may hold anything: it is neither wrapped nor read as markup."""
    CONSOLE.print(text, soft_wrap=True, markup=False, highlight=False)
