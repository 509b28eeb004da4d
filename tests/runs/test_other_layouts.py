"""Captures in the layouts of COLMAP and instant-ngp: trained on and written in their own frame, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from test_captures import QUICK, make_capture, picture

import ns
from eschernet_prior.base.cameras import spherical_views
from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.base.dataset_io import ASSUMED_TRANSFORM
from refused import refused

VIEWS, SIDE = 8, 48
LENSES = {
    "PINHOLE": [50, 50, 24, 24],
    "SIMPLE_RADIAL": [50, 24, 24, 0.05],
    "OPENCV": [50, 51, 24.5, 23.5, 0.05, -0.01, 0.001, 0.002],
    "OPENCV_FISHEYE": [50, 50, 24, 24, 0.05, -0.01, 0.001, 0.0],
    "FULL_OPENCV": [50, 50, 24, 24, *[0.01] * 8],
}
"""COLMAP's parameters of a lens."""
PLAIN = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


def colmap_capture(
    folder: Path, *lenses: str, name=str, sparse: str = "colmap/sparse/0", text: bool = False, points: int = 5
) -> Path:
    """Photos with a COLMAP model.

    Args:
        folder: where they go.
        lenses: of the photos, in turn.
        name: makes the name of a photo, without suffix, from its number.
        sparse: where the model goes.
        text: whether as text.
        points: how many the model has.
    """
    import pycolmap

    model = pycolmap.Reconstruction()
    for number, lens in enumerate(lenses, 1):
        camera = pycolmap.Camera(model=lens, width=SIDE, height=SIDE, params=LENSES[lens], camera_id=number)
        model.add_camera_with_trivial_rig(camera)
    poses = spherical_views(VIEWS, generator=torch.Generator().manual_seed(1)).double().numpy()
    for index, pose in enumerate(poses):
        path = folder / "images" / f"{name(index)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(SIDE, SIDE, index).save(path)
        image = pycolmap.Image(name=f"{name(index)}.png", camera_id=1 + index % len(lenses), image_id=index + 1)
        opencv = np.linalg.inv(pose @ np.diag([1.0, -1, -1, 1]))
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(opencv[:3]))
    for index in range(points):
        model.add_point3D(np.array([0.1 * index, 0, 0]), pycolmap.Track(), np.array([9, 9, 9], np.uint8))
    (folder / sparse).mkdir(parents=True)
    (model.write_text if text else model.write_binary)(folder / sparse)
    return folder


