"""The field as the photos made it, before any round: kept in the run folder, and had again beside the restyled one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from style_nerf2nerf.model import StyleModel
from style_nerf2nerf.rounds.styled_run import StyledRun

RECONSTRUCTION = "reconstruction.safetensors"
"""The field as the photos made it, in the run folder: where another style starts from."""


def original_field(pipeline: StyledRun, run_dir: Path) -> StyleModel | None:
    """A second field, as the run's was before the first round, frozen and beside the pipeline's on its device.

    Random numbers that others draw stay what they would have been.

    Args:
        pipeline: of the run.
        run_dir: the run folder, wherever it lies now.

    Returns:
        The field; None before the reconstruction has ended.

    Raises:
        UserError: the file is of another field.
    """
    model = pipeline.model
    path = run_dir / RECONSTRUCTION
    if not path.is_file():
        return None
    with torch.random.fork_rng(devices=[]):
        original: StyleModel = model.config.setup(
            scene_box=model.scene_box,
            num_train_data=model.num_train_data,
            metadata=pipeline.datamanager.train_dataset.metadata,
            device=str(model.device),
        )
    original.load_field(load_file(path), str(path))
    return original.to(model.device).eval().requires_grad_(False)
