"""Dataparser for the posed renders of one object (`render_folders`): NNN.png with camera NNN.npy, on white."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from eschernet_prior.base.cameras import camera_to_world, focal_length
from eschernet_prior.base.dataset_io import OBJECT_FRAME
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import check_picture, picture_info
from eschernet_prior.data.render_folders import read_pose
from eschernet_prior.frames import PRIOR_FOV_DEGREES

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig


@dataclass
class ObjaverseDataParserConfig(DataParserConfig):
    """Renders of one object in the layout of Zero-1-to-3's Objaverse renders and EscherNet's GSO renders."""

    _target: type = field(default_factory=lambda: ObjaverseDataParser)
    data: Path = Path()
    """The object's folder."""
    num_views: int = 3
    """Number of training views; the others are held out."""
    first_view: int | None = None
    """Index of the first training view in the sorted list; default: a random choice by the seed."""
    fov_degrees: float = PRIOR_FOV_DEGREES
    """Field of view across a render's width, degrees."""
    seed: int = 0
    """Seed of the choice of training views."""

    def prepare(self, run: TrainerConfig) -> None:
        """Refuse options and renders that cannot be used; called by the trainer's configuration.

        Raises:
            UserError: If there are too few views, or one cannot be read or differs in size from the first.
        """
        sizes = {path: check_picture(path).size for path in self.views()}
        first, size = next(iter(sizes.items()))
        other = next((path for path in sizes if sizes[path] != size), None)
        if other is not None:
            raise UserError(
                f"{other} has {' × '.join(map(str, sizes[other]))} pixels and {first.name} {' × '.join(map(str, size))}"
                ": all renders of an object must have the same size, so render it again."
            )

    def views(self) -> list[Path]:
        """The object's renders that have a camera.

        Raises:
            UserError: If the folder does not exist or has too few views.
        """
        if not self.data.is_dir():
            raise UserError(f"There is no folder {self.data}: set --data to the folder of one object's renders.")
        found = [path for path in sorted(self.data.glob("*.png")) if path.with_suffix(".npy").is_file()]
        if self.num_views < 1 or len(found) < self.num_views + 1:
            raise UserError(
                f"{self.data} has {len(found)} renders NNN.png with a camera NNN.npy: --num-views must be at least 1 "
                "and leave at least one held-out view."
            )
        return found


@dataclass
class ObjaverseDataParser(DataParser):
    """Reads an object's renders; poses are not transformed."""

    config: ObjaverseDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **_: object) -> DataparserOutputs:
        """The outputs of one split: "train", or "val" and "test", which have the same held-out views."""
        config, views = self.config, self.config.views()
        if config.first_view is None:
            order = np.random.default_rng(config.seed).permutation(len(views))
        else:
            order = np.roll(np.arange(len(views)), -config.first_view)
        chosen = order[: config.num_views] if split == "train" else np.sort(order[config.num_views :])
        files = [views[index] for index in chosen]
        width, height = picture_info(files[0]).size
        poses = torch.stack([_camera(path.with_suffix(".npy")) for path in files])
        focal = focal_length(config.fov_degrees, width)
        return DataparserOutputs(
            image_filenames=files,
            cameras=Cameras(
                camera_to_worlds=camera_to_world(poses)[:, :3].float(),
                fx=focal,
                fy=focal,
                cx=width / 2,
                cy=height / 2,
                width=width,
                height=height,
                camera_type=CameraType.PERSPECTIVE,
            ),
            alpha_color=torch.ones(3),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
            metadata={OBJECT_FRAME: True},
        )


def _camera(path: Path) -> Float[Tensor, "4 4"]:
    """Read a world-to-camera pose with OpenGL axes.

    Raises:
        UserError: If the file does not contain a camera.
    """
    pose = read_pose(path)
    if pose is None:
        raise UserError(
            f"The camera {path} cannot be read: it must be a rigid 3×4 matrix, world to camera, saved by numpy."
        )
    return pose