def rays_of(folder: Path, config) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Origins and directions of all pixels, by the names of the photos."""
    config.data = folder
    outputs = config.setup().get_dataparser_outputs("train")
    bundles = [outputs.cameras.generate_rays(index, keep_shape=True) for index in range(len(outputs.cameras))]
    return {path.stem: (bundle.origins, bundle.directions) for path, bundle in zip(outputs.image_filenames, bundles)}


def the_same(made: dict, given: dict) -> None:
    assert made.keys() <= given.keys()
    assert len(made) >= 3
    for name, pair in made.items():
        for ours, theirs in zip(pair, given[name]):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_colmap_model_becomes_a_restyled_field(tmp_path: Path, cache):
    capture = colmap_capture(tmp_path / "scan", "OPENCV")
    ns.train(tmp_path / "out", data=capture, parser=("colmap",), **QUICK)
    run = ns.only_run(tmp_path / "out")
    assert ns.metrics(run)["round_01"]["style_distance_after"] > 0
    made = rays_of(run / "restyled/round_01", NerfstudioDataParserConfig(train_split_fraction=1.0, **PLAIN))
    stands = ColmapDataParserConfig(eval_mode="all", assume_colmap_world_coordinate_convention=False, **PLAIN)
    the_same(made, rays_of(capture, stands))


def test_colmap_models_of_all_kinds_are_read(tmp_path: Path):
    for number, options in enumerate(
        ({"text": True}, {"name": lambda index: f"{'ab'[index % 2]}/{index // 2}"}, {"points": 0})
    ):
        capture = colmap_capture(tmp_path / str(number), "PINHOLE", "SIMPLE_RADIAL", **options)
        config = ColmapDataParserConfig(load_3D_points="points" not in options)
        assert "7 views to train on, 1 held out" in check_capture(config, capture).lines[0]


COLMAP = {
    "no model": ({"sparse": "sparse/0"}, {}, None, "there is one in sparse/0, so add --colmap-path sparse/0"),
    "unknown lens": ({"lenses": ["FULL_OPENCV"]}, {}, None, "unsupported lens, FULL_OPENCV"),
    "two kinds": ({"lenses": ["PINHOLE", "OPENCV_FISHEYE"]}, {}, None, "fisheye and perspective cameras, not one type"),
    "no points": ({"points": 0}, {}, None, "add --load-3D-points False"),
    "no smaller photos": ({}, {"downscale_factor": 2}, None, "no folder .*images_2 for --downscale-factor 2"),
    "photos elsewhere": ({}, {"images_path": Path("input")}, None, "no folder .*input .*--images-path"),
    "photo missing": ({}, {}, lambda folder: (folder / "images/3.png").unlink(), "There is no picture .*3.png"),
    "mask missing": ({}, {"masks_path": Path("masks")}, None, "There is no mask .*masks"),
    "cut off": (
        {},
        {},
        lambda folder: (folder / "colmap/sparse/0/images.bin").write_bytes(b"\x01\x00"),
        "images.bin cannot be read as a part of a COLMAP model",
    ),
    "part missing": ({}, {}, lambda folder: (folder / "colmap/sparse/0/images.bin").unlink(), "lacks .*images.bin"),
    "half a split": (
        {},
        {},
        lambda folder: (folder / "train_list.txt").write_text("0.png\n1.png"),
        "no val_list.txt next to it",
    ),
    "another photo in the split": (
        {},
        {},
        lambda folder: [(folder / f"{name}_list.txt").write_text("9.png") for name in ("train", "val", "test")],
        "lists “9.png”",
    ),
}


@pytest.mark.parametrize("fault", COLMAP)
def test_a_colmap_model_with_a_fault_is_refused(tmp_path: Path, fault: str):
    made, options, change, words = COLMAP[fault]
    lenses = made.pop("lenses", ["PINHOLE"])
    capture = colmap_capture(tmp_path / "scan", *lenses, **made)
    if change is not None:
        change(capture)
    with refused(words):
        check_capture(ColmapDataParserConfig(**options), capture)


def test_large_photos_that_nerfstudio_would_make_smaller_after_a_question(tmp_path: Path):
    capture = colmap_capture(tmp_path / "scan", "PINHOLE")
    for path in (capture / "images").iterdir():
        picture(1700, 40).save(path)
    with refused("no folder .*images_2 for photos above 1600 pixels"):
        check_capture(ColmapDataParserConfig(), capture)


def ngp_capture(folder: Path, **top) -> Path:
    """A capture with one lens, as instant-ngp has it."""
    capture = make_capture(folder)
    path = capture / "transforms.json"
    frames = json.loads(path.read_text())["frames"]
    lens = {name: frames[0].pop(name) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    frames = [{name: frame[name] for name in ("file_path", "transform_matrix")} for frame in frames]
    path.write_text(json.dumps({**lens, "k1": 0.02, "aabb_scale": 4, **top, "frames": frames}))
    return capture


def test_a_capture_of_instant_ngp_is_restyled_in_its_own_frame(tmp_path: Path, cache):
    """Its dataparser does not look at an `applied_transform`, and so the poses are those of the file."""
    capture = ngp_capture(tmp_path / "fox", applied_transform=ASSUMED_TRANSFORM)
    ns.train(tmp_path / "out", data=capture, parser=("instant-ngp-data",), **QUICK)
    made = rays_of(
        ns.only_run(tmp_path / "out") / "restyled/round_01",
        NerfstudioDataParserConfig(train_split_fraction=1.0, **PLAIN),
    )
    the_same(made, rays_of(capture, NerfstudioDataParserConfig(train_split_fraction=1.0, **PLAIN)))


NGP = {
    "byte order mark": (None, "byte order mark"),
    "two focal lengths": (
        lambda meta, _: meta.update(fl_y=70.0),
        "fl_x = 50 and fl_y = 70, and instant-ngp-data uses",
    ),
    "no focal length": (lambda meta, _: [meta.pop(name) for name in ("fl_x", "fl_y")], "has no focal length"),
    "own lens": (lambda _, frames: frames[1].update(fl_x=20), "1.png .* has its own fl_x"),
    "split": (lambda meta, _: meta.update(train_filenames=["images/0.png"]), "lists of files to train on"),
    "fisheye": (lambda meta, _: meta.update(camera_model="OPENCV_FISHEYE"), "camera_model, which instant-ngp-data"),
    "photo missing": (lambda _, frames: frames[1].update(file_path="images/9.png"), "There is no picture .*9.png"),
    "some masks": (lambda _, frames: frames[1].update(mask_path="masks/1.png"), "1 of the 6 frames"),
    "NaN": (lambda _, frames: frames[1]["transform_matrix"][0].__setitem__(0, float("nan")), "contains NaN"),
    "stretched": (lambda _, frames: frames[1].update(transform_matrix=np.diag([2.0, 2, 2, 1]).tolist()), "not rigid"),
    "twice": (lambda _, frames: frames[1].update(file_path="images/0.png"), "2 frames for the same photo"),
    "text": (lambda meta, _: meta.update(k1="much"), "k1 that is not a number"),
}


@pytest.mark.parametrize("fault", NGP)
def test_a_capture_of_instant_ngp_with_a_fault_is_refused(tmp_path: Path, fault: str):
    change, words = NGP[fault]
    path = ngp_capture(tmp_path / "fox") / "transforms.json"
    check_capture(InstantNGPDataParserConfig(), path.parent)
    meta = json.loads(path.read_text())
    if change is not None:
        change(meta, meta["frames"])
    path.write_text(json.dumps(meta), "utf8" if change is not None else "utf-8-sig")
    for data in (path, path.parent):
        with refused(words):
            check_capture(InstantNGPDataParserConfig(), data)
