"""The trainer of both packages: run folders known before anything is built, safe checkpoints, one-sentence errors.

Differences from nerfstudio 1.1.5:

- An interrupted run is resumed by the same command with the same `--timestamp`, from its newest checkpoint.
- Checkpoints are written atomically and read with `weights_only`.
- `max_num_iterations` is the total number of steps, also after loading.
- A `eschernet_prior.base.errors.UserError` ends the command with its sentence and exit status 1.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import yaml
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import EventName

from eschernet_prior.base.captures.account import CaptureAccount, dataparser_options
from eschernet_prior.base.captures.checks import ANY_LENS, check_capture
from eschernet_prior.base.console import StepLine, nerfstudio_muted, quiet_logging, say, show_everything
from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.run_record import (
    TRANSFORMS_FILE,
    record_capture,
    refuse_other_capture,
    same_frame,
)

LOCALHOST = "127.0.0.1"
UPSTREAM_NOISE = (
    "Using a non-tuple sequence",
    "`torch.cuda.amp.GradScaler",
    "This DataLoader will create",
    "Importing `spectral_angle_mapper`",
    "To copy construct from a tensor",
)
"""First words of warnings that nerfstudio 1.1.5 triggers in current libraries; they require no action."""


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a full disk, a full quota and a read-only file system."""


START_FILES = ("config.yml", "dataparser_transforms.json", "run.json", "curves.jsonl")
"""What a start writes into the run folder before there is a checkpoint."""
LOG_PREFIX = "events.out.tfevents"
"""Beginning of the names of TensorBoard's logs."""


class TrainingStopped(Exception):
    """Raised inside a long stage when training was stopped; finished parts of the stage are on disk."""


def default_machine() -> MachineConfig:
    """Machine configuration with CUDA if a device is available, else the CPU."""
    return MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu")


def default_viewer(num_rays_per_chunk: int = 32768) -> ViewerConfig:
    """Viewer configuration that listens on 127.0.0.1 only (nerfstudio's default listens on all interfaces)."""
    return ViewerConfig(websocket_host=LOCALHOST, num_rays_per_chunk=num_rays_per_chunk)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a `nerfstudio_models` folder; None if the folder has no checkpoint."""
    return max(folder.glob("step-*.ckpt"), default=None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a nerfstudio checkpoint without executing code that it may contain.

    Raises:
        UserError: if the file is not a checkpoint, is truncated, or contains objects other than tensors and numbers.
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


def ignore_upstream_warnings() -> None:
    """Silence warnings of nerfstudio and other libraries that require no action."""
    for message in UPSTREAM_NOISE:
        warnings.filterwarnings("ignore", message=re.escape(message))
    others = r"(?!eschernet_prior|style_nerf2nerf)"
    warnings.filterwarnings("ignore", category=FutureWarning, module=others)


def refuse_moved_classes(*names: str) -> None:
    """Answer a config.yml that names classes of version 0.1 with one sentence, in any `ns-*` command.

    Args:
        names: the classes' full names in version 0.1.
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


