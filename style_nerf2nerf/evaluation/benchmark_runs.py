"""Train the fields that a benchmark compares: runs of `style-nerf2nerf-tiny` in this process, from one reconstruction.

On disk, below the benchmark's folder: `runs/<scene>/style-nerf2nerf-tiny/<name>/`, ordinary run folders. When an
interrupted benchmark is repeated, finished runs are loaded and unfinished ones resumed.
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
"""Number of frames of the path on which consistency is measured."""
ONLY = {
    "style_loss_mult": 0.0,
    "aligned_loss_mult": 0.0,
    "ray_loss_mult": 0.0,
    "rgb_loss_mult": 0.0,
    "style_every": 1,
    "style_windows": (1,),
}
"""Options that turn all losses off; a variant sets its own."""
RGB_LOSS = {**ONLY, "rgb_loss_mult": 1.0}
"""Mean squared difference between whole views, one view per step."""
PAPER_LOSS = {
    **ONLY,
    "style_loss_mult": 1.0,
    "aligned_loss_mult": 0.1,
    "aligned_layers": ("conv4_1", "conv4_2", "conv4_3", "conv4_4"),
}
"""Sliced Wasserstein distance of whole views and 0.1 × the aligned term, as released."""


@dataclass(frozen=True)
class BenchmarkScene:
    """A scene of a benchmark, which is reconstructed once."""

    folder: Path
    """Folder of the benchmark."""
    scene: str
    """Name of an embedded scene, or number of a random one."""
    resolution: int
    """Height and width of its pictures in pixels."""
    views: int
    """Number of training views."""
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
        """Load the run whose field all variants start from; it is trained first if it does not exist."""
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
        """Train one round from the reconstruction.

        Args:
            name: Name of the run.
            model: Options of the field that differ from the method's.
            restyled: Folder of restyled pictures; None: the embedded models restyle.
            prompt: Description of the style.
            share_attention: Whether the views share attention while they are restyled.
            retrain_steps: Steps of the round; None: the scene's.

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
    """Train a configuration like `ns-train`, in this process; a finished run is only loaded.

    Raises:
        SystemExit: If an option cannot be used; the message has been printed, as by the command.
    """
    config.set_timestamp()
    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def viewpoints(pipeline: StylePipeline, num_held_out: int) -> Viewpoints:
    """Choose the cameras from which the fields of a capture are rendered.

    Args:
        pipeline: Pipeline of any field of the capture.
        num_held_out: Largest number of held-out cameras.
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
    """Read the views of a finished round in its first style."""
    folder = RoundFolder(run_dir, number).style_folder(0) / "images"
    return torch.stack([read_image(folder / f"{name}.png") for name in names])
