"""Export a run's scene for other programs, as a point cloud and a coloured mesh.

    python -m style_nerf2nerf.export RUN

writes `point_cloud.ply` and `mesh.ply` into RUN/export, in the training frame or, with `--world-frame`, in that of the
capture. Both are computed from the same rendered views and limited to a box around the region that the cameras look
at. Any run whose model is a nerfacto can be exported, whether restyled or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import trimesh
import tyro
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from torch import Tensor

from eschernet_prior.base.console import say
from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.runs import check_run, load_run
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.fusion import fused_mesh, inside, on_mesh, scene_box, surface_points
from style_nerf2nerf.rendering import RenderedView, render_view

SIZES = {"cpu": (128, 96), "cuda": (640, 320)}
"""Defaults by device: longest side of a rendered view in pixels, and of the mesh's grid in cells."""
AGREED = 0.02
"""Largest distance of a point of the cloud from the mesh, as a share of the box's longest side; others are noise."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of the command line."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder: outputs/<data>/<method>/<time>."""
    output_dir: Path | None = None
    """Output folder; default: export/ in the run folder."""
    views: int = 32
    """Number of training views to render, evenly spaced; all of them if there are fewer."""
    size: int | None = None
    """Longest side of a rendered view in pixels; default: 128, on a GPU 640."""
    cells: int | None = None
    """Cells of the mesh's grid along the longest side of the box; default: 96, on a GPU 320."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Lowest and highest corner of the box to export, in the training frame; default: a box around the region that the
    cameras look at."""
    mesh_format: Literal["ply", "glb", "obj"] = "ply"
    """Format of the mesh."""
    world_frame: bool = False
    """Write coordinates in the capture's own frame instead of nerfstudio's training frame."""

    def check(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            UserError: If the folder is not a run, the box has no volume, or a number is out of range.
        """
        check_run(self.run)
        if self.views < 1 or (self.size or 16) < 16 or (self.cells or 8) < 8:
            raise UserError("--views must be at least 1, --size at least 16 and --cells at least 8.")
        if self.box is not None and not all(a < b for a, b in zip(self.box[:3], self.box[3:])):
            raise UserError("The first three numbers of --box, its lowest corner, must be below the last three.")


def views_to_render(cameras: Cameras, count: int, size: int) -> Cameras:
    """Create pinhole cameras at evenly spaced poses of a capture.

    Args:
        cameras: Cameras of the capture, of shape (views,); other lenses are replaced by pinholes of 90 degrees.
        count: Largest number of cameras.
        size: Longest side in pixels.
    """
    made = []
    for camera in (cameras[index : index + 1].to("cpu") for index in evenly_spaced(count, len(cameras))):
        scale = size / max(int(camera.width), int(camera.height))
        width, height = (max(round(int(side) * scale), 1) for side in (camera.width, camera.height))
        focal = [scale * camera.fx.item(), scale * camera.fy.item(), scale * camera.cx.item(), scale * camera.cy.item()]
        if int(camera.camera_type) != CameraType.PERSPECTIVE.value:
            focal, width, height = [size / 2] * 4, size, size
        made.append((camera.camera_to_worlds[0], *focal, width, height))
    poses, fx, fy, cx, cy, width, height = zip(*made)
    columns: Any = (torch.tensor(values)[:, None] for values in (fx, fy, cx, cy, width, height))
    return Cameras(torch.stack(poses), *columns)


def render_all(model: NerfactoModel, cameras: Cameras) -> list[RenderedView]:
    """Render colour and depth from every camera, with a progress bar."""
    with get_progress("Rendering", suffix="views") as progress:
        return [
            render_view(model, cameras[index : index + 1])
            for index in progress.track(range(len(cameras)), description="")
        ]


def to_world(points: Float[Tensor, "points 3"], outputs: DataparserOutputs) -> Float[np.ndarray, "points 3"]:
    """Transform points from the training frame to the frame of the capture's transforms.json."""
    poses = torch.eye(4).repeat(len(points), 1, 1)[:, :3]
    poses[:, :, 3] = points
    return outputs.transform_poses_to_original_space(poses)[:, :3, 3].numpy()


def export(pipeline: Pipeline, options: ExportOptions, folder: Path) -> dict[str, Path]:
    """Write a point cloud and a mesh of a pipeline's scene.

    Args:
        pipeline: A pipeline whose model is a nerfacto.
        options: Options of the command line.
        folder: Output folder.

    Returns:
        Paths of the files, under the keys `cloud` and `mesh`.

    Raises:
        UserError: If the field has no surface in the box.
    """
    model, manager = cast(NerfactoModel, pipeline.model), cast(VanillaDataManager, pipeline.datamanager)
    size, cells = SIZES["cuda" if model.device.type == "cuda" else "cpu"]
    cameras = views_to_render(manager.train_dataset.cameras, options.views, options.size or size)
    views = render_all(model, cameras)
    pairs = [surface_points(view, cameras[index : index + 1]) for index, view in enumerate(views)]
    points, colours = (torch.cat(each) for each in zip(*pairs))
    if len(points) == 0:
        raise UserError("The field has no surface in the views of the capture: train it longer.")
    box = scene_box(points, cameras) if options.box is None else torch.tensor(options.box).reshape(2, 3)
    low, high = (" ".join(f"{value:.2f}" for value in corner) for corner in box.tolist())
    CONSOLE.print(f"Exporting the box from ({low}) to ({high}); select another with --box.")
    mesh = fused_mesh(views, cameras, box, options.cells or cells)
    if mesh is None:
        raise UserError("The field has no surface in this box: select another with --box.")
    near = inside(points, box) & on_mesh(points, mesh, AGREED * float((box[1] - box[0]).max()))
    cloud = trimesh.PointCloud(points[near].numpy(), (255 * colours[near]).round().to(torch.uint8).numpy())
    if options.world_frame:
        outputs = manager.train_dataparser_outputs
        cloud.vertices = to_world(points[near], outputs)
        mesh.vertices = to_world(torch.from_numpy(np.asarray(mesh.vertices)).float(), outputs)
    written = {}
    for name, made, file in (("cloud", cloud, "point_cloud.ply"), ("mesh", mesh, f"mesh.{options.mesh_format}")):
        written[name] = folder / file
        with atomic_path(written[name]) as partial:
            made.export(partial, file_type=written[name].suffix[1:])
    say(f"{len(cloud.vertices)} points: {written['cloud']}")
    say(f"{len(mesh.faces)} triangles: {written['mesh']}")
    return written


def main(options: ExportOptions) -> dict[str, Path]:
    """Load a run and export its scene.

    Raises:
        UserError: If there is no such run, or its field has no surface.
    """
    options.check()
    pipeline = load_run(options.run, "inference")
    if not isinstance(pipeline.model, NerfactoModel):
        raise UserError(f"{options.run} is a run of another method: only fields derived from nerfacto can be exported.")
    return export(pipeline, options, options.output_dir or options.run / "export")


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(ExportOptions, description=cast(str, __doc__)))