@dataclass
class RunTrainerConfig(TrainerConfig):
    """Trainer configuration that fixes the run folder and checks its options before anything is built."""

    _target: type = field(default_factory=lambda: RunTrainer)
    machine: MachineConfig = field(default_factory=default_machine)
    """Machine configuration; by default CUDA if available, else the CPU."""
    viewer: ViewerConfig = field(default_factory=default_viewer)
    """Viewer configuration; by default it listens on 127.0.0.1 only."""
    vis: Literal[
        "viewer", "wandb", "tensorboard", "comet", "viewer+wandb", "viewer+tensorboard", "viewer+comet", "viewer_legacy"
    ] = "viewer"
    """Which visualizer to use."""
    logging: LoggingConfig = field(default_factory=quiet_logging)
    """Logging configuration; its table of steps and its timing are off unless --verbose."""
    verbose: bool = False
    """Whether to print all that nerfstudio prints: the configuration, a table of steps, timing, and all warnings."""

    _capture: ClassVar[CaptureAccount | None] = None
    _read_from: ClassVar[Path | None] = None

    @property
    def capture(self) -> CaptureAccount | None:
        """What was found in the capture; None before `prepare`, and for scenes that are made by their dataparser."""
        return self._capture

    def __getstate__(self) -> dict[str, Any]:
        """What config.yml and copies hold: the options, and not what `prepare` has found."""
        found = ("_capture", "_read_from")
        return {name: value for name, value in self.__dict__.items() if name not in found}

    def get_base_dir(self) -> Path:
        """The run folder: where config.yml was read, or where the options put it."""
        return self._read_from or super().get_base_dir()

    def get_checkpoint_dir(self) -> Path:
        """The run folder's own checkpoints, also where the run was copied or moved after training."""
        # nerfstudio's eval_setup, behind all commands that read a config.yml, gives its path to nobody.
        asking = sys._getframe(1)
        file = asking.f_locals.get("config_path") if asking.f_code.co_name == "eval_setup" else None
        if file is not None:
            if not self.verbose:
                ignore_upstream_warnings()
            self.move_to(Path(os.path.abspath(file)).parent)
        return super().get_checkpoint_dir()

    def move_to(self, folder: Path) -> None:
        """Make a folder the run's, in which its config.yml was found; parts with a method `move_to(folder)`, too."""
        self.__dict__["_read_from"] = folder
        parts: tuple[Any, ...] = (self.pipeline, self.pipeline.datamanager)
        for part in parts:
            if hasattr(part, "move_to"):
                part.move_to(folder)

    def set_timestamp(self) -> None:
        """Fix the run folder and check the options before long work starts.

        nerfstudio calls this after parsing the command line, before writing config.yml.
        """
        with exit_on_user_error(), self.removed_if_empty():
            self.prepare()

    @contextmanager
    def removed_if_empty(self) -> Iterator[None]:
        """Remove the run folder where the block raises and nothing was kept: a start that was refused leaves none."""
        try:
            yield
        except BaseException:
            remove_if_empty(self.get_base_dir())
            raise

    def prepare(self) -> None:
        """Fix the run folder and check the options; called by `set_timestamp` and extended by subclasses.

        A dataparser, data manager or model configuration with a method `prepare(run)` prepares and checks itself, and
        that of a dataparser may return the account of a capture; the captures of others are checked by
        `check_capture`.

        Raises:
            UserError: if a folder, an option or a checkpoint cannot be used.
        """
        if self.verbose:
            show_everything(self.logging)
        else:
            ignore_upstream_warnings()
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise UserError("torch finds no CUDA device on this machine: omit --machine.device-type cuda.")
        datamanager = cast(VanillaDataManagerConfig, self.pipeline.datamanager)
        # Absolute paths, so that config.yml can be read from any working folder.
        self.output_dir = self.output_dir.absolute()
        data = datamanager.data or datamanager.dataparser.data
        datamanager.data = datamanager.dataparser.data = data.absolute() if data.exists() else data
        if not hasattr(datamanager.dataparser, "prepare"):
            lenses = getattr(datamanager, "lenses", ANY_LENS)
            self._found(check_capture(datamanager.dataparser, datamanager.data, lenses))
        super().set_timestamp()
        for part in (datamanager.dataparser, datamanager, self.pipeline.model):
            prepare = getattr(part, "prepare", None)
            found = None if prepare is None else prepare(self)
            if isinstance(found, CaptureAccount):
                self._found(found)
        if self.load_dir is not None and newest_checkpoint(self.load_dir) is None:
            raise UserError(
                f"There is no checkpoint step-*.ckpt in {self.load_dir}: set --load-dir to the nerfstudio_models "
                "folder of a run."
            )
        if self.load_checkpoint is not None and not self.load_checkpoint.is_file():
            raise UserError(f"There is no file {self.load_checkpoint}: set --load-checkpoint to a step-*.ckpt file.")
        self._check_output()
        self._check_port()
        self._check_continued()
        record_capture(self.get_base_dir(), self.method_name, self._identity())

    def _found(self, account: CaptureAccount) -> None:
        """Keep what was found in the capture, and say it."""
        self.__dict__["_capture"] = account
        for line in account.lines:
            CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)

    def _identity(self) -> dict[str, Any]:
        """What tells the capture from others; of dataparsers that prepare themselves, their options."""
        if self._capture is not None:
            return self._capture.identity
        dataparser = cast(VanillaDataManagerConfig, self.pipeline.datamanager).dataparser
        return {"data": str(dataparser.data), "dataparser": dataparser_options(dataparser)}

    def _check_continued(self) -> None:
        """Refuse another capture for a run that has begun, and other poses for a field that is started from."""
        run_dir = self.get_base_dir()
        if self.own_checkpoint() is not None or (run_dir / TRANSFORMS_FILE).is_file():
            refuse_other_capture(run_dir, self._identity())
        named = self.named_checkpoint()
        if named is not None:
            self._check_named(named.parent.parent)

    def _check_named(self, run_dir: Path) -> None:
        """Refuse a named run of another capture; here: it is gone on with."""
        refuse_other_capture(run_dir, self._identity())

    def print_to_terminal(self) -> None:
        """Say what is going to be trained; nerfstudio calls this before config.yml is written."""
        if self.verbose:
            super().print_to_terminal()
        else:
            say(self.headline())

    def headline(self) -> str:
        """What is trained, on what, and where it goes."""
        data = self.pipeline.datamanager.data  # pyright: ignore[reportAttributeAccessIssue]
        return f"{self.method_name}: {data or 'an embedded scene'} → {self.get_base_dir()}"

    def _check_output(self) -> None:
        """Refuse a run folder that is not writable."""
        folder = self.get_base_dir()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / "writable") as partial:
                partial.touch()
            (folder / "writable").unlink()
        except OSError as error:
            raise UserError(
                f"Nothing can be written to {folder} ({error.strerror}): set --output-dir to a writable "
                "folder on a disk with free space."
            ) from None

    def _check_port(self) -> None:
        """Refuse a port that is in use: the viewer would silently choose another."""
        port = self.viewer.websocket_port
        if port is None or not self.is_viewer_enabled():
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.viewer.websocket_host, port))
            except (OSError, OverflowError) as error:
                raise UserError(
                    f"The viewer cannot listen at {self.viewer.websocket_host}:{port} ({error}): choose another "
                    "--viewer.websocket-port, or omit it."
                ) from None

    def own_checkpoint(self) -> Path | None:
        """The newest checkpoint in this run's own folder; None for a new run."""
        return newest_checkpoint(self.get_checkpoint_dir())

    def named_checkpoint(self) -> Path | None:
        """The checkpoint selected by --load-dir, --load-step or --load-checkpoint; None without these options.

        Raises:
            UserError: if the step does not exist.
        """
        if self.load_checkpoint is not None:
            return self.load_checkpoint
        if self.load_dir is None:
            return None
        if self.load_step is None:
            return newest_checkpoint(self.load_dir)
        path = self.load_dir / f"step-{self.load_step:09d}.ckpt"
        if not path.is_file():
            steps = ", ".join(str(int(p.stem.removeprefix("step-"))) for p in sorted(self.load_dir.glob("step-*.ckpt")))
            raise UserError(
                f"There is no checkpoint of step {self.load_step} in {self.load_dir}: choose among {steps}."
            )
        return path


