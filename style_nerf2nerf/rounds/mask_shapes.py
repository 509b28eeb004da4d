"""A box or sphere in the scene that limits the changes of a round, and the masks that it defines in the views."""

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
    """Folder of the masks that a shape in the viewer defines for a round (counted from 1)."""
    return run_dir / "masks" / f"round_{number:02d}"


@dataclass(frozen=True)
class MaskShape:
    """A solid in the training frame, inside which a round may change the scene."""

    kind: Literal["box", "sphere"]
    centre: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    """Rotation of the box relative to the axes as a unit quaternion, real part first."""
    half: float
    """Half the side of the box, or the radius of the sphere, in training units."""

    @staticmethod
    def from_json(found: Mapping[str, Any] | None) -> MaskShape | None:
        """Read a shape from the output of `asdict` or from JSON; None for no shape."""
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
        """Compute the mask of a view: 1 at pixels whose surface is inside, else 0.

        Args:
            depth: Depth of the view along the optical axis in training units; 0 without a surface.
            camera: Camera of the view, of shape (1,).
        """
        rays = camera.to("cpu").generate_rays(camera_indices=0, keep_shape=True)
        forward = -camera.camera_to_worlds.reshape(3, 4)[:, 2].to(rays.directions)
        distance = depth[0, :, :, None] / (rays.directions @ forward)[..., None]
        inside = self.contains(rays.origins + distance * rays.directions) & (depth[0] > 0)
        return inside[None].float()


def write_masks(
    folder: Path, shape: MaskShape, names: Sequence[str], views: Sequence[RenderedView], cameras: Sequence[Cameras]
) -> bool:
    """Write the masks of a shape in views, white inside, atomically, unless they exist.

    Args:
        folder: Output folder; masks of another shape in it are replaced.
        shape: The shape inside which the scene may change.
        names: File name of each view without suffix.
        views: Renders of the field before the first round.
        cameras: Cameras of the views, of shape (1,) each.

    Returns:
        Whether the inside of the shape is visible in any view; otherwise nothing is written.
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
