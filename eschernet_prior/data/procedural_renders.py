"""Render procedural scenes as folders of posed renders (see `render_folders`), each scene once.

Scene `s` is `scenes.random_scene(s)`, an object on white with longest side 1, seen at the distances and with the field
of view of the prior's training. Scenes from `HELD_OUT` on are for evaluation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nerfstudio.utils.rich_utils import get_progress
from PIL import Image

from eschernet_prior.base.cameras import spherical_views, world_to_camera
from eschernet_prior.base.files import atomic_path
from eschernet_prior.cape import RADIUS_RANGE
from eschernet_prior.frames import PRIOR_FOV_DEGREES
from eschernet_prior.procedural.scenes import random_scene, render

FIRST_HELD_OUT = 1_000_000
"""Number of the first scene that is never trained on."""
ELEVATIONS = (-10.0, 70.0)
"""Lowest and highest elevation of the cameras, degrees."""


def render_scenes(folder: Path, seeds: Sequence[int], views: int, size: int) -> None:
    """Render scenes into subfolders named after their seeds, unless they exist.

    Args:
        folder: The parent of the subfolders, each of which is written atomically.
        seeds: The scenes.
        views: Number of viewpoints of each scene.
        size: Height and width of a render in pixels.
    """
    missing = [seed for seed in seeds if not scene_folder(folder, seed).is_dir()]
    if not missing:
        return
    with get_progress("Rendering scenes", suffix="scenes/s") as progress:
        for seed in progress.track(missing):
            with atomic_path(scene_folder(folder, seed)) as partial:
                _render_scene(partial, seed, views, size)


def scene_folder(folder: Path, seed: int) -> Path:
    """Folder of a scene's renders."""
    return folder / f"{seed:07d}"


@torch.no_grad()
def _render_scene(folder: Path, seed: int, views: int, size: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    poses = spherical_views(views, RADIUS_RANGE, ELEVATIONS, generator)
    shown = render(random_scene(seed), poses, size, size, PRIOR_FOV_DEGREES)
    pixels = (shown.straight_rgba() * 255).round().to(torch.uint8).numpy()
    for number, (image, pose) in enumerate(zip(pixels, world_to_camera(poses))):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
        np.save(folder / f"{number:03d}.npy", pose[:3].numpy())
