"""Dataparser for the procedural scenes: rendered once into a cache folder that any nerfstudio dataparser can read.

On disk, one folder per scene and choice of options: `transforms.json` with the split, `images/` (RGB, or RGBA of an
object) and `depth/` (float32, along the optical axis, in thousandths of a scene unit; 0 without a surface). Poses are
exact and are not rotated, centred or scaled.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import get_progress
from torch import Tensor

from eschernet_prior.base.cameras import focal_length, spherical_views
from eschernet_prior.base.dataset_io import DEPTH_UNIT, OBJECT_FRAME
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, cache_root, write_json
from eschernet_prior.base.images import write_image
from eschernet_prior.procedural.raytracer import RENDERER_VERSION
from eschernet_prior.procedural.scenes import Scene, find_scene, render

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

FIELD_OF_VIEW = 49.13
"""Degrees across an image, as in the prior's training data."""
MIN_RESOLUTION = 8
MIN_CLEARANCE = 0.05
"""Least height of a camera above the ground, scene units."""
PIXELS_AT_A_TIME = 1 << 17
LAYOUT_VERSION = 2
"""Version of what is in a folder; since 2, held-out views follow each other around the scene."""


@dataclass
class ProceduralDataParserConfig(DataParserConfig):
    """A procedural scene, ray-traced on first use: exact cameras, depth and alpha, no download."""

    _target: type = field(default_factory=lambda: ProceduralDataParser)
    data: Path = Path("procedural-data")
    """Only used as the name of the output folder."""
    scene: str = "cottage"
    """An embedded scene (cottage, bear, tea), or an integer, the seed of a random object."""
    num_views: int = 40
    """Number of training views."""
    num_eval_views: int = 8
    """Number of held-out views, at other positions."""
    resolution: int = 64
    """Height and width of the images in pixels."""
    background: bool = True
    """Show a ground and a sky; without them, the object is on white and images have alpha."""
    radius: float = 1.6
    """Distance of the cameras from the scene's centre; the object's largest side is 1."""
    min_elevation: float = 5.0
    """Lowest camera in degrees above the horizon."""
    max_elevation: float = 55.0
    """Highest camera in degrees above the horizon."""
    seed: int = 0
    """Seed of the camera positions."""

    def prepare(self, run: TrainerConfig) -> None:
        """Refuse options that cannot be used; called by the trainer's configuration."""
        self.check()

    def check(self) -> Scene:
        """Check the options and return the scene.

        Raises:
            UserError: If the scene is unknown, there are too few views or pixels, or cameras are inside the scene or
                below its ground.
        """
        scene = find_scene(self.scene, self.background)
        if self.num_views < 1 or self.num_eval_views < 1 or self.resolution < MIN_RESOLUTION:
            raise UserError(
                f"procedural-data needs at least 1 training view, 1 held-out view and {MIN_RESOLUTION} pixels per side."
            )
        if not 1 <= self.radius <= 5 or not -85 <= self.min_elevation <= self.max_elevation <= 85:
            raise UserError(
                "Cameras of procedural-data must be 1 to 5 from the centre, at elevations between −85 and 85 degrees, "
                "the lowest below the highest."
            )
        floor = scene.ground_height + MIN_CLEARANCE
        if self.background and self.radius * math.sin(math.radians(self.min_elevation)) < floor:
            lowest = math.ceil(math.degrees(math.asin(max(floor / self.radius, -1.0))))
            raise UserError(
                f"Cameras would be below the ground: choose --min-elevation {lowest} or more, or --background False."
            )
        return scene


def cached_scene(config: ProceduralDataParserConfig) -> Path:
    """Find the folder of the rendered scene, or render it.

    Its name is a hash of everything that the files depend on: options, the scene's parts, the ray tracer's version and
    that of the folder's layout.

    Raises:
        UserError: If options cannot be used, or the cache folder is not writable.
    """
    scene = config.check()
    options = {name: value for name, value in asdict(config).items() if name not in ("_target", "data")}
    content = json.dumps([RENDERER_VERSION, LAYOUT_VERSION, FIELD_OF_VIEW, options, repr(scene)], sort_keys=True)
    folder = cache_root() / "procedural" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if not folder.is_dir():
        try:
            with atomic_path(folder, replace=False) as partial:
                _render_scene(scene, config, partial)
        except OSError as error:
            raise UserError(
                f"The rendered scene cannot be written to {folder.parent} ({error.strerror}): set "
                "STYLE_NERF2NERF_CACHE to a writable folder."
            ) from error
    return folder


