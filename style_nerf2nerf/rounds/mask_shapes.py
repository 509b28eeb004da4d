"""A box or a sphere in the scene that limits what a round may change, and the masks that it makes of the views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor
from viser.transforms import SO3

from eschernet_prior.base.files import atomic_path, read_json, write_json
from eschernet_prior.base.images import write_image

if TYPE_CHECKING:
    from style_nerf2nerf.rendering import RenderedView

SHAPE_FILE = "shape.json"


def masks_folder(run_dir: Path, number: int) -> Path:
    """Where the masks are that a shape in the viewer makes for a round (counted from 1)."""
    return run_dir / "masks" / f"round_{number:02d}"


@dataclass(frozen=True)
class MaskShape:
    """A solid in the training frame; what is inside may change."""

    kind: Literal["box", "sphere"]
    centre: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    """Rotation of the box against the axes as a unit quaternion, real part first."""
    half: float
    """Half the side of the box, or the radius of the sphere, in training units."""

    @staticmethod
    def from_json(found: Mapping[str, Any] | None) -> MaskShape | None:
        """The shape as `asdict` and JSON give it; None for none."""
        if found is None:
            return None
        return MaskShape(found["kind"], tuple(found["centre"]), tuple(found["wxyz"]), float(found["half"]))

    def __str__(self) -> str:
        place = ", ".join(f"{each:.4f}" for each in self.centre)
        turned = ", ".join(f"{each:.4f}" for each in self.wxyz)
        return f"{self.kind} of {self.half:.4f} at ({place}) turned by ({turned})"

    def contains(self, points: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points in the training frame are inside."""
        away = points - torch.tensor(self.centre, dtype=points.dtype, device=points.device)
        if self.kind == "sphere":
            return away.norm(dim=-1) <= self.half
        turn = torch.from_numpy(SO3(np.asarray(self.wxyz)).as_matrix()).to(points)
        return (away @ turn).abs().amax(-1) <= self.half

    def mask(self, depth: Float[Tensor, "1 height width"], camera: Cameras) -> Float[Tensor, "1 height width"]:
        """What a view sees of its inside: 1 where the surface is in it, else 0.

        Args:
            depth: Of the view along the optical axis in training units; 0 where nothing is.
            camera: The view's, of shape (1,).
        """
        rays = camera.to("cpu").generate_rays(camera_indices=0, keep_shape=True)
        forward = -camera.camera_to_worlds.reshape(3, 4)[:, 2].to(rays.directions)
        distance = depth[0, :, :, None] / (rays.directions @ forward)[..., None]
        inside = self.contains(rays.origins + distance * rays.directions) & (depth[0] > 0)
        return inside[None].float()


def write_masks(
    folder: Path, shape: MaskShape, names: Sequence[str], views: Sequence[RenderedView], cameras: Sequence[Cameras]
) -> bool:
    """Write the masks that a shape makes of views, white inside, all or none; those that are there already are kept.

    Args:
        folder: Where; masks of another shape in it are replaced.
        shape: What may change.
        names: One a view.
        views: Of the photos' field.
        cameras: The views', of shape (1,) each.

    Returns:
        Whether any view sees anything of its inside; nothing is written otherwise.
    """
    if read_json(folder / SHAPE_FILE) == _as_json(shape) and all((folder / f"{name}.png").is_file() for name in names):
        return True
    masks = [shape.mask(view.depth, camera) for view, camera in zip(views, cameras)]
    if not any(bool(mask.any()) for mask in masks):
        return False
    with atomic_path(folder) as partial:
        partial.mkdir()
        for name, mask in zip(names, masks):
            write_image(partial / f"{name}.png", mask)
        write_json(partial / SHAPE_FILE, _as_json(shape))
    return True


def _as_json(shape: MaskShape) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(shape).items()}
