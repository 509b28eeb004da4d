"""Trainer of the restyling methods: resumed runs, fields to start from, and learning rates of the stages."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import Viewer
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import FieldModelConfig, model_state
from eschernet_prior.base.files import read_json, write_json
from eschernet_prior.base.run_record import RUN_FILE, other_poses, refuse_other_poses
from eschernet_prior.base.trainer import RunTrainer, RunTrainerConfig
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.pipeline import StylePipeline, StylePipelineConfig
from style_nerf2nerf.rounds.report.curves import Curves
from style_nerf2nerf.rounds.runner import PlanChange, RoundRunner
from style_nerf2nerf.rounds.schedule import SCHEDULE_FILE, RoundSchedule
from style_nerf2nerf.rounds.sources import check_given, check_names, check_sources
from style_nerf2nerf.rounds.storage import RECONSTRUCTION

RUN_VERSION = "0.2"
"""Version of the run folder's layout; a run of another version cannot be resumed, but its field can be loaded."""
LOCK_PAUSE = 1e-3
"""Pause between two steps in seconds, in which the viewer's threads can take the training lock."""


@dataclass
class StageSchedulerConfig(SchedulerConfig):
    """Configuration of a learning rate that decays exponentially during the reconstruction and in every round."""

    _target: type = field(default_factory=lambda: StageScheduler)
    reconstruct_final: float = 0.1
    """Factor on the learning rate at the end of the reconstruction."""
    retrain: float = 1.0
    """Factor on the learning rate at the beginning of a round."""
    retrain_final: float = 0.1
    """Factor on the learning rate at the end of a round; if it equals that at the beginning, the rate is constant."""
    reconstruct_steps: int = 30000
    """Steps of the reconstruction; set by the trainer's configuration."""
    retrain_steps: int = 3000
    """Steps of a round; set by the trainer's configuration."""
    round_begins: tuple[int, ...] = ()
    """First steps of the rounds that have begun; set by the trainer's configuration."""
    first_step: int = 0
    """First step of this run; above 0 if it starts from a trained field."""

    def factor(self, step: int) -> float:
        """Factor on the learning rate at a step of the run.

        Rounds that have not begun yet are assumed to follow the last one as configured.
        """
        if step < self.reconstruct_steps:
            return self.reconstruct_final ** (step / self.reconstruct_steps)
        begin = max((begin for begin in self.round_begins if begin <= step), default=self.reconstruct_steps)
        done = (step - begin) % self.retrain_steps / self.retrain_steps
        return self.retrain * (self.retrain_final / self.retrain) ** done


class StageScheduler(Scheduler):
    """Learning rates by stage."""

    config: StageSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The schedule as factors on `lr_init`, the optimizer's learning rate."""
        config = self.config
        return LambdaLR(optimizer, lr_lambda=lambda count: config.factor(count + config.first_step))


