"""photos-data: photos of many formats become a nerfstudio dataset, once, whole or not at all."""

import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import ExifTags, Image

from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.base.errors import UserError
from eschernet_prior.data import photo_pictures, photo_poses
from eschernet_prior.data.photo_pictures import (
    content_digest,
    is_video,
    list_photos,
    picture_stems,
    prepare_pictures,
)
from eschernet_prior.data.photos_dataparser import PhotosDataParserConfig, posed_photos
from textured_room import FIELD, draw_room, jpeg, room_poses

VIEWS, SIDE = 9, 256
FILM_FOCAL = 37
"""Millimetres in 35 mm film of about `FIELD` degrees across a square photo."""


def camera_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker", "Camera 1"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = FILM_FOCAL
    return exif


def stored(pixels: np.ndarray, kind: str, orientation: int = 1) -> bytes:
    """A file of a format with the camera's EXIF data."""
    file = io.BytesIO()
    options = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "HEIF": {"quality": 95}, "PNG": {}}[kind]
    Image.fromarray(pixels).save(file, kind, exif=camera_exif(orientation), **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Nine photos of the room in four formats, one of them stored on its side; a grey one; and a copy."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    folder = tmp_path_factory.mktemp("holiday in Übersee")
    kinds = [("JPG", "JPEG"), ("png", "PNG"), ("HEIC", "HEIF"), ("webp", "WEBP")]
    for index, pose in enumerate(room_poses(VIEWS)):
        suffix, kind = kinds[index % 4]
        pixels, orientation = draw_room(pose, SIDE), 1
        if index == 4:
            pixels, orientation = np.ascontiguousarray(np.rot90(pixels)), 6
        (folder / f"IMG_{index + 1}.{suffix}").write_bytes(stored(pixels, kind, orientation))
    shutil.copy(folder / "IMG_1.JPG", folder / "IMG_1 copy.JPG")
    (folder / "IMG_10.JPG").write_bytes(stored(np.full((SIDE, SIDE, 3), 128, np.uint8), "JPEG"))
    (folder / "notes.txt").write_text("no photo")
    (folder / "._IMG_1.JPG").write_bytes(b"what another system leaves behind")
    return folder


@pytest.fixture(scope="session")
def dataset(photos: Path, cache: Path) -> Path:
    return posed_photos(PhotosDataParserConfig(data=photos))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STYLE_NERF2NERF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "photos"


def aligned(places: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that bring places nearest to the truth (Umeyama, PAMI 1991)."""
    a, b = places - places.mean(0), truth - truth.mean(0)
    u, values, v = np.linalg.svd(b.T @ a)
    flip = np.diag([1.0, 1.0, np.linalg.det(u @ v)])
    rotation = u @ flip @ v
    scale = (values * np.diag(flip)).sum() / (a**2).sum()
    return scale, rotation, truth.mean(0) - scale * rotation @ places.mean(0)


def meta_of(folder: Path) -> dict:
    return json.loads((folder / "transforms.json").read_text("utf8"))


def test_photos_of_all_formats_are_placed_where_they_were_taken(dataset: Path):
    meta = meta_of(dataset)
    poses = np.array([frame["transform_matrix"] for frame in meta["frames"]])
    assert [frame["source"].split(".")[0] for frame in meta["frames"]] == [f"IMG_{n}" for n in range(1, VIEWS + 1)]
    truth = room_poses(VIEWS).numpy()
    scale, rotation, shift = aligned(poses[:, :3, 3], truth[:, :3, 3])
    placed = scale * poses[:, :3, 3] @ rotation.T + shift
    assert np.linalg.norm(placed - truth[:, :3, 3], axis=1).max() < 0.03  # of 3 units from the corner
    turned = np.einsum("ij,njk,nlk->nil", rotation, poses[:, :3, :3], truth[:, :3, :3])
    angles = np.degrees(np.arccos(((np.trace(turned, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    assert angles.max() < 0.5
    assert meta["fl_x"] == pytest.approx(SIDE / 2 / np.tan(np.radians(FIELD / 2)), rel=0.01)
    import trimesh

    points = np.asarray(trimesh.load(dataset / meta["ply_file_path"]).vertices)
    on_walls = np.abs(scale * points @ rotation.T + shift).min(1)
    assert len(points) > 100
    assert np.median(on_walls) < 0.01


def test_a_photo_that_shows_nothing_is_named_and_a_copy_left_out(dataset: Path, capsys):
    assert meta_of(dataset)["not_placed"] == ["IMG_10.JPG"]
    sources = {frame["source"] for frame in meta_of(dataset)["frames"]}
    assert len({"IMG_1.JPG", "IMG_1 copy.JPG"} & sources) == 1


def test_nerfstudio_reads_what_is_written_in_every_size(photos: Path, dataset: Path):
    for factor in (1, 2, 4, 8):
        outputs = PhotosDataParserConfig(data=photos, downscale_factor=factor).setup().get_dataparser_outputs("train")
        plain = (
            NerfstudioDataParserConfig(data=dataset, downscale_factor=factor).setup().get_dataparser_outputs("train")
        )
        assert outputs.image_filenames == plain.image_filenames
        assert torch.equal(outputs.cameras.camera_to_worlds, plain.cameras.camera_to_worlds)
        data = InputDataset(outputs)
        assert all(data[index]["image"].shape == (SIDE // factor, SIDE // factor, 3) for index in range(len(data)))
        check_capture(NerfstudioDataParserConfig(data=dataset, downscale_factor=factor), dataset)
    read = data[4]["image"].numpy() * 255  # the one that was stored on its side
    assert np.abs(read - draw_room(room_poses(VIEWS)[4], SIDE).reshape(32, 8, 32, 8, 3).mean((1, 3))).mean() < 6


def test_the_prior_finds_the_object_where_the_cameras_look(dataset: Path):
    from eschernet_prior.frames import object_centre

    poses = np.array([frame["transform_matrix"] for frame in meta_of(dataset)["frames"]])
    scale, rotation, shift = aligned(poses[:, :3, 3], room_poses(VIEWS)[:, :3, 3].numpy())
    centre = object_centre(torch.tensor(poses)).numpy()
    assert np.abs(scale * rotation @ centre + shift - (0.3, 0.3, 0.5)).max() < 0.05


def test_a_dataset_is_made_once(photos: Path, dataset: Path, monkeypatch):
    monkeypatch.setattr(photo_poses, "find_poses", None)
    monkeypatch.setattr(photo_pictures, "prepare_pictures", None)
    moved = photos.parent / "moved"
    shutil.copytree(photos, moved)
    assert posed_photos(PhotosDataParserConfig(data=moved)) == dataset


def test_a_run_that_was_killed_is_taken_up(photos: Path, dataset: Path, empty_cache: Path, monkeypatch):
    import pycolmap

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(photo_poses, "_map", killed)
        with pytest.raises(Killed):
            posed_photos(PhotosDataParserConfig(data=photos))
        (folder,) = empty_cache.glob("[!.]*[!k]")
        assert not (folder / "transforms.json").exists()
        with pycolmap.Database.open(folder / "database.db") as content:
            names = ("IMG_1.jpg", "IMG_2.png", "IMG_3.jpg")
            first, second, third = (content.read_image_with_name(name).image_id for name in names)
            content.delete_two_view_geometry(first, second)
            content.delete_matches(first, second)
            content.delete_two_view_geometry(first, third)
            content.write_two_view_geometry(first, third, pycolmap.TwoViewGeometry())
        patched.setattr(photo_pictures, "_prepare", None)
        with pytest.raises(Killed):
            posed_photos(PhotosDataParserConfig(data=photos))
        with pycolmap.Database.open(folder / "database.db") as content:
            assert len(content.read_matches(first, second)) > 50  # what was missing was done
            assert len(content.read_two_view_geometry(first, third).inlier_matches) == 0  # and the rest left as it was
    assert posed_photos(PhotosDataParserConfig(data=photos)) == folder
    assert len(meta_of(folder)["frames"]) == VIEWS
    assert not (folder / "database.db").exists()


def test_photos_with_alpha_keep_it_and_are_placed_by_what_is_opaque(tmp_path: Path, empty_cache: Path):
    photos = tmp_path / "cut out"
    photos.mkdir()
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    disc = (np.hypot(rows, columns) < SIDE * 0.45).astype(np.uint8) * 255
    for index, pose in enumerate(room_poses(6, arc=0.6)):
        Image.fromarray(np.dstack([draw_room(pose, SIDE), disc])).save(photos / f"{index}.png")
    folder = posed_photos(PhotosDataParserConfig(data=photos))
    assert len(meta_of(folder)["frames"]) == 6
    for frame in meta_of(folder)["frames"]:
        with (
            Image.open(folder / frame["file_path"]) as picture,
            Image.open(folder / "images_2" / picture.filename.split("/")[-1]) as half,
        ):
            assert (picture.mode, half.mode) == ("RGBA", "RGBA")


def test_upright_and_wide_photos_are_placed_together(tmp_path: Path, empty_cache: Path):
    """Of one camera that was turned for some photos, once by their pixels and once by their EXIF orientation."""
    photos = tmp_path / "turned"
    photos.mkdir()
    poses = room_poses(10, arc=0.9)
    for index, pose in enumerate(poses):
        wide = draw_room(pose, 256, 192)
        if index % 2:  # the camera's right is up: the room is drawn as this camera sees it
            turned = pose.clone()
            turned[:3, 0], turned[:3, 1] = pose[:3, 1], -pose[:3, 0]
            wide = draw_room(turned, 256, 192)
        exif = camera_exif(6 if index in (1, 5) else 1)
        pixels = np.rot90(wide, -1) if index in (3, 7, 9) else wide
        (photos / f"{index}.jpg").write_bytes(jpeg(np.ascontiguousarray(pixels), exif))
    folder = posed_photos(PhotosDataParserConfig(data=photos))
    frames = {int(frame["source"][0]): frame for frame in meta_of(folder)["frames"]}
    assert len(frames) == 10
    sizes = {index: (frame["w"], frame["h"]) for index, frame in frames.items()}
    assert sizes == {index: (192, 256) if index % 2 else (256, 192) for index in range(10)}
    found = np.array([frames[index]["transform_matrix"] for index in range(10)])
    scale, rotation, shift = aligned(found[:, :3, 3], poses[:, :3, 3].numpy())
    placed = scale * found[:, :3, 3] @ rotation.T + shift
    assert np.linalg.norm(placed - poses[:, :3, 3].numpy(), axis=1).max() < 0.06
    looking = np.einsum("ij,nj->ni", rotation, found[:, :3, 2])
    assert np.degrees(np.arccos((looking * poses[:, :3, 2].numpy()).sum(1).clip(-1, 1))).max() < 1.5
    account = check_capture(NerfstudioDataParserConfig(data=folder), folder)
    assert account.pictures.sizes == {(256, 192): 5, (192, 256): 5}


def test_photos_that_have_nothing_in_common_are_refused(tmp_path: Path, empty_cache: Path):
    photos = tmp_path / "mixed"
    photos.mkdir()
    for index, pose in enumerate(room_poses(3, arc=0.3)):
        noise = np.random.default_rng(index).integers(0, 255, (128, 128, 3), np.uint8)
        (photos / f"{index}.jpg").write_bytes(jpeg(noise if index else draw_room(pose, 128)))
    with refused(r"^Only 0 of 3 photos could be placed \(not 0.jpg, 1.jpg, 2.jpg\): take sharp photos"):
        posed_photos(PhotosDataParserConfig(data=photos))


# Options and refusals.


def refused(words: str):
    """Expects one sentence with these words."""
    return pytest.raises(UserError, match=rf"(?s)^(?=.*{words})[^\n]{{30,}}\.$")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.jpg").write_bytes(jpeg(np.full((80, 96, 3), 40 * index, np.uint8)))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "There is no .*three: set --data to a folder of photos or a video"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no photos in .*JPEG, PNG, HEIC or WebP"),
        (lambda folder: [(folder / f"{n}.jpg").unlink() for n in (0, 1)], "is 1 photo in .*at least 3"),
        (lambda folder: (folder / "1.jpg").unlink(), "are 2 photos in .*at least 3"),
        (lambda folder: (folder / "transforms.json").write_text("{}"), "already has poses .*nerfstudio-data"),
        (lambda folder: (folder / "1.jpg").write_bytes(b"\xff\xd8\xff no photo"), "1.jpg cannot be read as a picture"),
        (lambda folder: (folder / "1.jpg").write_bytes(b""), "1.jpg is empty"),
        (lambda folder: cut_off(folder / "1.jpg"), "1.jpg cannot be read as a picture"),
        (lambda folder: shutil.copy(folder / "1.jpg", folder / "2.jpg"), "only 2 differ"),
        (lambda folder: Image.new("RGB", (40, 90)).save(folder / "1.jpg"), "1.jpg has 40 × 90 pixels"),
        (lambda folder: Image.new("RGBA", (90, 90)).save(folder / "3.png"), "3.png is completely transparent"),
    ],
)
def test_what_cannot_work_costs_one_sentence(three: Path, empty_cache: Path, change, words: str):
    change(three)
    with refused(words):
        posed_photos(PhotosDataParserConfig(data=three))
    assert not list(empty_cache.glob("*/*"))  # nothing is left of it


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_where_photos_may_be_is_said(three: Path, tmp_path: Path):
    with refused("the folder .*three contains some"):
        list_photos(tmp_path)
    with refused("is a single picture: set --data to the folder"):
        list_photos(three / "1.jpg")
    for path in three.iterdir():
        path.rename(path.with_suffix(".NEF"))
    with refused("3 raw files"):
        list_photos(three)
    for path in three.iterdir():
        path.rename(path.with_suffix(".MOV"))
    with refused("for the video set --data to .*0.MOV"):
        list_photos(three)


def test_options_that_cannot_work_are_refused(three: Path):
    with refused("--max-size to 256"):
        posed_photos(PhotosDataParserConfig(data=three, max_size=100))
    with refused("--video-frames"):
        posed_photos(PhotosDataParserConfig(data=three, video_frames=2))


def test_a_cache_that_cannot_be_written_is_said(three: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLE_NERF2NERF_CACHE", str(tmp_path / "file"))
    with refused("set STYLE_NERF2NERF_CACHE"):
        posed_photos(PhotosDataParserConfig(data=three))


def test_a_command_ends_on_the_sentence(three: Path, capsys):
    (three / "1.jpg").unlink()
    with pytest.raises(SystemExit) as ended:
        PhotosDataParserConfig(data=three).setup().get_dataparser_outputs("train")
    assert ended.value.code == 1
    assert "are 2 photos" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "factor"), [("cpu", 1), ("cuda", None)])
def test_before_training_the_size_is_chosen(photos: Path, dataset: Path, device: str, factor: int | None, monkeypatch):
    pipeline = SimpleNamespace(datamanager=SimpleNamespace())
    run = SimpleNamespace(machine=SimpleNamespace(device_type=device), pipeline=pipeline)
    config = PhotosDataParserConfig(data=photos)
    config.prepare(run)
    assert config.downscale_factor == factor
    monkeypatch.setattr("eschernet_prior.data.photos_dataparser.CPU_SIZE", 64)
    config = PhotosDataParserConfig(data=photos)
    config.prepare(run)
    assert config.downscale_factor == (4 if device == "cpu" else None)
    with refused("--downscale-factor to one of 1, 2, 4, 8"):
        PhotosDataParserConfig(data=photos, downscale_factor=3).prepare(run)


def test_the_key_is_the_content_and_the_options(three: Path, tmp_path: Path):
    files = sorted(three.iterdir())
    key = content_digest(files, {"a": 1})
    assert re.fullmatch("[0-9a-f]{16}", key)
    moved = tmp_path / "moved"
    shutil.copytree(three, moved)
    assert content_digest(sorted(moved.iterdir()), {"a": 1}) == key
    assert content_digest(files, {"a": 2}) != key
    assert content_digest(files[:2], {"a": 1}) != key
    shutil.copy(files[0], files[1])
    assert content_digest(files, {"a": 1}) != key


def test_photos_come_in_the_order_of_their_numbers(tmp_path: Path):
    names = ["a1.jpg", "a2.jpg", "A10.JPEG", "a10.png", "b.webp", "b1.HEIC"]
    for name in [*names, ".b2.jpg", "c.txt"]:
        (tmp_path / name).touch()
    assert [path.name for path in list_photos(tmp_path)] == names
    assert not is_video(tmp_path / "a1.jpg")
    assert is_video(tmp_path / "c.txt")
    assert not is_video(tmp_path)


def test_pictures_are_named_like_the_photos():
    names = ["IMG_1.JPG", "img_1.heic", "Küche 2.webp", "Küche_2.png", "a.b.jpg"]
    assert picture_stems(names) == ["IMG_1", "img_1_2", "Küche_2", "Küche_2_2", "a.b"]


def test_photos_are_reduced_and_their_focal_length_with_them(tmp_path: Path):
    photos, folder = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    exif = camera_exif()
    for index in range(3):
        Image.effect_noise((400, 300), 60 + index).convert("RGB").save(photos / f"{index}.jpg", exif=exif)
    pictures = prepare_pictures(photos, folder, 200, 0)
    assert [picture.name for picture in pictures] == ["0.jpg", "1.jpg", "2.jpg"]
    assert {(picture.width, picture.height) for picture in pictures} == {(200, 150)}
    assert pictures[0].focal == pytest.approx(FILM_FOCAL / 43.27 * 250, rel=1e-3)
    assert pictures[0].lens == f"Maker Camera 1 {FILM_FOCAL:.1f}"
    with Image.open(folder / "images" / pictures[0].name) as picture:
        assert picture.size == (200, 150)
    # As large as they may be, they are copied byte by byte.
    whole = prepare_pictures(photos, tmp_path / "whole", 400, 0)
    assert (tmp_path / "whole" / "images" / whole[0].name).read_bytes() == (photos / "0.jpg").read_bytes()


def test_the_density_of_the_sensor_gives_the_focal_length_too():
    exif = Image.Exif()
    detail = exif.get_ifd(ExifTags.IFD.Exif)
    detail[ExifTags.Base.FocalLength], detail[ExifTags.Base.ExifImageWidth] = 50.0, 6000
    detail[ExifTags.Base.ExifImageHeight] = 4000
    detail[ExifTags.Base.FocalPlaneXResolution], detail[ExifTags.Base.FocalPlaneResolutionUnit] = 6000 / 3.6, 3
    _, focal = photo_pictures._lens(exif, 3000, np.hypot(3000, 2000))
    assert focal == pytest.approx(50 / 36 * 3000)
    detail[ExifTags.Base.FocalLength] = "nonsense"
    assert photo_pictures._lens(exif, 3000, np.hypot(3000, 2000))[1] is None


# Registration.


def test_it_is_registered_and_loads_nothing_until_it_is_used():
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf8")
    module, name = re.search(r'^photos-data = "([\w.]+):(\w+)"$', project, re.MULTILINE).groups()
    assert isinstance(getattr(importlib.import_module(module), name).config, PhotosDataParserConfig)
    code = f"import sys, {module}; print('LOADED', {{'pycolmap', 'pillow_heif', 'av', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("LOADED")[1].strip() == "set()"


@pytest.mark.slow
def test_forty_photos_of_the_bear_are_placed_as_in_its_own_capture(shared: Path, tmp_path: Path, empty_cache: Path):
    bear = shared / "data" / "bear"
    files = sorted((bear / "images").iterdir())
    for index in np.linspace(0, len(files) - 1, 40).round().astype(int):
        shutil.copy(files[index], tmp_path)
    config = PhotosDataParserConfig(data=tmp_path / "photos")
    config.data.mkdir()
    for path in tmp_path.glob("*.jpg"):
        path.rename(config.data / path.name)
    meta = meta_of(posed_photos(config))
    own = {Path(f["file_path"]).name: f["transform_matrix"] for f in meta_of(bear)["frames"]}
    poses = np.array([frame["transform_matrix"] for frame in meta["frames"]])
    truth = np.array([own[frame["source"]] for frame in meta["frames"]])
    assert len(poses) == 40
    scale, rotation, shift = aligned(poses[:, :3, 3], truth[:, :3, 3])
    errors = np.linalg.norm(scale * poses[:, :3, 3] @ rotation.T + shift - truth[:, :3, 3], axis=1)
    spread = np.linalg.norm(truth[:, :3, 3] - truth[:, :3, 3].mean(0), axis=1).mean()
    assert np.median(errors) < 0.002 * spread
    turned = np.einsum("ij,njk,nlk->nil", rotation, poses[:, :3, :3], truth[:, :3, :3])
    assert np.median(np.degrees(np.arccos((np.trace(turned, axis1=1, axis2=2) - 1) / 2))) < 0.3
    assert replace(config, downscale_factor=4).setup().get_dataparser_outputs("val").cameras.width.unique() == 128
