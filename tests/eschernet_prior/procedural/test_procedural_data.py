"""The procedural-data dataparser: exact, cached whole or not at all, and readable by nerfstudio's own dataparser."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.datasets.depth_dataset import DepthDataset
from nerfstudio.plugins.registry_dataparser import discover_dataparsers

from eschernet_prior.base.cameras import spherical_views
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import cache_root
from eschernet_prior.procedural import dataparser
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig, cached_scene, split_poses
from eschernet_prior.procedural.scenes import find_scene, render

SMALL = ProceduralDataParserConfig(scene="3", num_views=4, num_eval_views=2, resolution=16)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STYLE_NERF2NERF_CACHE", str(tmp_path))
    return tmp_path / "procedural"


def test_it_is_registered_with_nerfstudio():
    parsers, descriptions = discover_dataparsers()
    assert isinstance(parsers["procedural-data"], ProceduralDataParserConfig)
    assert descriptions["procedural-data"]


@pytest.mark.parametrize("background", [True, False])
def test_what_is_read_is_what_was_rendered(background: bool):
    config = replace(SMALL, background=background)
    for split, place in (("train", "train"), ("val", "eval"), ("test", "eval")):
        outputs = config.setup().get_dataparser_outputs(split)
        poses = split_poses(config)[place]
        assert torch.equal(outputs.cameras.camera_to_worlds, poses[:, :3])
        assert outputs.dataparser_scale == 1
        assert torch.equal(outputs.dataparser_transform, torch.eye(4)[:3])
        rendering = render(find_scene("3", background), poses, 16, 16)
        dataset = DepthDataset(outputs)
        assert len(dataset) == len(poses)
        for index, (colour, depth) in enumerate(zip(rendering.colour, rendering.depth)):
            read = dataset[index]
            assert (read["image"] - colour).abs().max() < 2.5 / 255
            assert torch.allclose(read["depth_image"], depth, rtol=1e-5)
            assert dataset.get_numpy_image(index).shape[-1] == (3 if background else 4)
        assert InputDataset(outputs)[0].keys() == {"image_idx", "image"}


def test_rays_of_nerfstudio_are_those_that_were_traced():
    from eschernet_prior.base import cameras

    outputs = SMALL.setup().get_dataparser_outputs("train")
    bundle = outputs.cameras.generate_rays(1)
    rays = cameras.rays(split_poses(SMALL)["train"][1:2], dataparser.FIELD_OF_VIEW, 16, 16)
    assert torch.allclose(bundle.origins, rays.origins[0], atol=1e-6)
    assert torch.allclose(bundle.directions, rays.directions[0], atol=1e-6)


def test_held_out_views_are_elsewhere():
    poses = split_poses(ProceduralDataParserConfig())
    apart = torch.cdist(poses["train"][:, :3, 3], poses["eval"][:, :3, 3])
    assert apart.min() > 1e-3
    assert len(poses["train"]) == 40
    assert len(poses["eval"]) == 8
    other = split_poses(ProceduralDataParserConfig(seed=1))
    assert not torch.equal(other["train"], poses["train"])
    elevation = torch.rad2deg(torch.asin(poses["train"][:, 2, 3] / 1.6))
    assert elevation.min() >= 5
    assert elevation.max() <= 55
    assert torch.allclose(poses["train"][:, :3, 3].norm(dim=1), torch.tensor(1.6))


@pytest.mark.parametrize("options", [{}, {"background": False, "num_views": 3}, {"seed": 3}, {"num_eval_views": 12}])
def test_a_straight_path_through_the_held_out_cameras_stays_outside_the_scene(options: dict):
    config = ProceduralDataParserConfig(**options)
    places = split_poses(config)["eval"][:, :3, 3]
    way = torch.linspace(0, 1, 21)[:, None, None]
    path = places[:-1] + way * (places[1:] - places[:-1])
    assert path.norm(dim=-1).min() > 0.7 * places.norm(dim=-1).min()


def test_the_order_of_the_held_out_cameras_leaves_them_as_they_are():
    config = ProceduralDataParserConfig(seed=2)
    elevations = (config.min_elevation, config.max_elevation)
    spiral = spherical_views(8, (config.radius, config.radius), elevations, torch.Generator().manual_seed(5))
    held_out = split_poses(config)["eval"]
    assert {tuple(pose.flatten().tolist()) for pose in held_out} == {tuple(pose.flatten().tolist()) for pose in spiral}


def test_a_scene_is_rendered_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = cached_scene(SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(dataparser, "render", None)
    assert cached_scene(replace(SMALL, data=Path("elsewhere"))) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in empty_cache.iterdir()] == [folder.name]


def test_every_option_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, empty_cache: Path):
    monkeypatch.setattr(dataparser, "_render_scene", lambda scene, config, folder: folder.mkdir())
    changes = [
        {"scene": "4"},
        {"num_views": 5},
        {"num_eval_views": 3},
        {"resolution": 17},
        {"background": False},
        {"radius": 1.7},
        {"min_elevation": 6.0},
        {"max_elevation": 54.0},
        {"seed": 1},
    ]
    folders = {cached_scene(replace(SMALL, **change)) for change in [{}, *changes]}
    for version in ("RENDERER_VERSION", "LAYOUT_VERSION"):
        with monkeypatch.context() as changed:
            changed.setattr(dataparser, version, -1)
            folders.add(cached_scene(SMALL))
    assert len(folders) == len(changes) + 3


def test_what_fails_half_way_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr(dataparser, "write_json", fail)
    with pytest.raises(RuntimeError, match="half way"):
        cached_scene(SMALL)
    assert not list(empty_cache.iterdir())


def test_of_two_writers_the_first_wins(empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    rendered = dataparser._render_scene

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(dataparser, "_render_scene", rendered)
        (cached_scene(SMALL) / "first").touch()
        rendered(*arguments)

    monkeypatch.setattr(dataparser, "_render_scene", overtaken)
    folder = cached_scene(SMALL)
    assert (folder / "first").is_file()
    assert [path.name for path in empty_cache.iterdir()] == [folder.name]


def test_nerfstudios_own_dataparser_reads_the_folder():
    folder = cached_scene(SMALL)
    config = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False
    )
    parser, ours = config.setup(), SMALL.setup()
    for split in ("train", "val", "test"):
        theirs, own = parser.get_dataparser_outputs(split), ours.get_dataparser_outputs(split)
        assert theirs.image_filenames == own.image_filenames
        assert torch.equal(theirs.cameras.camera_to_worlds, own.cameras.camera_to_worlds)
        assert torch.equal(theirs.cameras.get_intrinsics_matrices(), own.cameras.get_intrinsics_matrices())
        assert torch.equal(theirs.cameras.height, own.cameras.height)
        depth = DepthDataset(theirs)[0]["depth_image"]
        assert torch.equal(depth, DepthDataset(own)[0]["depth_image"])
        assert 0.5 < depth[depth > 0].min() < 3


def test_files_are_what_the_documentation_says():
    folder = cached_scene(replace(SMALL, background=False))
    meta = json.loads((folder / "transforms.json").read_text())
    assert len(meta["train_filenames"]) == 4
    assert meta["val_filenames"] == meta["test_filenames"]
    assert not set(meta["train_filenames"]) & set(meta["val_filenames"])
    for frame in meta["frames"]:
        depth = np.load(folder / frame["depth_file_path"])
        assert depth.dtype == np.float32
        assert depth.shape == (16, 16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scene": "atlantis"}, "choose cottage, bear, tea, or a number"),
        ({"num_views": 0}, "at least 1 training view,"),
        ({"num_eval_views": 0}, "1 held-out view"),
        ({"resolution": 7}, "8 pixels per side"),
        ({"radius": 0.5}, "1 to 5 from the centre"),
        ({"radius": float("nan")}, "1 to 5 from the centre"),
        ({"min_elevation": 60.0}, "lowest below the highest"),
        ({"max_elevation": 90.0}, "between −85 and 85"),
        ({"min_elevation": -30.0}, "choose --min-elevation"),
    ],
)
def test_mistakes_are_told_before_anything_is_rendered(change: dict, said: str, empty_cache: Path):
    with pytest.raises(UserError, match=said):
        replace(SMALL, **change).setup().get_dataparser_outputs()
    assert not empty_cache.exists()


def test_without_a_ground_cameras_may_look_from_below():
    assert replace(SMALL, min_elevation=-30.0, background=False).check()


def test_the_lowest_elevation_that_is_named_works():
    with pytest.raises(UserError, match="choose --min-elevation") as told:
        replace(SMALL, min_elevation=-60.0).check()
    lowest = float(str(told.value).split("--min-elevation ")[1].split()[0])
    assert replace(SMALL, min_elevation=lowest).check()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLE_NERF2NERF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="STYLE_NERF2NERF_CACHE"):
        cached_scene(SMALL)


def test_the_cache_follows_the_platforms_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("STYLE_NERF2NERF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "style-nerf2nerf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "style-nerf2nerf"