def split_poses(config: ProceduralDataParserConfig) -> dict[str, Float[Tensor, "views 4 4"]]:
    """Training and held-out cameras: two independent spirals over the same band of the sphere.

    Training cameras are in the order of their spiral, from the lowest to the highest. Held-out cameras are in the order
    in which they stand around the scene, because `ns-render interpolate` goes straight from each to the next.
    """
    radii, elevations = (config.radius, config.radius), (config.min_elevation, config.max_elevation)
    counts = {"train": config.num_views, "eval": config.num_eval_views}
    poses = {
        name: spherical_views(count, radii, elevations, torch.Generator().manual_seed(2 * config.seed + index))
        for index, (name, count) in enumerate(counts.items())
    }
    return {**poses, "eval": around(poses["eval"])}


def around(poses: Float[Tensor, "views 4 4"]) -> Float[Tensor, "views 4 4"]:
    """Sort cameras by their azimuth about the world's z, starting after the widest gap.

    With eight cameras or more of a spiral, the straight line from each to the next stays more than 0.7 of their
    distance from the centre; with fewer they are too far apart for that.
    """
    azimuths = torch.atan2(poses[:, 1, 3], poses[:, 0, 3])
    order = azimuths.argsort()
    gaps = (azimuths[order].roll(-1) - azimuths[order]) % (2 * math.pi)
    return poses[order.roll(-1 - int(gaps.argmax()))]


def _render_scene(scene: Scene, config: ProceduralDataParserConfig, folder: Path) -> None:
    poses = split_poses(config)
    files = {split: [f"{split}_{index:03d}" for index in range(len(poses[split]))] for split in poses}
    names, cameras = [name for split in files.values() for name in split], torch.cat(list(poses.values()))
    size, at_a_time = config.resolution, max(1, PIXELS_AT_A_TIME // config.resolution**2)
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    with get_progress(f"Ray-tracing {len(names)} views of “{config.scene}”", suffix="views") as progress:
        task = progress.add_task("", total=len(names))
        for first in range(0, len(names), at_a_time):
            views = render(scene, cameras[first : first + at_a_time], size, size, FIELD_OF_VIEW)
            images = views.colour if config.background else views.straight_rgba()
            for name, image, depth in zip(names[first:], images, views.depth):
                write_image(folder / "images" / f"{name}.png", image.permute(2, 0, 1))
                np.save(folder / "depth" / f"{name}.npy", depth[..., 0].numpy() / np.float32(DEPTH_UNIT))
            progress.advance(task, len(images))
    focal = focal_length(FIELD_OF_VIEW, size)
    held_out = [f"images/{name}.png" for name in files["eval"]]
    meta = {
        "camera_model": "OPENCV",
        "w": size,
        "h": size,
        "fl_x": focal,
        "fl_y": focal,
        "cx": size / 2,
        "cy": size / 2,
        "train_filenames": [f"images/{name}.png" for name in files["train"]],
        "val_filenames": held_out,
        "test_filenames": held_out,
        "frames": [
            {
                "file_path": f"images/{name}.png",
                "depth_file_path": f"depth/{name}.npy",
                "transform_matrix": pose.tolist(),
            }
            for name, pose in zip(names, cameras)
        ],
    }
    write_json(folder / "transforms.json", meta)


@dataclass
class ProceduralDataParser(DataParser):
    """Reads a procedural scene, which is rendered unless it is cached."""

    config: ProceduralDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **_: object) -> DataparserOutputs:
        """The outputs of one split: "train", or "val" and "test", which have the same held-out views."""
        folder = cached_scene(self.config)
        meta = json.loads((folder / "transforms.json").read_text("utf8"))
        chosen = set(meta[f"{split}_filenames"])
        frames = [frame for frame in meta["frames"] if frame["file_path"] in chosen]
        cameras = Cameras(
            camera_to_worlds=torch.tensor([frame["transform_matrix"] for frame in frames])[:, :3],
            fx=meta["fl_x"],
            fy=meta["fl_y"],
            cx=meta["cx"],
            cy=meta["cy"],
            width=meta["w"],
            height=meta["h"],
            camera_type=CameraType.PERSPECTIVE,
        )
        return DataparserOutputs(
            image_filenames=[folder / frame["file_path"] for frame in frames],
            cameras=cameras,
            alpha_color=None if self.config.background else torch.ones(3),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
            metadata={
                "depth_filenames": [folder / frame["depth_file_path"] for frame in frames],
                "depth_unit_scale_factor": DEPTH_UNIT,
                OBJECT_FRAME: not self.config.background,
            },
        )
