"""The exported cloud and mesh: closed forms of simple bodies, where the box is, and what the command writes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from nerfstudio.cameras.cameras import Cameras, CameraType

from eschernet_prior.base import cameras as poses
from eschernet_prior.base.errors import UserError
from eschernet_prior.procedural import sdf
from eschernet_prior.procedural.raytracer import Scene, render
from eschernet_prior.procedural.scenes import embedded_scene
from eschernet_prior.procedural.sdf import Part
from eschernet_prior.procedural.textures import Texture
from style_nerf2nerf.export import ExportOptions, export, main, views_to_render
from style_nerf2nerf.fusion import fused_mesh, scene_box, surface_points
from style_nerf2nerf.rendering import RenderedView

RED = Texture((0.8, 0.1, 0.1))
CUBE = torch.tensor([[-0.6, -0.6, -0.6], [0.6, 0.6, 0.6]])
SIZE = 96


def pinholes(c2w: torch.Tensor, size: int = SIZE) -> Cameras:
    focal = poses.focal_length(49.13, size)
    return Cameras(c2w[:, :3], fx=focal, fy=focal, cx=size / 2, cy=size / 2, width=size, height=size)


def seen(scene: Scene, c2w: torch.Tensor) -> list[RenderedView]:
    made = render(scene, c2w, SIZE, SIZE, supersampling=1)
    return [RenderedView(c.permute(2, 0, 1), d.permute(2, 0, 1)) for c, d in zip(made.colour, made.depth)]


@pytest.fixture(scope="module")
def around() -> torch.Tensor:
    """Poses all around the origin."""
    return torch.cat([poses.orbit(8, 1.6, elevation) for elevation in (-50.0, 0.0, 50.0)])


def test_a_ball_comes_back_as_that_ball(around):
    ball = Scene((Part(sdf.sphere(0.4), RED, (0.05, -0.1, 0.1)),))
    mesh = fused_mesh(seen(ball, around), pinholes(around), CUBE, 48)
    assert mesh is not None
    radius = np.linalg.norm(mesh.vertices - [0.05, -0.1, 0.1], axis=1)
    cell = 1.2 / 48
    assert abs(radius - 0.4).max() < cell
    assert abs(radius - 0.4).mean() < cell / 4
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.05), "normals point outwards"
    red, green, _, _ = np.asarray(mesh.visual.vertex_colors).T.astype(int)
    assert (red > green + 40).mean() > 0.99


def test_points_of_a_ball_are_on_it(around):
    ball = Scene((Part(sdf.sphere(0.4), RED),))
    points, colours = surface_points(seen(ball, around)[3], pinholes(around)[3:4])
    assert len(points) == len(colours) > 500
    assert (points.norm(dim=-1) - 0.4).abs().max() < 1e-3


def test_no_surface_is_drawn_where_no_view_looks():
    """A floor that is seen from above alone has no underside, and nothing closes it at the edge of what is seen."""
    above = poses.orbit(8, 1.6, 60.0)
    floor = Scene((Part(sdf.Box((5.0, 5.0, 0.5)), RED, (0.0, 0.0, -0.5)),))
    mesh = fused_mesh(seen(floor, above), pinholes(above), CUBE, 40)
    assert mesh is not None
    assert abs(mesh.vertices[:, 2]).max() < 1.2 / 40
    assert np.ptp(mesh.vertices[:, :2], axis=0).min() > 1.1


def test_specks_are_left_out(around):
    scene = Scene((Part(sdf.sphere(0.4), RED), Part(sdf.sphere(0.04), RED, (0.5, 0.5, 0.5))))
    mesh = fused_mesh(seen(scene, around), pinholes(around), CUBE, 48)
    assert mesh is not None
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.45


def test_nothing_at_all_is_no_mesh(around):
    assert fused_mesh(seen(Scene(()), around), pinholes(around), CUBE, 16) is None
    low, high = torch.tensor([[2.0, 2.0, 2.0], [2.1, 2.1, 2.1]])
    ball = Scene((Part(sdf.sphere(0.4), RED),))
    assert fused_mesh(seen(ball, around), pinholes(around), torch.stack([low, high]), 16) is None


def test_the_box_is_around_what_the_cameras_look_at(around):
    generator = torch.Generator().manual_seed(0)
    thing = 0.3 * (2 * torch.rand((4000, 3), generator=generator) - 1)
    ground = torch.cat([40 * torch.randn((6000, 2), generator=generator), torch.full((6000, 1), -0.3)], dim=1)
    shift = torch.tensor([3.0, -2.0, 1.0])
    moved = around.clone()
    moved[:, :3, 3] += shift
    box = scene_box(torch.cat([thing, ground]) + shift, pinholes(moved)) - shift
    assert torch.allclose(box, torch.tensor([[-0.3] * 3, [0.3] * 3]), atol=0.02)


def test_cameras_in_the_middle_of_a_room_get_the_room():
    outwards = poses.orbit(12, 1e-3, 0.0)
    outwards[:, :3, [0, 2]] *= -1
    walls = torch.nn.functional.normalize(torch.randn((4000, 3), generator=torch.Generator().manual_seed(0)), dim=-1)
    box = scene_box(3 * walls, pinholes(outwards))
    assert (box[0] < -2).all()
    assert (box[1] > 2).all()


def test_views_keep_their_field_of_view_at_another_size(around):
    photos = pinholes(around, 64)
    views = views_to_render(photos, 5, 160)
    assert len(views) == 5
    assert views.width.unique().tolist() == views.height.unique().tolist() == [160]
    assert torch.allclose(views.fx, photos.fx[:5] * 2.5)
    assert torch.equal(views.camera_to_worlds[[0, -1]], photos.camera_to_worlds[[0, -1]])
    photos.camera_type = torch.full_like(photos.camera_type, CameraType.FISHEYE.value)
    (lens,) = set(views_to_render(photos, 3, 100).fx.flatten().tolist())
    assert lens == 50


def test_cloud_and_mesh_are_the_scene_and_not_its_far_ground(tmp_path: Path, monkeypatch):
    """With a perfect field: the embedded cottage has a largest side of 1 and stands on a ground without end."""
    cottage = embedded_scene("cottage", background=True)
    around = torch.cat([poses.orbit(8, 1.6, elevation) for elevation in (10.0, 35.0, 60.0)])
    monkeypatch.setattr("style_nerf2nerf.export.render_all", lambda _, views: seen(cottage, around))
    photos = pinholes(around)
    manager = SimpleNamespace(train_dataset=SimpleNamespace(cameras=photos))
    pipeline = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")), datamanager=manager)
    written = export(pipeline, ExportOptions(tmp_path, cells=64, size=SIZE, mesh_format="glb"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"point_cloud.ply", "mesh.glb"}
    cloud, mesh = trimesh.load(written["cloud"]), trimesh.load(written["mesh"], force="mesh")
    for vertices in (np.asarray(cloud.vertices), np.asarray(mesh.vertices)):
        assert (np.ptp(vertices, axis=0) > 0.6).all()
        assert (np.ptp(vertices, axis=0) < 1.8).all()
    assert len(cloud.vertices) > 10_000
    assert len(mesh.faces) > 10_000
    _, distance, _ = trimesh.proximity.closest_point(mesh, cloud.vertices[::500])
    assert np.median(distance) < 1.7 / 64 / 2
    nearest = [np.linalg.norm(mesh.vertices - point, axis=1).argmin() for point in cloud.vertices[::500]]
    colours = np.asarray(mesh.visual.vertex_colors)[nearest, :3].astype(float)
    assert np.median(abs(colours - cloud.colors[::500, :3])) < 16


def test_the_worlds_frame_is_the_captures(run: Path, tmp_path: Path):
    """The embedded scene is not moved: both frames are the same, up to rounding."""
    options = ExportOptions(run, tmp_path, views=3, size=24, cells=16)
    there = [main(replace(options, output_dir=tmp_path / str(frame), world_frame=frame)) for frame in (False, True)]
    here, world = (np.asarray(trimesh.load(written["cloud"]).vertices) for written in there)
    transform = json.loads((run / "dataparser_transforms.json").read_text())
    assert np.allclose(transform["transform"], np.eye(4)[:3])
    assert np.allclose(here, transform["scale"] * world, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": Path("nowhere")}, "no run in nowhere"),
        ({"views": 0}, "at least 1"),
        ({"size": 4}, "--size at least 16"),
        ({"box": (0.0, 0.0, 0.0, 1.0, 0.0, 1.0)}, "its lowest corner"),
        ({"box": (50.0, 50.0, 50.0, 51.0, 51.0, 51.0), "views": 2, "size": 16}, "no surface in this box"),
    ],
)
def test_what_cannot_be_exported_is_refused(run: Path, options: dict, words: str):
    with pytest.raises(UserError, match=words):
        main(replace(ExportOptions(run), **options))
