"""Run folders: find and read checkpoints, remove the folder of a refused start, and report a full disk."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a full disk, a full quota and a read-only file system."""
START_FILES = ("config.yml", "dataparser_transforms.json", "run.json", "curves.jsonl")
"""Files that are written into the run folder before the first checkpoint."""
LOG_PREFIX = "events.out.tfevents"
"""Prefix of the names of TensorBoard's logs."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a `nerfstudio_models` folder; None if there is none."""
    return max(folder.glob("step-*.ckpt"), default=None)


def checkpoint_of_step(folder: Path, step: int) -> Path:
    """The checkpoint of a step in a `nerfstudio_models` folder.

    Raises:
        UserError: If there is none.
    """
    path = folder / f"step-{step:09d}.ckpt"
    if not path.is_file():
        steps = ", ".join(str(int(p.stem.removeprefix("step-"))) for p in sorted(folder.glob("step-*.ckpt")))
        raise UserError(f"There is no checkpoint of step {step} in {folder}: choose one of {steps}.")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a nerfstudio checkpoint without executing code in it.

    Raises:
        UserError: If the file is not a checkpoint, is truncated, or contains objects other than tensors and numbers.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"The checkpoint {path} contains more than weights and numbers and is not loaded: "
            "use one written by ns-train."
        ) from None
    except Exception as error:  # the unpickler can fail in any way on other files
        raise UserError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or incomplete. Load an "
            "earlier one with --load-step, or start without it."
        ) from None
    if not isinstance(state, dict) or not {"step", "pipeline"} <= state.keys():
        raise UserError(f"The file {path} is not a nerfstudio checkpoint: pass the nerfstudio_models folder of a run.")
    return state


def refuse_moved_classes(*names: str) -> None:
    """Make every `ns-*` command refuse a config.yml that names classes of version 0.1, with one sentence.

    Args:
        names: The classes' full names in version 0.1.
    """

    def refuse(loader: yaml.Loader, node: yaml.Node) -> None:
        with exit_on_user_error():
            raise UserError(
                f"This config.yml was written by version 0.1 ({node.tag.rpartition(':')[2]} has moved since): start a "
                "new run from its field, with the same ns-train options and --load-dir RUN/nerfstudio_models."
            )

    for name in names:
        for kind in ("object", "name"):
            yaml.add_constructor(f"tag:yaml.org,2002:python/{kind}:{name}", refuse, Loader=yaml.Loader)


def check_writable(run_dir: Path) -> None:
    """Create a run folder and refuse one that is not writable.

    Raises:
        UserError: If a file cannot be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(run_dir / "writable") as partial:
            partial.touch()
        (run_dir / "writable").unlink()
    except OSError as error:
        raise UserError(
            f"Nothing can be written to {run_dir} ({error.strerror}): set --output-dir to a writable "
            "folder on a disk with free space."
        ) from None


def remove_if_empty(run_dir: Path) -> None:
    """Remove a run folder that holds only what every start writes, and its parents that hold only this folder.

    Args:
        run_dir: The folder outputs/<data>/<method>/<time>; its first two parents are removed if they are then empty.
    """
    files = [path.name for path in run_dir.rglob("*") if not path.is_dir()]
    if not run_dir.is_dir() or not all(name in START_FILES or name.startswith(LOG_PREFIX) for name in files):
        return
    shutil.rmtree(run_dir)
    with suppress(OSError):  # the parent contains another run
        run_dir.parent.rmdir()
        run_dir.parent.parent.rmdir()


@contextmanager
def report_full_disk(run_dir: Path, timestamp: str) -> Iterator[None]:
    """Convert the error of a full or read-only disk to a `UserError` that says how to resume.

    Args:
        run_dir: The run folder.
        timestamp: The run's --timestamp.

    Raises:
        UserError: If the block fails because nothing can be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises its own error on closing, with the system's error as its context.
        causes = [error, error.__cause__, error.__context__]
        system = next((each for each in causes if isinstance(each, OSError) and each.errno in DISK_ERRORS), None)
        if system is None:
            raise
        raise UserError(
            f"Nothing more can be written to {run_dir} ({system.strerror}): free some space, then "
            f"resume by repeating the command with --timestamp {timestamp}."
        ) from None
