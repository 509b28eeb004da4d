"""Compute a point cloud and a mesh from colour and depth of many views.

The mesh is the zero level of a truncated signed distance on a grid, averaged over the views (Curless and Levoy 1996).
With z the depth of a grid point in a view and d the depth that the view shows there, one view's distance is d - z along
the ray: positive in front of the surface, and unknown behind it beyond the truncation. If a view has no surface at a
pixel (depth 0), the whole ray is in front. A grid point unknown to all views has no value and no surface next to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from nerfstudio.cameras.camera_utils import focus_of_attention
from nerfstudio.cameras.cameras import Cameras
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree
from skimage.measure import marching_cubes
from torch import Tensor

from style_nerf2nerf.rendering import RenderedView

TRUNCATION = 4.0
"""Truncation of the signed distance in cells: the depth behind a surface up to which the distance is known."""
SMALLEST_PIECE = 0.02
"""Least share of the mesh's faces in a connected piece; smaller pieces are noise of the field and are removed."""
REACH = 0.5
"""Half the side of the scene's box as a share of the cameras' distance from the region that they look at."""
FEWEST = 0.05
"""Least share of all surface points in the box; if cameras look elsewhere, it contains fewer."""
OUTLIERS = 0.001
"""Share of the points that are excluded on each side of the box."""
MARGIN = 0.02
"""Margin that is added on each side of the box, as a share of its side."""

Points = Float[Tensor, "points 3"]


def surface_points(view: RenderedView, camera: Cameras) -> tuple[Points, Points]:
    """Compute the world positions and colours of a view's pixels.

    Args:
        view: Colour and depth along the optical axis.
        camera: Camera of the view, of shape (1,).

    Returns:
        Points in the camera's world, and RGB in [0, 1], of all pixels with a surface.
    """
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    forward = -camera.camera_to_worlds.reshape(3, 4)[:, 2]
    distance = view.depth[0, ..., None] / (rays.directions @ forward)[..., None]
    there = view.depth[0] > 0
    return (rays.origins + rays.directions * distance)[there], view.colour.permute(1, 2, 0)[there]


def scene_box(points: Points, cameras: Cameras) -> Float[Tensor, "2 3"]:
    """Compute the lowest and highest corner of a box around the region that the cameras look at.

    This is the bounding box of the surface points inside a cube around the point closest to all optical axes, whose
    half side is `REACH` times the cameras' median distance from that point. If the cameras look elsewhere, as from the
    middle of a room, it is the bounding box of all points except the outermost twentieth on each side.

    Args:
        points: Surface points of all views.
        cameras: Cameras of the views.
    """
    poses = torch.eye(4).repeat(len(cameras), 1, 1)
    poses[:, :3] = cameras.camera_to_worlds.cpu()
    centre = focus_of_attention(poses, poses[:, :3, 3].mean(0))
    reach = REACH * (poses[:, :3, 3] - centre).norm(dim=-1).median()
    near = ((points - centre).abs() <= reach).all(-1)
    if near.float().mean() < FEWEST:
        return _box_of(points, 0.05)
    return _box_of(points[near], OUTLIERS)


def _box_of(points: Points, outliers: float) -> Float[Tensor, "2 3"]:
    low, high = np.quantile(points.numpy(), [outliers, 1 - outliers], axis=0)
    margin = MARGIN * (high - low)
    return torch.from_numpy(np.stack([low - margin, high + margin])).float()


def inside(points: Points, box: Float[Tensor, "2 3"]) -> Bool[Tensor, points]:
    """Whether points are in a box."""
    return ((points >= box[0]) & (points <= box[1])).all(-1)


def on_mesh(points: Points, mesh: trimesh.Trimesh, reach: float) -> Bool[Tensor, points]:
    """Whether points are within `reach` of a vertex of a mesh."""
    return torch.from_numpy(np.isfinite(KDTree(mesh.vertices).query(points.numpy(), distance_upper_bound=reach)[0]))


def fused_mesh(
    views: Sequence[RenderedView], cameras: Cameras, box: Float[Tensor, "2 3"], cells: int
) -> trimesh.Trimesh | None:
    """Fuse views into a mesh inside a box, with a colour at each vertex.

    Args:
        views: Views, at least one.
        cameras: Cameras of the views, without distortion.
        box: Lowest and highest corner of the box.
        cells: Number of cells along the longest side of the box.

    Returns:
        The mesh with outward normals; None if the views show no surface in the box.
    """
    step = float((box[1] - box[0]).max()) / cells
    counts = ((box[1] - box[0]) / step).ceil().int().tolist()
    lines = [low + step * torch.arange(count + 1) for low, count in zip(box[0].tolist(), counts)]
    shape = tuple(len(line) for line in lines)
    points = torch.cartesian_prod(*lines)
    total, weight = torch.zeros(len(points)), torch.zeros(len(points))
    colour, coloured = torch.zeros(len(points), 3), torch.zeros(len(points))
    for index, view in enumerate(views):
        distance, there, seen = _distances(points, view, cameras[index : index + 1], TRUNCATION * step)
        total[there] += (distance / (TRUNCATION * step)).clamp(-1, 1)
        weight[there] += 1
        near = distance.abs() < TRUNCATION * step
        colour[there[near]] += seen[near]
        coloured[there[near]] += 1
    known = (weight > 0).reshape(shape).numpy()
    values = (total / weight.clamp(min=1)).reshape(shape).numpy()
    if not known.any() or values[known].min() >= 0 or values[known].max() <= 0:
        return None
    corners, faces, _, _ = marching_cubes(values, 0.0, mask=known, allow_degenerate=False)
    if not len(faces):
        return None
    grids = [grid.reshape(shape).numpy() for grid in (*colour.unbind(-1), coloured)]
    *red_green_blue, share = (map_coordinates(grid, corners.T, order=1) for grid in grids)
    colours = (255 * np.stack(red_green_blue, -1) / np.maximum(share, 1e-6)[:, None]).clip(0, 255).round()
    return _without_specks(
        trimesh.Trimesh(box[0].numpy() + step * corners, faces, vertex_colors=colours.astype(np.uint8), process=False)
    )


def _distances(points: Points, view: RenderedView, camera: Cameras, truncation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the distances of points to one view's surface along the rays, the known points, and their colours."""
    pose = camera.camera_to_worlds.reshape(3, 4)
    local = (points - pose[:, 3]) @ pose[:, :3]
    depth = -local[:, 2]
    ahead = depth.clamp(min=1e-6)
    column = (local[:, 0] / ahead * camera.fx.item() + camera.cx.item()).floor()
    row = (-local[:, 1] / ahead * camera.fy.item() + camera.cy.item()).floor()
    _, height, width = view.depth.shape
    there = (depth > 1e-6) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = there.nonzero()[:, 0]
    pixel = row[there].long() * width + column[there].long()
    shown = view.depth.flatten()[pixel]
    distance = torch.where(shown > 0, shown - depth[there], torch.inf) * (local[there].norm(dim=-1) / depth[there])
    known = distance > -truncation
    return distance[known], there[known], view.colour.flatten(1).T[pixel[known]]


def _without_specks(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    labels = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    large = np.bincount(labels) >= SMALLEST_PIECE * len(mesh.faces)
    mesh.update_faces(large[labels])
    mesh.remove_unreferenced_vertices()
    return mesh
