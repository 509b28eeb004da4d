"""The pipeline: a field that is reconstructed from photos and then restyled in rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.viewer.viewer_elements import ViewerElement
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from eschernet_prior.base.errors import exit_on_user_error
from eschernet_prior.base.field import check_state, model_state
from eschernet_prior.base.trainer import RunTrainer
from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.model import StyleModel
from style_nerf2nerf.options import StylePipelineOptions
from style_nerf2nerf.rounds.losses import Retraining
from style_nerf2nerf.rounds.report.scores import explained
from style_nerf2nerf.rounds.runner import RoundRunner
from style_nerf2nerf.rounds.viewer.panel import StyleMixer, ViewControls
from style_nerf2nerf.rounds.viewer.workbench import Workbench


@dataclass
class StylePipelineConfig(StylePipelineOptions):
    """Configuration of the pipeline from photos to a restyled field."""

    _target: type = field(default_factory=lambda: StylePipeline)


class StylePipeline(VanillaPipeline):
    """A field that is reconstructed from photos and then restyled in rounds."""

    config: StylePipelineOptions
    datamanager: StyleDataManager

    def __init__(
        self,
        config: StylePipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        """Build data manager and field, and for training ("val") the rounds, which load the weights of the losses."""
        with exit_on_user_error():
            super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
            self.runner: RoundRunner | None = None
            """State machine of the stages of a training; None if the field is only evaluated or viewed."""
            self.mixer: StyleMixer | None = None
            view = ViewControls(restyled_views=test_mode == "val")
            controls: list[ViewerElement] = []
            if test_mode == "val":
                config.check()
                config.advise()
                self.runner = RoundRunner(self, view.status)
                if config.num_styles > 1:
                    self.mixer = StyleMixer(config.style_labels, config.initial_weights)
                controls = [*(self.mixer.sliders if self.mixer else []), *self.runner.panel.elements]
            else:
                view.status.show("A finished run.")
            panel = self.runner.panel if self.runner else None
            self.workbench = Workbench(self, config.run_dir, view, controls, self._retraining, panel)
            if self.runner is not None:
                self.runner.on_change = self.workbench.rerender

    def _retraining(self) -> Retraining | None:
        """The views that the field is being retrained on; None outside of a round."""
        return None if self.runner is None else self.runner.retraining

    @property
    def style_weights(self) -> tuple[float, ...]:
        """The current share of each style; with several styles, the values of the viewer's sliders."""
        return (1.0,) if self.mixer is None else self.mixer.weights

    @property
    def model(self) -> StyleModel:
        """The field."""
        return cast(StyleModel, super().model)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint of this method; weights that do not fit are refused."""
        with exit_on_user_error():
            check_state(self.model.state_dict(), model_state({"pipeline": loaded_state}), "The checkpoint")
        super().load_pipeline(loaded_state, step)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The callbacks of data manager, model and rounds."""
        trainer = training_callback_attributes.trainer
        stages = self.runner
        assert stages is not None
        assert isinstance(trainer, RunTrainer)
        stages.attach(trainer)
        return [
            *super().get_training_callbacks(training_callback_attributes),
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=lambda step: stages.enter(step, trainer),
            ),
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.AFTER_TRAIN],
                func=lambda step: stages.leave(trainer),
            ),
        ]

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Compute the losses of a step: on photos during the reconstruction, on restyled views in a round."""
        assert self.runner is not None, "only a training has stages"
        if self.runner.number == 0:
            return super().get_train_loss_dict(step)
        return self.runner.retrain_losses(step)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Average metrics over the held-out photos; `ns-eval` of a restyled field also gets its style distance."""
        metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
        if self.runner is not None or self.config.run_dir is None:
            return metrics
        return explained(metrics, self, self.config.run_dir)