def remove_if_empty(run_dir: Path) -> None:
    """Remove a run folder that holds nothing but what every start writes, and the folders above it that hold only it.

    Args:
        run_dir: outputs/<data>/<method>/<time>; its first two parents are removed where they are empty then.
    """
    files = [path.name for path in run_dir.rglob("*") if not path.is_dir()]
    if not run_dir.is_dir() or not all(name in START_FILES or name.startswith(LOG_PREFIX) for name in files):
        return
    shutil.rmtree(run_dir)
    with suppress(OSError):  # another run is there
        run_dir.parent.rmdir()
        run_dir.parent.parent.rmdir()


@contextmanager
def report_full_disk(config: RunTrainerConfig) -> Iterator[None]:
    """Turn an error of a full or read-only disk into a UserError that says how to resume."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides the system's error in the one that its own writer raises on closing.
        causes = [error, error.__cause__, error.__context__]
        system = next((each for each in causes if isinstance(each, OSError) and each.errno in DISK_ERRORS), None)
        if system is None:
            raise
        raise UserError(
            f"Nothing more can be written to {config.get_base_dir()} ({system.strerror}): free some space, then "
            f"resume by repeating the command with --timestamp {config.timestamp}."
        ) from None


def forget_time_of_step(step: int) -> None:
    """Take a step's times out of nerfstudio's log and out of its running means.

    A step that waited for an hour of restyling says nothing of how fast steps are: nerfstudio would show less than one
    ray per second, which it prints as "145 P".

    Args:
        step: the step whose times were put into the log last.
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
            continue  # the remaining time, which the next step computes again
        times = events[name]["buffer"]
        times.pop()
        if times:
            events[name]["avg"] = sum(times) / len(times)
        else:
            del events[name]