@dataclass
class StyleTrainerConfig(RunTrainerConfig):
    """Trainer configuration of the restyling methods."""

    _target: type = field(default_factory=lambda: StyleTrainer)
    pipeline: StylePipelineConfig = field(default_factory=StylePipelineConfig)
    """Pipeline configuration"""
    max_num_iterations: int = 0
    """Total number of steps of a run, also after loading; 0: those of the reconstruction and all rounds."""

    def prepare(self) -> None:
        """Decide whether the run is new or resumed, and set its steps.

        A new run reconstructs the field. `--load-dir` of a nerfacto run, or of a run of these methods with other
        options, starts from that field. `--load-dir` of a run with the same options, or its `--timestamp`, resumes that
        run in its own folder.
        """
        if self.machine.num_devices * self.machine.num_machines > 1:
            raise UserError("Restyling runs on one device: omit --machine.num-devices and --machine.num-machines.")
        self.pipeline.check()
        check_sources(self.pipeline)
        self._read_photos_where_given()
        asked = self._asked()
        base = None if self.load_dir is None else _recorded(self.load_dir.parent)
        if self.timestamp == "{timestamp}" and base is not None and _continues(base, asked):
            self._go_on_in(self.load_dir)
        super().prepare()
        check_given(self.pipeline, self.capture)
        check_names(self.pipeline)
        run_dir = self.get_base_dir()
        recorded = _recorded(run_dir)
        if self.own_checkpoint() is not None and recorded is not None and recorded.get("version") != RUN_VERSION:
            raise UserError(
                f"{run_dir} was written by version {recorded.get('version', '0.1')} and cannot be continued: start a "
                f"new run from its field with --load-dir {run_dir}/nerfstudio_models, without --timestamp."
            )
        if self.own_checkpoint() is not None and recorded is not None and recorded["asked"] != asked:
            differing = next(name for name in asked if asked[name] != recorded["asked"].get(name))
            raise UserError(
                f"{run_dir} was started with other options ({differing} was {recorded['asked'].get(differing)!r}): use "
                "a new --timestamp, or omit --timestamp and start from this run's field with --load-dir."
            )
        rounds = self.pipeline.rounds
        rounds.first_step = self._first_step(base)
        if recorded is not None and not _continues(recorded, asked):
            # The run has no checkpoint, only a schedule.
            (run_dir / SCHEDULE_FILE).unlink(missing_ok=True)
        schedule = RoundSchedule(run_dir, rounds)
        if self.max_num_iterations == 0:
            self.max_num_iterations = schedule.total_steps
        self.optimizers = {
            name: {**group, "scheduler": self._fitted(group["scheduler"], schedule)}
            for name, group in self.optimizers.items()
        }
        self.pipeline.run_dir = run_dir
        steps = {"first_step": rounds.first_step, "reconstruction_end": rounds.reconstruction_end}
        record = {**read_json(run_dir / RUN_FILE), "version": RUN_VERSION, **steps, "asked": asked}
        write_json(run_dir / RUN_FILE, record)

    def _check_named(self, run_dir: Path) -> None:
        """Refuse a field that was trained on other poses; the size of the photos may differ."""
        refuse_other_poses(run_dir, self._identity())

    def _read_photos_where_given(self) -> None:
        """Select nerfstudio-data if --data is given and the method's default is an embedded scene."""
        parser, data = self.pipeline.datamanager.dataparser, self.pipeline.datamanager.data
        if isinstance(parser, ProceduralDataParserConfig) and data is not None and data != parser.data:
            CONSOLE.print(
                f"Reading {data} with nerfstudio-data; for another dataparser, put its name after all other options.",
                markup=False,
            )
            self.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()

    def headline(self) -> str:
        """Lines with the method, the data, the run folder and the stages."""
        rounds, model = self.pipeline.rounds, self.pipeline.model
        folders = [folder.name for folder in self.pipeline.restyled_data]
        styles = " and ".join(f"“{style}”" for style in folders or (model.prompt, *model.more_prompts))
        parts = [] if rounds.first_step else [f"{rounds.reconstruct_steps} steps of reconstruction"]
        if rounds.rounds:
            parts.append(f"{rounds.rounds} × {rounds.retrain_steps} steps as {styles}")
        return f"{super().headline()}\n{', then '.join(parts)}"

    def _asked(self) -> dict[str, Any]:
        """The options that identify a run; the number of rounds may increase when it is resumed."""
        pipeline = self.pipeline
        rounds = asdict(pipeline.rounds)
        for progress in ("rounds", "first_step"):
            del rounds[progress]
        return {
            "method": self.method_name,
            **{name: _as_json(getattr(pipeline.model, name)) for name in _style_options()},
            "restyled_data": [str(folder.resolve()) for folder in pipeline.restyled_data],
            "style_weights": list(pipeline.style_weights),
            "masks": pipeline.masks_request,
            "num_style_views": pipeline.datamanager.num_style_views,
            "max_view_size": pipeline.datamanager.max_view_size,
            "densify": pipeline.datamanager.densify.decisive(),
            **rounds,
            **pipeline.restyle.decisive(),
        }

    def _go_on_in(self, checkpoints: Path | None) -> None:
        """Use the folder of the run that the checkpoints belong to."""
        assert checkpoints is not None
        run_dir = checkpoints.resolve().parent
        self.timestamp = run_dir.name
        self.experiment_name = run_dir.parent.parent.name
        self.output_dir = run_dir.parent.parent.parent

    def _first_step(self, base: Mapping[str, Any] | None) -> int:
        """First step of a run that starts from a trained field; 0 for a run that reconstructs it."""
        recorded = _recorded(self.get_base_dir())
        if self.own_checkpoint() is not None and recorded is not None:
            return recorded["first_step"]
        named = self.named_checkpoint()
        if named is None:
            return 0
        if base is not None and (named.parent.parent / RECONSTRUCTION).is_file():
            return base["reconstruction_end"]
        digits = named.stem.removeprefix("step-")
        if not digits.isdigit():
            raise UserError(
                f"The name {named.name} does not contain a step: use a checkpoint named by ns-train, such as "
                "step-000029999.ckpt."
            )
        return int(digits) + 1

    def _fitted(self, scheduler: Any, schedule: RoundSchedule) -> Any:
        if not isinstance(scheduler, StageSchedulerConfig):
            return scheduler
        return dataclasses.replace(
            scheduler,
            reconstruct_steps=schedule.reconstruction_end,
            retrain_steps=self.pipeline.rounds.retrain_steps,
            round_begins=tuple(each.begin for each in schedule.begun),
            first_step=self.pipeline.rounds.first_step,
        )


