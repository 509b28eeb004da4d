"""Trainings that benchmarks compare: ordinary runs of `style-nerf2nerf-tiny` in this process, from one reconstruction.

On disk, below the benchmark's folder: `runs/<scene>/style-nerf2nerf-tiny/<name>/`, each a run folder like any other. A
benchmark that was interrupted repeats its command: a run that is finished is loaded, one that is not is continued.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from nerfstudio.scripts.train import _set_random_seed
from torch import Tensor

from eschernet_prior.base.images import read_image
from eschernet_prior.base.sampling import evenly_spaced
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from style_nerf2nerf.evaluation.field_scores import Viewpoints
from style_nerf2nerf.pipeline import StylePipeline
from style_nerf2nerf.rounds.report.previews import STOPS, turntable_path
from style_nerf2nerf.rounds.storage import RoundFolder
from style_nerf2nerf.trainer import StyleTrainer, StyleTrainerConfig

PATH_FRAMES = 16
"""Of the path that consistency is measured on."""
ONLY = {
    "style_loss_mult": 0.0,
    "aligned_loss_mult": 0.0,
    "ray_loss_mult": 0.0,
    "rgb_loss_mult": 0.0,
    "style_every": 1,
    "style_windows": (1,),
}
"""No loss at all; a variant sets its own."""
RGB_LOSS = {**ONLY, "rgb_loss_mult": 1.0}
"""The mean squared difference between whole views, one view a step."""
PAPER_LOSS = {
    **ONLY,
    "style_loss_mult": 1.0,
    "aligned_loss_mult": 0.1,
    "aligned_layers": ("conv4_1", "conv4_2", "conv4_3", "conv4_4"),
}
"""Sliced Wasserstein distance of whole views and 0.1 × the aligned term, as released."""


@dataclass(frozen=True)
class BenchmarkScene:
    """What a benchmark reconstructs once."""

    folder: Path
    """Of the benchmark."""
    scene: str
    """The name of an embedded scene, or a whole number."""
    resolution: int
    """Of its pictures in pixels a side."""
    views: int
    """Training views."""
    reconstruct_steps: int
    retrain_steps: int

    @property
    def parser(self) -> ProceduralDataParserConfig:
        """The scene's cameras and pictures."""
        return ProceduralDataParserConfig(scene=self.scene, resolution=self.resolution, num_views=self.views)

    def run_dir(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / self.scene / "style-nerf2nerf-tiny" / name

    def _config(self, name: str) -> StyleTrainerConfig:
        from style_nerf2nerf.config import style_nerf2nerf_tiny

        config = cast(StyleTrainerConfig, copy.deepcopy(style_nerf2nerf_tiny.config))
        config.output_dir, config.experiment_name, config.timestamp = self.folder / "runs", self.scene, name
        config.vis = "tensorboard"
        config.logging.local_writer.enable = False
        config.pipeline.datamanager.dataparser = self.parser
        config.pipeline.turntable_frames = 0
        config.pipeline.rounds.reconstruct_steps = self.reconstruct_steps
        config.pipeline.rounds.retrain_steps = self.retrain_steps
        config.pipeline.rounds.rounds = 1
        return config

    def reconstruction(self) -> StyleTrainer:
        """The run with the field that all variants start from; trained where it is not there."""
        config = self._config("reconstruction")
        config.pipeline.rounds.rounds = 0
        return train_here(config)

    def variant(
        self,
        name: str,
        model: Mapping[str, Any],
        restyled: Path | None = None,
        prompt: str | None = None,
        share_attention: bool = True,
        retrain_steps: int | None = None,
    ) -> StyleTrainer:
        """One round from the reconstruction.

        Args:
            name: Of the run.
            model: Options of the field that differ from the method's.
            restyled: a folder of restyled pictures; None: the embedded models restyle.
            prompt: The style, in words.
            share_attention: Whether the views see each other while they are restyled.
            retrain_steps: Of the round; None: the scene's.

        Returns:
            The finished run.
        """
        config = self._config(name)
        config.load_dir = self.run_dir("reconstruction") / "nerfstudio_models"
        for option, value in model.items():
            setattr(config.pipeline.model, option, value)
        config.pipeline.restyled_data = () if restyled is None else (restyled,)
        config.pipeline.model.prompt = prompt or config.pipeline.model.prompt
        config.pipeline.restyle.share_attention = share_attention
        config.pipeline.rounds.retrain_steps = retrain_steps or self.retrain_steps
        return train_here(config)


def train_here(config: StyleTrainerConfig) -> StyleTrainer:
    """What `ns-train` does with a configuration, in this process; a finished run is only loaded.

    Raises:
        SystemExit: After a sentence on the screen, as the command line ends.
    """
    config.set_timestamp()
    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def viewpoints(pipeline: StylePipeline, num_held_out: int) -> Viewpoints:
    """From where the fields of a capture are looked at.

    Args:
        pipeline: Of any of them.
        num_held_out: Held-out cameras at most.
    """
    manager = pipeline.datamanager
    cameras = manager.style_cameras()
    size = max(int(cameras.height[0]), int(cameras.width[0]))
    return Viewpoints(
        path=turntable_path(cameras, PATH_FRAMES, size, evenly_spaced(STOPS, len(cameras))),
        restyled=cameras,
        held_out=manager.held_out_views(num_held_out)[1],
        scene_box=manager.train_dataset.scene_box,
    )


def restyled_views(run_dir: Path, number: int, names: list[str]) -> Float[Tensor, "views 3 height width"]:
    """The views of a finished round, in the first of its styles."""
    folder = RoundFolder(run_dir, number).style_folder(0) / "images"
    return torch.stack([read_image(folder / f"{name}.png") for name in names])
