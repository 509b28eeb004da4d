"""Shape metrics: a field's mesh compared with the exact surface of a procedural object.

Lengths are in units of the object, whose longest side is 1. A field's surface is the level set of the density that
absorbs half of the light over a path of length `WALL`. Cavities enclosed by walls count as inside, for the field and
for the ground truth alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes
from scipy.spatial import KDTree
from skimage.measure import marching_cubes
from trimesh import Trimesh
from trimesh.sample import sample_surface

from eschernet_prior.base.sampling import cell_centres
from eschernet_prior.procedural.bounds import into_frame
from eschernet_prior.procedural.raytracer import Scene

WALL = 0.05
"""Length of the path over which half of the light is absorbed."""
EXTENT = 0.75
"""Half the side of the evaluated cube around the origin."""
CELLS = 72
"""Number of cells along each side of the cube."""
SAMPLES = 8000
"""Sample points on each surface."""
POINTS_AT_A_TIME = 1 << 16


def shape_scores(model: Any, scene: Scene, seed: int = 0) -> dict[str, float]:
    """Compare a field with the object that its photos show.

    Args:
        model: a nerfacto model whose world is the object's frame.
        scene: The object, without ground.
        seed: Seed of the points on the surfaces.

    Returns:
        `chamfer`, the mean of both directions' mean distances between points of the surfaces (1 for a field without
        a surface), and `iou`, intersection over union of the volumes.
    """
    level = math.log(2) / WALL
    found, truth = field_density(model) - level, -signed_distance(scene)
    return {"chamfer": chamfer(found, truth, seed), "iou": volume_iou(found > 0, truth > 0)}


@torch.no_grad()
def field_density(model: Any) -> Float[np.ndarray, "x y z"]:
    """The field's density at the cells, per unit of length."""
    model.eval()
    found = [
        model.field.density_fn(part.to(model.device))[..., 0].cpu()
        for part in cell_centres(CELLS, EXTENT).split(POINTS_AT_A_TIME)
    ]
    return torch.cat(found).reshape(CELLS, CELLS, CELLS).numpy()


def signed_distance(scene: Scene) -> Float[np.ndarray, "x y z"]:
    """Signed distance of the cells to the object's surface, or a bound of it; negative inside."""
    points = cell_centres(CELLS, EXTENT).double().T
    nearest = torch.full((points.shape[1],), math.inf, dtype=points.dtype)
    for part in scene.parts:
        nearest = torch.minimum(nearest, part.shape.distance(*into_frame(part, points)) * part.scale)
    return nearest.reshape(CELLS, CELLS, CELLS).numpy()


def chamfer(a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"], seed: int = 0) -> float:
    """Chamfer distance between the zero levels of two grids that are positive inside; 1 if one of them has none."""
    surfaces = [_surface_points(grid, seed) for grid in (a, b)]
    if any(points is None for points in surfaces):
        return 1.0
    there, back = (KDTree(one).query(other)[0].mean() for one, other in (surfaces, surfaces[::-1]))
    return float(there + back) / 2


def volume_iou(a: Bool[np.ndarray, "x y z"], b: Bool[np.ndarray, "x y z"]) -> float:
    """Intersection over union of two occupancies, cavities included; 1 if both are empty."""
    a, b = np.asarray(binary_fill_holes(a)), np.asarray(binary_fill_holes(b))
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 1.0


def surface(grid: Float[np.ndarray, "x y z"]) -> Trimesh | None:
    """The mesh of a grid's zero level, closed at the cube's walls; None if there is none."""
    lowest = float(grid.min()) - 1.0
    padded = np.pad(grid, 1, constant_values=lowest if lowest < 0 else -1.0)
    if not (padded > 0).any():
        return None
    step = 2 * EXTENT / CELLS
    corners, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    return Trimesh((corners - 0.5) * step - EXTENT, faces, process=False)


def _surface_points(grid: Float[np.ndarray, "x y z"], seed: int) -> Float[np.ndarray, "samples 3"] | None:
    mesh = surface(grid)
    return None if mesh is None else np.asarray(sample_surface(mesh, SAMPLES, seed=seed)[0])
