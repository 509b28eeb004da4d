"""Captures that nerfstudio reads wrongly without a word, or asks a question about: refused, or read as meant."""

import json
from pathlib import Path

import numpy as np
import pytest
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from test_captures import QUICK, VIEWS, dataset, disc, make_capture, picture, prepared

import ns
from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.data.photos_dataparser import PhotosDataParserConfig
from refused import refused
from style_nerf2nerf.config import style_nerf2nerf_tiny

PLAIN = NerfstudioDataParserConfig()


def white(inside: np.ndarray) -> Image.Image:
    return Image.fromarray(inside.astype(np.uint8) * 255)


def changed(capture: Path, change) -> Path:
    """The capture with another content of its transforms.json."""
    path = capture / "transforms.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(change(meta) or meta))
    return capture


def every_frame(**numbers):
    return lambda meta: [frame.update(numbers) for frame in meta["frames"]] and None


def of_two_cameras(folder: Path, masks=None, sizes=((48, 48),) * VIEWS) -> Path:
    """Photos 0, 1 and 2 of a camera on the left, and as many with the same names of one on the right."""
    capture = make_capture(folder, sizes, masks)

    def move(meta: dict) -> None:
        for index, frame in enumerate(meta["frames"]):
            for key in {"file_path", "mask_path"} & frame.keys():
                old = capture / frame[key]
                frame[key] = f"{old.parent.name}/{('left', 'right')[index % 2]}/{index // 2}.png"
                (capture / frame[key]).parent.mkdir(exist_ok=True)
                old.rename(capture / frame[key])

    return changed(capture, move)