class RunTrainer(Trainer):
    """nerfstudio's trainer with atomic checkpoints, a total number of steps and resumable runs."""

    config: RunTrainerConfig
    _held_a_stage: bool = False
    """Whether this step waited for a long stage."""

    def __init__(self, config: RunTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        """Nothing is built yet."""
        with nerfstudio_muted(not config.verbose):
            super().__init__(config, local_rank, world_size)
        self._line = StepLine(shown=not config.verbose and local_rank == 0)
        self._total = config.max_num_iterations

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build the pipeline, the viewer and the optimizers, and load the checkpoint, if any."""
        with exit_on_user_error(), self.config.removed_if_empty(), nerfstudio_muted(not self.config.verbose):
            super().setup(test_mode)
            outputs = getattr(self.pipeline.datamanager, "train_dataparser_outputs", None)
            if outputs is not None and not same_frame(
                self.base_dir,
                {"transform": outputs.dataparser_transform.tolist(), "scale": float(outputs.dataparser_scale)},
            ):
                raise UserError(
                    f"The poses of this capture are turned, centred or scaled otherwise than {self.base_dir} has noted "
                    f"in {TRANSFORMS_FILE}: begin another run, with another --timestamp."
                )
        if not self.config.verbose and self.viewer_state is not None:
            for line in getattr(self.viewer_state, "viewer_info", ()):
                say(line)

    def train(self) -> None:
        """Train up to `max_num_iterations` steps in total; Ctrl-C saves a checkpoint and prints how to resume."""
        with self.config.removed_if_empty():
            try:
                muted = nerfstudio_muted(not self.config.verbose)
                with exit_on_user_error(), report_full_disk(self.config), muted:
                    self.train_to(self.config.max_num_iterations)
            except (KeyboardInterrupt, TrainingStopped):
                self._line.close()
                if self.training_state != "completed":
                    self.save_checkpoint(max(self.step - 1, 0))
                    how = f"resume by adding --timestamp {self.config.timestamp}."
                    CONSOLE.print(f"Stopped at step {self.step}: {how}")

    def train_to(self, total: int) -> None:
        """Train from the loaded step up to `total` steps of the run, and keep the viewer open."""
        self.step, self._total = max(self._start_step - 1, 0), total
        configured = self.config.max_num_iterations
        # nerfstudio counts this number from the first step of this process.
        self.config.max_num_iterations = max(total - self._start_step, 0)
        # A finished run has no step left that would tell nerfstudio's log where it is.
        writer.GLOBAL_BUFFER.setdefault("step", self.step)
        try:
            super().train()
        finally:
            self.config.max_num_iterations = configured
            self._line.close()

    def stage_at(self, step: int) -> tuple[str, int, int]:
        """The stage that a step belongs to: what people call it, its first step, and the first step after it."""
        return "Training", 0, self._total

    def train_iteration(self, step: int) -> Any:
        """One step of nerfstudio's training, and its place on the line of progress."""
        result = super().train_iteration(step)
        title, first, end = self.stage_at(step)
        self._line.update(title, step + 1 - first, max(end, step + 1) - first)
        return result

    def _after_train(self) -> None:
        """What nerfstudio does after the last step; then where everything is."""
        self._line.close()
        super()._after_train()
        if self.config.viewer.quit_on_train_completion:
            self.say_where_it_is()

    def _train_complete_viewer(self) -> None:
        """Leave the field in the viewer until Ctrl-C."""
        self.say_where_it_is()
        super()._train_complete_viewer()

    def say_where_it_is(self) -> None:
        """Say where the run is and how to look at it."""
        config = self.config.get_base_dir() / "config.yml"
        say(f"Look at it again: ns-viewer --load-config {config} --viewer.websocket-host {LOCALHOST}")
        if self.viewer_state is not None and not self.config.viewer.quit_on_train_completion:
            say("The field stays in the viewer; Ctrl-C ends the run.")

    def wait_or_stop(self) -> None:
        """Wait while training is paused; called between the parts of a long stage.

        Raises:
            TrainingStopped: if training was stopped.
        """
        while self.training_state == "paused" and not self.stop_training:
            time.sleep(0.05)
        if self.stop_training:
            raise TrainingStopped

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Release the training lock during a long stage inside a training step, so that the viewer keeps responding.

        The time of the stage does not count as the step's.
        """
        self._line.close()
        self.train_lock.release()
        try:
            yield
        finally:
            self.train_lock.acquire()
            self._held_a_stage = True

    def _update_viewer_state(self, step: int) -> None:
        """nerfstudio calls this once a step, after it has taken the step's time."""
        if self._held_a_stage:
            forget_time_of_step(step)
            self._held_a_stage = False
        super()._update_viewer_state(step)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint of `step` atomically, then remove older ones unless all are kept."""
        path = self._checkpoint(step)
        self.write_state(path, step)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()

    def has_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint of `step` exists."""
        return self._checkpoint(step).is_file()

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoint_dir / f"step-{step:09d}.ckpt"

    def write_state(self, path: Path, step: int) -> None:
        """Write the state of `step` to `path` atomically."""
        state = {
            "step": step,
            "pipeline": getattr(self.pipeline, "module", self.pipeline).state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        # nerfstudio parses every name in the checkpoint folder: the partial file is kept outside it.
        with atomic_path(path, beside=self.base_dir) as partial:
            torch.save(state, partial)

    def _load_checkpoint(self) -> None:
        own = self.config.own_checkpoint()
        if own is not None:
            self.resume(read_checkpoint(own), own)
            return
        named = self.config.named_checkpoint()
        if named is not None:
            self.load_named(read_checkpoint(named), named)

    def load_named(self, state: dict[str, Any], path: Path) -> None:
        """Load the checkpoint that the command line selects; here: resume from it."""
        self.resume(state, path)

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint: load weights, optimizers, schedulers and the step.

        Raises:
            UserError: if the weights or the parameter groups do not fit.
        """
        self.load_state(state, path)
        self._start_step = state["step"] + 1
        CONSOLE.print(f"Resuming at step {self._start_step} from {path}", soft_wrap=True, markup=False)

    def load_state(self, state: dict[str, Any], path: Path) -> None:
        """Load weights, optimizers and schedulers, but not the step.

        Args:
            state: a checkpoint.
            path: its file, for the message.

        Raises:
            UserError: if the weights or the parameter groups do not fit.
        """
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        if state["optimizers"].keys() != self.optimizers.optimizers.keys():
            raise UserError(
                f"{path} has the parameter groups {', '.join(sorted(state['optimizers']))}, this configuration has "
                f"{', '.join(sorted(self.optimizers.optimizers))}: use the options it was trained with."
            )
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        if self.grad_scaler.is_enabled() and state["scalers"]:
            self.grad_scaler.load_state_dict(state["scalers"])
