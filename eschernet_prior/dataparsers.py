"""nerfstudio's way to the embedded scenes: rendered once, kept in a cache folder that any nerfstudio dataparser reads.

On disk, one folder per choice of options: ``transforms.json`` with the split, ``images/`` (RGB, or RGBA of an object)
and ``depth/`` (float32, along the optical axis, in thousandths of a scene unit). Poses are exact, so nothing is turned,
centred or scaled.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import get_progress
from torch import Tensor

from eschernet_prior.cameras import focal_length, spherical_views
from eschernet_prior.datasets import DEPTH_UNIT, write_image
from eschernet_prior.errors import UserError
from eschernet_prior.files import atomic_path, write_json
from eschernet_prior.scenes import EMBEDDED, Rendering, Scene, embedded_scene, random_scene, render

RENDERER_VERSION = 1
"""Counts changes of the embedded scenes' looks, so that no older picture is taken for a newer one."""
FIELD_OF_VIEW = 49.13
"""Degrees across an image: that of the prior's training data."""
MIN_RESOLUTION = 8


@dataclass
class ProceduralDataParserConfig(DataParserConfig):
    """An embedded scene, ray-traced on first use: exact cameras, depth and alpha, no download."""

    _target: type = field(default_factory=lambda: ProceduralDataParser)
    data: Path = Path("procedural-data")
    """Only names the outputs' folder."""
    scene: str = "cottage"
    """The name of an embedded scene, or a number: the toy that this seed gives."""
    num_views: int = 40
    """Views to train on."""
    num_eval_views: int = 8
    """Held-out views, elsewhere on the same band of the sphere."""
    resolution: int = 64
    """Height and width of the images in pixels."""
    background: bool = True
    """A ground under a sky; without, the object floats on white and its images have alpha."""
    radius: float = 1.8
    """Distance of the cameras from the scene's centre; the object's largest side is 1."""
    min_elevation: float = 5.0
    """Lowest camera in degrees above the horizon."""
    max_elevation: float = 55.0
    """Highest camera in degrees above the horizon."""
    seed: int = 0
    """Seed of the camera positions."""

    def check(self) -> Scene:
        """The scene that the options name.

        Raises:
            UserError: an unknown scene, too few views or pixels, or cameras inside the scene.
        """
        if not self.scene.isdecimal() and self.scene not in EMBEDDED:
            raise UserError(
                f"There is no embedded scene “{self.scene}”: choose {', '.join(EMBEDDED)}, or a number as a seed."
            )
        if self.num_views < 2 or self.num_eval_views < 1 or self.resolution < MIN_RESOLUTION:
            raise UserError(
                f"procedural-data needs at least 2 training views, 1 held-out view and {MIN_RESOLUTION} pixels a side."
            )
        if self.radius < 1 or not -10 <= self.min_elevation <= self.max_elevation <= 85:
            raise UserError(
                "procedural-data's cameras must be at least 1 from the centre, between −10 and 85 degrees of elevation."
            )
        if self.scene.isdecimal():
            return random_scene(int(self.scene), self.background)
        return embedded_scene(self.scene, self.background)


def cache_root() -> Path:
    """Where rendered scenes are kept: $STYLE_NERF2NERF_CACHE, or a folder in the user's cache."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("STYLE_NERF2NERF_CACHE", user_cache / "style-nerf2nerf"))


def cached_scene(config: ProceduralDataParserConfig) -> Path:
    """The folder that holds the rendered scene; it is rendered first where it is not there.

    Raises:
        UserError: options that cannot work.
    """
    scene = config.check()
    options = {name: value for name, value in asdict(config).items() if name not in ("_target", "data")}
    digest = hashlib.sha256(json.dumps([RENDERER_VERSION, options], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_root() / "procedural" / digest
    if not (folder / "transforms.json").is_file():
        with atomic_path(folder) as partial:
            _render_scene(scene, config, partial)
    return folder


def _render_scene(scene: Scene, config: ProceduralDataParserConfig, folder: Path) -> None:
    elevations = (config.min_elevation, config.max_elevation)
    poses, names = [], []
    for split, count, seed in (("train", config.num_views, 0), ("eval", config.num_eval_views, 1)):
        generator = torch.Generator().manual_seed(2 * config.seed + seed)
        poses.append(spherical_views(count, (config.radius, config.radius), elevations, generator))
        names += [f"{split}_{index:03d}" for index in range(count)]
    focal, size = focal_length(FIELD_OF_VIEW, config.resolution), config.resolution
    frames = []
    with get_progress(f"Ray-tracing {len(names)} views of “{config.scene}”", suffix="views") as progress:
        for name, pose in progress.track(list(zip(names, torch.cat(poses)))):
            view = render(scene, pose[None], size, size, FIELD_OF_VIEW)
            image = view.colour if config.background else _with_alpha(view)
            write_image(folder / "images" / f"{name}.png", image[0].permute(2, 0, 1))
            with atomic_path(folder / "depth" / f"{name}.npy") as partial:
                np.save(partial, view.depth[0, ..., 0].numpy() / DEPTH_UNIT)
            frames.append(
                {
                    "file_path": f"images/{name}.png",
                    "depth_file_path": f"depth/{name}.npy",
                    "transform_matrix": pose.tolist(),
                }
            )
    intrinsics = {"w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2}
    files = [frame["file_path"] for frame in frames]
    split = {"train_filenames": files[: config.num_views]} | {
        f"{name}_filenames": files[config.num_views :] for name in ("val", "test")
    }
    write_json(folder / "transforms.json", {"camera_model": "OPENCV", **intrinsics, **split, "frames": frames})


def _with_alpha(view: Rendering) -> Float[Tensor, "views height width 4"]:
    """Colour not yet blended with the white behind it, and alpha: blending once gives the rendered picture again."""
    own = (view.colour - (1 - view.alpha)) / view.alpha.clamp_min(1e-4)
    return torch.cat([own.clamp(0, 1), view.alpha], -1)


@dataclass
class ProceduralDataParser(DataParser):
    """Reads an embedded scene, rendering it first where it is not cached."""

    config: ProceduralDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **_: object) -> DataparserOutputs:
        folder = cached_scene(self.config)
        meta = json.loads((folder / "transforms.json").read_text("utf8"))
        chosen = set(meta[f"{split}_filenames"])
        frames = [frame for frame in meta["frames"] if frame["file_path"] in chosen]
        poses = torch.tensor([frame["transform_matrix"] for frame in frames])[:, :3]
        cameras = Cameras(
            poses,
            meta["fl_x"],
            meta["fl_y"],
            meta["cx"],
            meta["cy"],
            meta["w"],
            meta["h"],
            camera_type=CameraType.PERSPECTIVE,
        )
        return DataparserOutputs(
            image_filenames=[folder / frame["file_path"] for frame in frames],
            cameras=cameras,
            alpha_color=None if self.config.background else torch.ones(3),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
        )