def _continues(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a run with these options is the recorded one."""
    return recorded.get("version") == RUN_VERSION and recorded["asked"] == asked


def _recorded(run_dir: Path) -> dict[str, Any] | None:
    """Read the record of a run of these methods; None for other runs, and for runs without a complete record."""
    recorded = read_json(run_dir / RUN_FILE)
    return recorded if recorded is not None and "asked" in recorded else None


def _style_options() -> list[str]:
    """The model options that determine the result of a round; the chunk size only affects memory."""
    inherited = {option.name for option in dataclasses.fields(FieldModelConfig)}
    return [
        option.name
        for option in dataclasses.fields(StyleModelConfig)
        if option.name not in inherited and option.name != "style_rays_per_chunk"
    ] + ["prompt"]


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class StyleTrainer(RunTrainer):
    """Trainer that can start from a trained field and handles requests from the viewer."""

    config: StyleTrainerConfig
    pipeline: StylePipeline

    @property
    def runner(self) -> RoundRunner:
        """The rounds of this training."""
        assert self.pipeline.runner is not None, "a trainer builds its pipeline for training"
        return self.pipeline.runner

    def train_to(self, total: int) -> None:
        """Train, and handle requests from the viewer between two steps."""
        runner = self.runner
        self._curves = Curves(runner.run_dir, runner.schedule.total_steps)
        if runner.schedule.end is not None:
            total = runner.schedule.end
        while True:
            try:
                super().train_to(total)
                step = self.step + 1
            except PlanChange:
                step = self.step
            with self.train_lock:
                if not runner.act(step, self):
                    return
            self._start_step, total = step, runner.schedule.total_steps
            for group in self.config.optimizers.values():
                if isinstance(group["scheduler"], StageSchedulerConfig):
                    group["scheduler"].reconstruct_steps = runner.schedule.reconstruction_end
                    group["scheduler"].round_begins = tuple(each.begin for each in runner.schedule.begun)
            writer.GLOBAL_BUFFER["max_iter"] = total
            if self.training_state == "completed":
                self.training_state = "training"

    def train_iteration(self, step: int) -> Any:
        """Make one step, and record its losses for the report."""
        loss, losses, metrics = super().train_iteration(step)
        self._curves.add(step, losses, metrics)
        return loss, losses, metrics

    def stage_at(self, step: int) -> tuple[str, int, int]:
        """The reconstruction, or the round, that a step belongs to."""
        return self.runner.stage_at(step)

    def _init_viewer_state(self) -> None:
        # nerfstudio's loop starts again after every request from the viewer, but the cameras are already drawn.
        if not hasattr(self.viewer_state, "camera_handles"):
            super()._init_viewer_state()

    def _update_viewer_state(self, step: int) -> None:
        if not isinstance(self.viewer_state, Viewer):
            super()._update_viewer_state(step)
            return
        # nerfstudio's own implementation stops the training while the camera is moved.
        self.pipeline.workbench.after_step(step)
        # The lock is free only between two steps: without a pause the viewer's threads may starve.
        time.sleep(LOCK_PAUSE)

    def _train_complete_viewer(self) -> None:
        """Keep the viewer open until a request arrives."""
        if not isinstance(self.viewer_state, Viewer):
            super()._train_complete_viewer()
            return
        self.training_state = "completed"
        self.viewer_state.training_complete()
        self.pipeline.workbench.rerender()
        self.say_where_it_is()
        while not self.runner.panel.pending:
            time.sleep(0.05)

    def load_named(self, state: dict[str, Any], path: Path) -> None:
        """Start the rounds from the field of a nerfacto run, or from the reconstruction of a run of these methods.

        Only the field is loaded, not the optimizers' state, whose learning rates and parameter groups differ.

        Raises:
            UserError: If the field does not fit, or has another frame.
        """
        run_dir = path.parent.parent
        reconstruction = run_dir / RECONSTRUCTION
        if not self.has_frame_of(run_dir):
            raise other_poses(run_dir)
        ours = reconstruction.is_file()
        weights = load_file(reconstruction) if ours else model_state(state)
        source = str(reconstruction if ours else path)
        self.pipeline.model.load_field(weights, source)
        self._start_step = self.config.pipeline.rounds.first_step
        self.pipeline.model.update_to_step(self._start_step)
        CONSOLE.print(f"Starting from the field in {source}", soft_wrap=True, markup=False)
