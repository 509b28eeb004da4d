"""Console output of a training: a few lines by default, everything that nerfstudio prints with --verbose."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import rich
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from nerfstudio.utils.writer import EventName
from rich.console import Console
from rich.progress import Progress, TaskID

TALKATIVE = (
    "nerfstudio.engine.trainer",
    "nerfstudio.utils.writer",
    "nerfstudio.data.datamanagers.base_datamanager",
    "nerfstudio.data.utils.dataloaders",
)
"""Modules of nerfstudio that print only status messages, which require no action."""


UPSTREAM_NOISE = (
    "Using a non-tuple sequence",
    "`torch.cuda.amp.GradScaler",
    "This DataLoader will create",
    "Importing `spectral_angle_mapper`",
    "To copy construct from a tensor",
)
"""First words of warnings that nerfstudio 1.1.5 triggers in current libraries; they require no action."""


class NoTable(writer.LocalWriter):
    """nerfstudio's local log without its table, which is reprinted every few steps."""

    def write_stats_log(self, step: int) -> None:
        """Print nothing."""


def quiet_logging() -> LoggingConfig:
    """nerfstudio's logging without its table of steps and its timing of functions."""
    return LoggingConfig(local_writer=LocalWriterConfig(_target=NoTable, enable=True), profiler="none")


def show_everything(logging: LoggingConfig) -> None:
    """Restore nerfstudio's default logging."""
    logging.local_writer._target = writer.LocalWriter
    logging.profiler = "basic"


def hide_upstream_warnings() -> None:
    """Hide warnings that require no action: `UPSTREAM_NOISE`, and future warnings of other packages."""
    for message in UPSTREAM_NOISE:
        warnings.filterwarnings("ignore", message=re.escape(message))
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(?!eschernet_prior|style_nerf2nerf)")


@contextmanager
def nerfstudio_muted(muted: bool) -> Iterator[None]:
    """Suppress the status messages of nerfstudio's trainer and of viser inside the block.

    The packages' own messages, warnings and errors are still printed.

    Args:
        muted: Whether to suppress them.
    """
    with ExitStack() as stack:
        if muted:
            silent = Console(quiet=True)
            for module in TALKATIVE:
                stack.enter_context(mock.patch(f"{module}.CONSOLE", silent))
            # viser prints with this function, progress bars do not.
            stack.enter_context(mock.patch.object(rich, "print"))
        yield


class StepLine:
    """Progress line for the training steps of a stage, with the time left.

    If the output is not a terminal, only the final state of the stage is printed.
    """

    def __init__(self, shown: bool) -> None:
        """Set up without printing.

        Args:
            shown: Whether to print anything.
        """
        self._shown = shown
        self._title = ""
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def update(self, title: str, done: int, total: int) -> None:
        """Show that `done` of a stage's `total` steps are done; a new title starts a new line."""
        if not self._shown:
            return
        if title != self._title or self._progress is None:
            self.close()
            self._title = title
            self._progress = get_progress(title, suffix="steps")
            # Steps made before a resumed run took no time in this process.
            self._task = self._progress.add_task("", total=total, completed=done - 1)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """End the line so that other output can follow; the next update starts a new one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def say(text: str) -> None:
    """Print one line of arbitrary text, neither wrapped nor parsed as markup."""
    CONSOLE.print(text, soft_wrap=True, markup=False, highlight=False)


def forget_time_of_step(step: int) -> None:
    """Remove a step's times from nerfstudio's log and from its running means.

    The time of a step that waited for an hour of restyling does not measure training speed: nerfstudio would show less
    than one ray per second, which it prints as "145 P".

    Args:
        step: The last step that was logged.
    """
    names = {each.value for each in (EventName.ITER_TRAIN_TIME, EventName.TRAIN_RAYS_PER_SEC, EventName.ETA)}
    kept = [
        event
        for event in writer.EVENT_STORAGE
        if event["step"] != step or getattr(event["name"], "value", event["name"]) not in names
    ]
    writer.EVENT_STORAGE[:] = kept
    events = writer.GLOBAL_BUFFER.get("events", {})
    for name in names & events.keys():
        if not isinstance(events[name], dict):
            continue  # the remaining time, which the next step recomputes
        times = events[name]["buffer"]
        times.pop()
        if times:
            events[name]["avg"] = sum(times) / len(times)
        else:
            del events[name]
