"""Read restyled views from disk: a round's folder, or any nerfstudio dataset with depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.captures.transforms_file import DISTORTION
from eschernet_prior.base.dataset_io import DEPTH_UNIT
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from eschernet_prior.base.images import read_image
from style_nerf2nerf.reprojection import ViewCameras


@dataclass(frozen=True)
class RestyledViews:
    """All views of a round."""

    images: Float[Tensor, "views 3 height width"]
    """The restyled views in [0, 1]."""
    originals: Float[Tensor, "views 3 height width"] | None
    """The renders from which they were restyled, if the folder has them."""
    depths: Float[Tensor, "views 1 height width"]
    """Z-depth in the poses' units, 0 without a surface."""
    cameras: ViewCameras
    prompt: str | None
    """The prompt, if the folder records it."""


def read_restyled_views(folder: Path) -> RestyledViews:
    """Read a dataset of restyled views.

    Args:
        folder: a folder with a transforms.json whose frames have pictures and depth.

    Raises:
        UserError: If files are missing, or views cannot be compared.
    """
    meta = read_json(folder / "transforms.json")
    if meta is None or len(meta.get("frames", [])) < 2:
        raise UserError(
            f"There is no dataset of at least two views in {folder}: use a folder such as RUN/restyled/round_01."
        )
    frames = sorted(meta["frames"], key=lambda frame: frame["file_path"])
    without = [frame["file_path"] for frame in frames if "depth_file_path" not in frame]
    if without:
        raise UserError(f"{without[0]} in {folder} has no depth, which is needed to compare views.")
    sizes = {(_number(meta, frame, "h"), _number(meta, frame, "w")) for frame in frames}
    if len(sizes) > 1:
        raise UserError(f"The views in {folder} have different sizes: views can only be compared at one.")
    if any({**meta, **frame}.get("camera_model", "OPENCV") not in ("OPENCV", "PINHOLE") for frame in frames):
        raise UserError("Views can only be compared between perspective cameras: convert the others first.")
    ((height, width),) = sizes
    images = torch.stack([read_image(folder / frame["file_path"]) for frame in frames])
    renders = [folder / "renders" / Path(frame["file_path"]).name for frame in frames]
    request = (read_json(folder / "manifest.json") or {}).get("request", {})
    depths = [torch.from_numpy(np.load(folder / frame["depth_file_path"])).float() * DEPTH_UNIT for frame in frames]
    return RestyledViews(
        images=images,
        originals=torch.stack([read_image(path) for path in renders]) if all(p.is_file() for p in renders) else None,
        depths=torch.stack(depths)[:, None],
        cameras=ViewCameras(
            camera_to_worlds=torch.tensor([frame["transform_matrix"] for frame in frames]),
            focal=torch.tensor([[_number(meta, frame, name) for name in ("fl_x", "fl_y")] for frame in frames]),
            centre=torch.tensor([[_number(meta, frame, name) for name in ("cx", "cy")] for frame in frames]),
            height=int(height),
            width=int(width),
            distortion=torch.tensor([[_number(meta, frame, name, 0.0) for name in DISTORTION] for frame in frames]),
        ),
        prompt=request.get("settings", {}).get("prompt"),
    )


def _number(meta: dict[str, Any], frame: dict[str, Any], name: str, default: float | None = None) -> float:
    """Read an intrinsic of a camera, from its frame or from the top of the file."""
    value = frame.get(name, meta.get(name, default))
    if value is None:
        raise UserError(f"The cameras of {frame['file_path']} lack {name}: write the dataset again.")
    return float(value)