def test_photos_of_one_name_do_not_share_a_smaller_picture(tmp_path: Path):
    """nerfstudio looks for the smaller pictures of all folders in one."""
    capture = of_two_cameras(tmp_path / "rig")
    check_capture(PLAIN, capture)
    (capture / "images_2").mkdir()
    for index in range(VIEWS // 2):
        picture(24, 24, index).save(capture / "images_2" / f"{index}.png")
    with refused("images_2/0.png for both images/left/0.png and images/right/0.png"):
        check_capture(NerfstudioDataParserConfig(downscale_factor=2), capture)


@pytest.mark.parametrize("masks", ["dataset", "folder"])
def test_photos_of_one_name_have_no_masks_of_their_own(tmp_path: Path, capsys, masks: str):
    capture = of_two_cameras(tmp_path / "rig", white)
    (tmp_path / "folder").mkdir()
    for index in range(VIEWS // 2):
        Image.new("L", (48, 48), 255).save(tmp_path / "folder" / f"{index}.png")
    named = masks if masks == "dataset" else tmp_path / masks
    said = ns.refusal(capsys, tmp_path / "out", parser=("nerfstudio-data",), data=capture, pipeline__masks=named)
    assert "2 photos of this capture have the name 0" in said


def test_cut_out_photos_of_one_name_and_of_two_sizes_are_restyled(tmp_path: Path, cache):
    """Masks of the object are made for held-out views, too, here of two sizes and of the names of training views."""
    capture = of_two_cameras(tmp_path / "rig", sizes=[(40, 48), *[(48, 40)] * (VIEWS - 1)])
    for path in (capture / "images").rglob("*.png"):
        photo = Image.open(path).convert("RGB")
        photo.putalpha(white(disc(*photo.size)))
        photo.save(path)
    parser = ("nerfstudio-data", "--eval-mode", "interval", "--eval-interval", "3")
    ns.train(tmp_path / "out", parser=parser, data=capture, **{**QUICK, "pipeline__num_eval_views": 2})
    run = ns.only_run(tmp_path / "out")
    made = {path.stem: Image.open(path).size for path in (run / "masks" / "object").glob("*.png")}
    assert len(made) == 5
    assert {size for name, size in made.items() if name.startswith("held_out")} == {(40, 48), (48, 40)}
    assert ns.metrics(run)["round_01"]["held_out"]["psnr_to_base"] > 0


def test_masks_of_photos_that_are_trained_on_and_held_out_are_found(tmp_path: Path, cache):
    capture = make_capture(tmp_path / "all", masks=white)
    parser = ("nerfstudio-data", "--eval-mode", "all")
    ns.train(tmp_path / "out", parser=parser, data=capture, pipeline__masks="dataset", **QUICK)
    assert ns.metrics(ns.only_run(tmp_path / "out"))["round_01"]["style_distance_before"] > 0


@pytest.mark.parametrize("orientation", [2, 3, 6])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_photos_that_may_be_turned_either_way_are_pointed_out(tmp_path: Path, orientation: int, suffix: str):
    """Square ones, or upside down: their size does not say from which pixels the poses were found."""
    capture = make_capture(tmp_path / "capture")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = capture / "images" / "3.png"
    with Image.open(path) as photo:
        photo.convert("RGB").save(path, "TIFF" if suffix == "tiff" else "PNG", exif=exif)
    (hint,) = (line for line in check_capture(PLAIN, capture).lines if "EXIF" in line)
    assert "1 of the photos, for example 3.png, are rotated by their EXIF orientation" in hint
    photos = dataset(capture)
    shown = np.asarray(
        picture(48, 48, 3).transpose(
            {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[
                orientation
            ]
        )
    )
    index = [file.stem for file in photos.image_filenames].index("3")
    assert np.abs(photos.get_numpy_image(index).astype(int) - shown).max() == 0


def test_poses_written_as_text_are_read(tmp_path: Path):
    def as_text(meta: dict) -> None:
        for frame in meta["frames"]:
            frame["transform_matrix"] = [[str(number) for number in row] for row in frame["transform_matrix"]]

    plain = make_capture(tmp_path / "plain")
    account = check_capture(PLAIN, changed(make_capture(tmp_path / "text"), as_text))
    assert account.identity["cameras"] == check_capture(PLAIN, plain).identity["cameras"]


REFUSED = {
    "one photo by two ways": (
        lambda meta: meta["frames"][1].update(file_path="images/../images/0.png"),
        "2 frames for the same photo, images/0.png",
    ),
    "a mask that is null": (every_frame(mask_path=None), "has no mask_path: set it to one path"),
    "depth as a list": (every_frame(depth_file_path=["0.npy"]), "has no depth_file_path: set it to one path"),
    "no suffix": (
        lambda meta: [frame.update(file_path=frame["file_path"][:-4]) for frame in meta["frames"]] and None,
        "no picture .*images/0: there is 0.png, so correct the name",
    ),
    "no suffix of one": (
        lambda meta: meta["frames"][2].update(file_path="images/2"),
        "no picture .*images/2: there is 2.png, so correct the name",
    ),
    "another suffix of the first": (
        lambda meta: meta["frames"][0].update(file_path="images/0.JPG"),
        "no picture .*images/0.JPG: there is 0.png, so correct the name",
    ),
    "another suffix": (
        lambda meta: meta["frames"][2].update(file_path="images/2.JPG"),
        "no picture .*images/2.JPG: there is 2.png, so correct the name",
    ),
    "a lens in small letters": (lambda meta: {**meta, "camera_model": "opencv"}, "camera_model opencv, which"),
    "a rim that is text": (
        lambda meta: {**meta, "camera_model": "OPENCV_FISHEYE", "fisheye_crop_radius": "all"},
        "fisheye_crop_radius in .* is not a number of pixels above 0",
    ),
    "a rim of nothing": (
        lambda meta: {**meta, "camera_model": "OPENCV_FISHEYE", "fisheye_crop_radius": -2},
        "fisheye_crop_radius in .* is not a number of pixels above 0",
    ),
    "a number that is null": (
        lambda meta: meta["frames"][0]["transform_matrix"][0].__setitem__(0, None),
        "0.png .*contains NaN",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_nerfstudio_would_stumble_over_is_refused(tmp_path: Path, fault: str):
    change, words = REFUSED[fault]
    with refused(words):
        check_capture(PLAIN, changed(make_capture(tmp_path / "capture"), change))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_mirrors_or_flattens_the_cameras_is_refused(tmp_path: Path, scale: float):
    with refused("set its scale to a number above 0|contains NaN"):
        check_capture(NerfstudioDataParserConfig(scale_factor=scale), make_capture(tmp_path / "capture"))


def test_a_colour_that_nerfstudio_does_not_know_is_refused(tmp_path: Path):
    poses = json.loads((make_capture(tmp_path / "capture") / "transforms.json").read_text())["frames"]
    frames = [{"file_path": frame["file_path"][:-4], "transform_matrix": frame["transform_matrix"]} for frame in poses]
    for split in ("train", "val"):
        meta = {"camera_angle_x": 0.8, "frames": frames}
        (tmp_path / "capture" / f"transforms_{split}.json").write_text(json.dumps(meta))
    check_capture(BlenderDataParserConfig(), tmp_path / "capture")
    with refused("BlenderDataParserConfig cannot be used .mauve is not a valid preset color"):
        check_capture(BlenderDataParserConfig(alpha_color="mauve"), tmp_path / "capture")


@pytest.mark.parametrize("before", ["// from my scanner\n", "\n{} "])
def test_what_is_not_quite_json_is_refused(tmp_path: Path, before: str):
    capture = make_capture(tmp_path / "capture")
    path = capture / "transforms.json"
    path.write_text(before + path.read_text())
    with refused("not a JSON file in nerfstudio's layout"):
        check_capture(PLAIN, capture)


def test_a_link_is_read_and_one_to_nowhere_is_refused(tmp_path: Path):
    capture = make_capture(tmp_path / "capture")
    photo = capture / "images" / "0.png"
    photo.rename(capture / "elsewhere.png")
    photo.symlink_to("../elsewhere.png")
    (tmp_path / "link").symlink_to(capture)
    check_capture(PLAIN, tmp_path / "link")
    for target in ("../gone.png", "0.png"):
        photo.unlink()
        photo.symlink_to(target)
        with refused("There is no picture .*images/0.png"):
            check_capture(PLAIN, capture)


def test_heic_photos_of_a_capture_are_trained_on(tmp_path: Path, cache):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    capture = make_capture(tmp_path / "capture")

    def convert(meta: dict) -> None:
        for frame in meta["frames"]:
            old = capture / frame["file_path"]
            frame["file_path"] = frame["file_path"].replace(".png", ".HEIC")
            Image.open(old).save(capture / frame["file_path"], "HEIF", quality=95)
            old.unlink()

    config = prepared(style_nerf2nerf_tiny, changed(capture, convert), tmp_path / "out")
    manager = config.pipeline.datamanager.setup(device="cpu", test_mode="val")
    _, batch = manager.next_train(0)
    assert bool(batch["image"].isfinite().all())
    for index, path in enumerate(manager.train_dataset.image_filenames):
        shown = np.asarray(picture(48, 48, int(path.stem)), int)
        assert np.abs(manager.train_dataset.get_numpy_image(index) - shown).mean() < 12


def test_no_point_cloud_is_asked_for(tmp_path: Path):
    """nerfstudio would ask whether it may change a capture that has a colmap folder, and wait for the answer."""
    capture = make_capture(tmp_path / "capture")
    (capture / "colmap" / "sparse" / "0").mkdir(parents=True)
    with refused("omit --load-3D-points"):
        check_capture(NerfstudioDataParserConfig(load_3D_points=True), capture)
    with refused("omit --load-3D-points"):
        PhotosDataParserConfig(data=capture / "images", load_3D_points=True).check()
