"""Trainer of both packages: run folders fixed before anything is built, safe checkpoints, one-sentence errors.

Differences from nerfstudio 1.1.5:

- An interrupted run is resumed by the same command with the same `--timestamp`, from its newest checkpoint.
- Checkpoints are written atomically and read with `weights_only`.
- `max_num_iterations` is the total number of steps, also after loading.
- A `UserError` ends the command with its sentence and exit status 1.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.captures.account import CaptureAccount, dataparser_options
from eschernet_prior.base.captures.checks import ANY_LENS, check_capture
from eschernet_prior.base.console import (
    StepLine,
    forget_time_of_step,
    hide_upstream_warnings,
    nerfstudio_muted,
    quiet_logging,
    say,
    show_everything,
)
from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.run_folder import (
    check_writable,
    checkpoint_of_step,
    newest_checkpoint,
    read_checkpoint,
    remove_if_empty,
    report_full_disk,
)
from eschernet_prior.base.run_record import TRANSFORMS_FILE, record_capture, refuse_other_capture, same_frame

LOCALHOST = "127.0.0.1"


class TrainingStopped(Exception):
    """Raised inside a long stage when training was stopped; finished parts of the stage are on disk."""


def default_machine() -> MachineConfig:
    """Machine configuration with CUDA if a device is available, else the CPU."""
    return MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu")


def default_viewer(num_rays_per_chunk: int = 32768) -> ViewerConfig:
    """Viewer configuration that listens on 127.0.0.1 only (nerfstudio's default listens on all interfaces)."""
    return ViewerConfig(websocket_host=LOCALHOST, num_rays_per_chunk=num_rays_per_chunk)


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
    """Print everything that nerfstudio prints: the configuration, a table of steps, timing and all warnings."""

    _capture: ClassVar[CaptureAccount | None] = None
    _read_from: ClassVar[Path | None] = None

    @property
    def capture(self) -> CaptureAccount | None:
        """The checked capture; None before `prepare`, and for scenes that their dataparser makes."""
        return self._capture

    def __getstate__(self) -> dict[str, Any]:
        """The state for config.yml and copies: the options, without the results of `prepare`."""
        results = ("_capture", "_read_from")
        return {name: value for name, value in self.__dict__.items() if name not in results}

    def get_base_dir(self) -> Path:
        """The run folder: the folder of the config.yml that was read, or the one that the options give."""
        return self._read_from or super().get_base_dir()

    def get_checkpoint_dir(self) -> Path:
        """The folder of this run's checkpoints, also if the run was copied or moved after training."""
        # nerfstudio's eval_setup, behind all commands that read a config.yml, does not pass its path on.
        caller = sys._getframe(1)
        file = caller.f_locals.get("config_path") if caller.f_code.co_name == "eval_setup" else None
        if file is not None:
            if not self.verbose:
                hide_upstream_warnings()
            self.move_to(Path(os.path.abspath(file)).parent)
        return super().get_checkpoint_dir()

    def move_to(self, folder: Path) -> None:
        """Set the run folder to the one that config.yml was read from, also in parts with a method `move_to`."""
        self.__dict__["_read_from"] = folder
        for part in (self.pipeline, self.pipeline.datamanager):
            if move_to := getattr(part, "move_to", None):
                move_to(folder)

    def set_timestamp(self) -> None:
        """Fix the run folder and check the options before long work starts.

        nerfstudio calls this after parsing the command line, before writing config.yml.
        """
        with exit_on_user_error(), self.removed_if_empty():
            self.prepare()

    @contextmanager
    def removed_if_empty(self) -> Iterator[None]:
        """Remove the run folder if the block raises before a checkpoint was written."""
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
            UserError: If a folder, an option or a checkpoint cannot be used.
        """
        if self.verbose:
            show_everything(self.logging)
        else:
            hide_upstream_warnings()
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise UserError("torch does not find a CUDA device on this machine: omit --machine.device-type cuda.")
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
        check_writable(self.get_base_dir())
        self._check_port()
        self._check_continued()
        record_capture(self.get_base_dir(), self.method_name, self._identity())

    def _found(self, account: CaptureAccount) -> None:
        """Keep the summary of the capture, and print it."""
        self.__dict__["_capture"] = account
        for line in account.lines:
            CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)

    def _identity(self) -> dict[str, Any]:
        """Identity of the capture for run.json; for dataparsers that check themselves, their options."""
        if self._capture is not None:
            return self._capture.identity
        dataparser = cast(VanillaDataManagerConfig, self.pipeline.datamanager).dataparser
        return {"data": str(dataparser.data), "dataparser": dataparser_options(dataparser)}

    def _check_continued(self) -> None:
        """Refuse to continue a run with another capture."""
        run_dir = self.get_base_dir()
        if self.own_checkpoint() is not None or (run_dir / TRANSFORMS_FILE).is_file():
            refuse_other_capture(run_dir, self._identity())
        named = self.named_checkpoint()
        if named is not None:
            self._check_named(named.parent.parent)

    def _check_named(self, run_dir: Path) -> None:
        """Refuse a run selected by --load-dir or --load-checkpoint that has another capture."""
        refuse_other_capture(run_dir, self._identity())

    def print_to_terminal(self) -> None:
        """Print the headline of the run; nerfstudio calls this before config.yml is written."""
        if self.verbose:
            super().print_to_terminal()
        else:
            say(self.headline())

    def headline(self) -> str:
        """One line with the method, the data and the run folder."""
        data = self.pipeline.datamanager.data  # pyright: ignore[reportAttributeAccessIssue]
        return f"{self.method_name}: {data or 'an embedded scene'} → {self.get_base_dir()}"

    def _check_port(self) -> None:
        """Refuse a port that is in use, for which the viewer would silently choose another."""
        host, port = self.viewer.websocket_host, self.viewer.websocket_port
        if port is None or not self.is_viewer_enabled():
            return
        try:
            socket.create_server((host, port)).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"The viewer cannot listen at {host}:{port} ({error}): set another --viewer.websocket-port, or omit it."
            ) from None

    def own_checkpoint(self) -> Path | None:
        """The newest checkpoint in this run's own folder; None for a new run."""
        return newest_checkpoint(self.get_checkpoint_dir())

    def named_checkpoint(self) -> Path | None:
        """The checkpoint selected by --load-dir, --load-step or --load-checkpoint; None without these options.

        Raises:
            UserError: If the step does not exist.
        """
        if self.load_checkpoint is not None:
            return self.load_checkpoint
        if self.load_dir is None:
            return None
        if self.load_step is None:
            return newest_checkpoint(self.load_dir)
        return checkpoint_of_step(self.load_dir, self.load_step)


class RunTrainer(Trainer):
    """nerfstudio's trainer with atomic checkpoints, a total number of steps and resumable runs."""

    config: RunTrainerConfig
    _held_a_stage: bool = False
    """Whether the current step waited for a long stage."""

    def __init__(self, config: RunTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        """Prepare the progress line; `setup` builds the pipeline."""
        with nerfstudio_muted(not config.verbose):
            super().__init__(config, local_rank, world_size)
        self._line = StepLine(shown=not config.verbose and local_rank == 0)
        self._total = config.max_num_iterations

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build the pipeline, the viewer and the optimizers, and load the checkpoint, if any."""
        with exit_on_user_error(), self.config.removed_if_empty(), nerfstudio_muted(not self.config.verbose):
            super().setup(test_mode)
            if not self.has_frame_of(self.base_dir):
                raise UserError(
                    f"The poses of this capture are oriented, centred or scaled differently from those in "
                    f"{self.base_dir / TRANSFORMS_FILE}: start a new run with another --timestamp."
                )
        if not self.config.verbose and self.viewer_state is not None:
            for line in getattr(self.viewer_state, "viewer_info", ()):
                say(line)

    def has_frame_of(self, run_dir: Path) -> bool:
        """Whether the capture's poses are oriented, centred and scaled as in a run; True if either is unknown."""
        outputs = getattr(self.pipeline.datamanager, "train_dataparser_outputs", None)
        if outputs is None:
            return True
        frame = {"transform": outputs.dataparser_transform.tolist(), "scale": float(outputs.dataparser_scale)}
        return same_frame(run_dir, frame)

    def train(self) -> None:
        """Train up to `max_num_iterations` steps in total; Ctrl-C saves a checkpoint and prints how to resume."""
        with self.config.removed_if_empty():
            try:
                muted = nerfstudio_muted(not self.config.verbose)
                with exit_on_user_error(), report_full_disk(self.base_dir, self.config.timestamp), muted:
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
        # nerfstudio's log needs a step, which a finished run no longer sets.
        writer.GLOBAL_BUFFER.setdefault("step", self.step)
        try:
            super().train()
        finally:
            self.config.max_num_iterations = configured
            self._line.close()

    def stage_at(self, step: int) -> tuple[str, int, int]:
        """The stage of a step: its title, its first step, and the first step after it."""
        return "Training", 0, self._total

    def train_iteration(self, step: int) -> Any:
        """Make one of nerfstudio's training steps, and update the progress line."""
        result = super().train_iteration(step)
        title, first, end = self.stage_at(step)
        self._line.update(title, step + 1 - first, max(end, step + 1) - first)
        return result

    def _after_train(self) -> None:
        """Finish as nerfstudio does, then print where the run is."""
        self._line.close()
        super()._after_train()
        if self.config.viewer.quit_on_train_completion:
            self.say_where_it_is()

    def _train_complete_viewer(self) -> None:
        """Keep the viewer open until Ctrl-C."""
        self.say_where_it_is()
        super()._train_complete_viewer()

    def say_where_it_is(self) -> None:
        """Print where the run is and how to view it."""
        config = self.config.get_base_dir() / "config.yml"
        say(f"Look at it again: ns-viewer --load-config {config} --viewer.websocket-host {LOCALHOST}")
        if self.viewer_state is not None and not self.config.viewer.quit_on_train_completion:
            say("The viewer stays open; Ctrl-C ends the run.")

    def wait_or_stop(self) -> None:
        """Wait while training is paused; called between the parts of a long stage.

        Raises:
            TrainingStopped: If training was stopped.
        """
        while self.training_state == "paused" and not self.stop_training:
            time.sleep(0.05)
        if self.stop_training:
            raise TrainingStopped

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Release the training lock during a long stage inside a training step, so that the viewer keeps responding.

        The time of the stage is left out of the log's training speed.
        """
        self._line.close()
        self.train_lock.release()
        try:
            yield
        finally:
            self.train_lock.acquire()
            self._held_a_stage = True

    def _update_viewer_state(self, step: int) -> None:
        """Update the viewer; nerfstudio calls this once a step, after it has logged the step's time."""
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
        with atomic_path(path, temporary_in=self.base_dir) as partial:
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
        """Load the checkpoint that the command line selects; the base class resumes from it."""
        self.resume(state, path)

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint: load weights, optimizers, schedulers and the step.

        Raises:
            UserError: If the weights or the parameter groups do not match the configuration.
        """
        self.load_state(state, path)
        self._start_step = state["step"] + 1
        CONSOLE.print(f"Resuming at step {self._start_step} from {path}", soft_wrap=True, markup=False)

    def load_state(self, state: dict[str, Any], path: Path) -> None:
        """Load weights, optimizers and schedulers, but not the step.

        Args:
            state: a checkpoint.
            path: Its file, for the message.

        Raises:
            UserError: If the weights or the parameter groups do not match the configuration.
        """
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        if state["optimizers"].keys() != self.optimizers.optimizers.keys():
            raise UserError(
                f"{path} has the parameter groups {', '.join(sorted(state['optimizers']))}, this configuration has "
                f"{', '.join(sorted(self.optimizers.optimizers))}: use the options with which it was trained."
            )
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        if self.grad_scaler.is_enabled() and state["scalers"]:
            self.grad_scaler.load_state_dict(state["scalers"])
