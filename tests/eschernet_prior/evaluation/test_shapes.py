"""Shapes of fields against objects whose surfaces are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eschernet_prior.base.sampling import cell_centres
from eschernet_prior.evaluation import shape_metrics
from eschernet_prior.procedural.scenes import find_scene, random_scene


def ball(radius: float, x: float = 0.0) -> np.ndarray:
    """Positive inside."""
    points = cell_centres(shape_metrics.CELLS, shape_metrics.EXTENT) - torch.tensor([x, 0.0, 0.0])
    return (radius - points.norm(dim=-1)).reshape((shape_metrics.CELLS,) * 3).numpy()


def test_two_balls_around_each_other_are_as_far_apart_as_their_radii_differ():
    assert shape_metrics.chamfer(ball(0.5), ball(0.4)) == pytest.approx(0.1, abs=0.003)
    assert shape_metrics.volume_iou(ball(0.5) > 0, ball(0.4) > 0) == pytest.approx(0.8**3, abs=0.01)


def test_a_shape_is_like_itself_and_chamfer_knows_the_cells_place():
    assert shape_metrics.chamfer(ball(0.4), ball(0.4)) == 0
    assert shape_metrics.volume_iou(ball(0.4) > 0, ball(0.4) > 0) == 1
    mesh = shape_metrics.surface(ball(0.4, x=0.2))
    assert mesh is not None
    assert mesh.center_mass == pytest.approx([0.2, 0, 0], abs=0.002)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_a_hollow_wall_fills_what_it_encloses():
    wall = np.minimum(ball(0.45), -ball(0.4))
    assert shape_metrics.volume_iou(wall > 0, ball(0.45) > 0) == 1


def test_a_field_without_a_surface_is_as_wrong_as_it_gets():
    assert shape_metrics.chamfer(np.full_like(ball(0.4), -1.0), ball(0.4)) == 1
    assert shape_metrics.volume_iou(np.zeros_like(ball(0.4), dtype=bool), ball(0.4) > 0) == 0


@pytest.mark.parametrize("scene", [random_scene(1_000_003), find_scene("bear")])
def test_a_field_that_is_dense_inside_the_object_has_its_shape(scene):
    truth = -shape_metrics.signed_distance(scene)

    def density_fn(positions):
        cell = ((positions + shape_metrics.EXTENT) / (2 * shape_metrics.EXTENT / shape_metrics.CELLS)).long()
        return torch.from_numpy(100.0 * (truth > 0))[tuple(cell.T)][:, None]

    model = SimpleNamespace(field=SimpleNamespace(density_fn=density_fn), eval=lambda: None, device="cpu")
    scores = shape_metrics.shape_scores(model, scene)
    assert scores["iou"] == 1
    assert scores["chamfer"] < 0.02
