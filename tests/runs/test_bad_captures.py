"""Captures with a fault: each is refused in one sentence that says what to do, before anything is built."""

import io
import json
from pathlib import Path

import pytest
import torch
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.scannet_dataparser import ScanNetDataParserConfig
from PIL import Image

from eschernet_prior.base.cameras import spherical_views
from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.base.errors import UserError
from eschernet_prior.densify.datamanager import ONE_LENS
from refused import refused
from style_nerf2nerf.datamanager import RESTYLED_LENSES

VIEWS, SIDE = 4, 16


def photo(colour=(90, 120, 150), kind: str = "PNG", side: int = SIDE, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, kind) if mode == "RGB" else Image.new(
        mode, (side, side), colour
    ).save(file, kind)
    return file.getvalue()


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A small capture without faults."""
    frames = []
    for index in range(VIEWS):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{index}.png").write_bytes(photo())
        pose = torch.eye(4)
        pose[0, 3] = index
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": pose.tolist()})
    meta = {"w": SIDE, "h": SIDE, "fl_x": 16, "fl_y": 16, "cx": 8, "cy": 8, "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    return tmp_path


def with_masks(meta: dict) -> None:
    for index, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{index}.png"


def change_meta(change):
    def apply(folder: Path) -> None:
        path = folder / "transforms.json"
        meta = json.loads(path.read_text())
        path.write_text(json.dumps(change(meta) or meta))

    return apply


def set_pose(pose: object):
    return change_meta(lambda meta: meta["frames"][2].update(transform_matrix=pose))


def scaled(*diagonal: float) -> list:
    return torch.diag(torch.tensor([*diagonal, 1.0])).tolist()


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def all_photos(content: bytes):
    return lambda folder: [path.write_bytes(content) for path in (folder / "images").iterdir()]


def rewritten(encoding: str):
    """The same file in another encoding, with a name that is not ASCII."""

    def apply(folder: Path) -> None:
        path = folder / "transforms.json"
        meta = json.loads(path.read_text())
        path.write_bytes(json.dumps({**meta, "note": "für später"}, ensure_ascii=False).encode(encoding))

    return apply


def named(name: str):
    return change_meta(lambda meta: meta["frames"][2].update(file_path=name))


def split(**lists: list[str]):
    return change_meta(lambda meta: {**meta, **{f"{name}_filenames": files for name, files in lists.items()}})


def moved(*position: float) -> torch.Tensor:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor(position)
    return pose


def masks_and(then):
    def apply(folder: Path) -> None:
        change_meta(with_masks)(folder)
        then(folder)

    return apply


CAPTURES = {
    "no transforms.json": (lambda folder: (folder / "transforms.json").unlink(), "There are no poses"),
    "transforms.json is no JSON": (write("transforms.json", b"{"), "not a JSON file"),
    "transforms.json is UTF-16": (rewritten("utf-16"), "UTF-16"),
    "transforms.json is UTF-32": (rewritten("utf-32"), "UTF-32"),
    "transforms.json with a byte order mark": (rewritten("utf-8-sig"), "byte order mark"),
    "transforms.json is Latin-1": (rewritten("latin-1"), "not encoded as UTF-8"),
    "transforms.json is binary": (write("transforms.json", b"\x00\x01\x02"), "not a JSON file"),
    "transforms.json is a list": (write("transforms.json", b"[]"), "nerfstudio's layout"),
    "frames are no list": (write("transforms.json", b'{"frames": 7}'), "nerfstudio's layout"),
    "no frames": (change_meta(lambda meta: {**meta, "frames": []}), "has 0 views"),
    "one view": (change_meta(lambda meta: {**meta, "frames": meta["frames"][:1]}), "has 1 views"),
    "frame without file": (change_meta(lambda meta: meta["frames"][1].pop("file_path") and None), "no file_path"),
    "frame is a name": (change_meta(lambda meta: {**meta, "frames": ["0.png", "1.png"]}), "no file_path"),
    "frames of one photo": (
        change_meta(lambda meta: meta["frames"][1].update(file_path="./images/0.png")),
        "2 frames for the same photo, images/0.png",
    ),
    "backslashes": (named("images\\2.png"), r"images\\2.png, a path with backslashes"),
    "path of Windows": (named("C:\\photos\\2.png"), "path of a Windows disk"),
    "photo missing": (lambda folder: (folder / "images" / "2.png").unlink(), "There is no picture .*images/2.png"),
    "first photo missing": (
        lambda folder: (folder / "images" / "0.png").unlink(),
        "There is no picture .*images/0.png",
    ),
    "photo empty": (write("images/2.png", b""), "2.png is empty"),
    "photo is text": (write("images/2.png", b"no picture at all"), "2.png cannot be read"),
    "PNG cut off": (write("images/2.png", photo()[:-60]), "2.png cannot be read"),
    "JPEG cut off": (write("images/2.png", photo(kind="JPEG", side=64)[:900]), "2.png cannot be read"),
    "photo of another size": (write("images/2.png", photo(side=24)), "2.png has 24 × 24 pixels"),
    "photos all transparent": (all_photos(photo((9, 9, 9, 0), mode="RGBA")), "fully transparent"),
    "no focal length": (change_meta(lambda meta: meta.pop("fl_x") and None), "no fl_x"),
    "focal length is NaN": (change_meta(lambda meta: {**meta, "fl_y": float("nan")}), "no fl_y"),
    "width of 0": (change_meta(lambda meta: {**meta, "w": 0}), "no w above 0"),
    "focal length is text": (change_meta(lambda meta: {**meta, "fl_x": "long"}), "no fl_x"),
    "focal length is 0": (change_meta(lambda meta: {**meta, "fl_x": 0}), "no fl_x above 0"),
    "instant-ngp's file": (
        change_meta(lambda meta: (meta.pop("fl_x"), {**meta, "camera_angle_x": 0.8})[1]),
        "instant-ngp-data",
    ),
    "numbers of larger photos": (change_meta(lambda meta: {**meta, "cx": 16.5}), "outside its picture"),
    "own focal length hidden": (
        change_meta(lambda meta: meta["frames"][1].update(fl_x=20)),
        "1.png in .* has fl_x = 20, which nerfstudio ignores",
    ),
    "own distortion hidden": (
        change_meta(lambda meta: meta["frames"][1].update(k1=0.1) or {**meta, "p1": 0.0}),
        "1.png in .* has k1 = 0.1, which nerfstudio ignores because of p1",
    ),
    "distortion is text": (change_meta(lambda meta: {**meta, "k1": "some"}), "lens distortion"),
    "distortion of 5 numbers": (change_meta(lambda meta: {**meta, "distortion_params": [0] * 5}), "must be 6 numbers"),
    "k4 alone": (change_meta(lambda meta: {**meta, "k4": 0.1}), "has k4 without k1"),
    "FISHEYE624 without its numbers": (
        change_meta(lambda meta: {**meta, "camera_model": "FISHEYE624"}),
        "lacks the 12 distortion_params",
    ),
    "unknown camera model": (change_meta(lambda meta: {**meta, "camera_model": "FULL_OPENCV"}), "FULL_OPENCV, which"),
    "camera model in the frames": (
        change_meta(lambda meta: [frame.update(camera_model="OPENCV_FISHEYE") for frame in meta["frames"]] and None),
        "0.png in .* has the camera_model OPENCV_FISHEYE, and nerfstudio reads only the one at the top",
    ),
    "two camera models": (
        change_meta(
            lambda meta: meta["frames"][3].update(camera_model="OPENCV_FISHEYE") or {**meta, "camera_model": "OPENCV"}
        ),
        "3.png in .* has the camera_model OPENCV_FISHEYE",
    ),
    "applied_transform of 4 × 4": (
        change_meta(lambda meta: {**meta, "applied_transform": torch.eye(4).tolist()}),
        "not an invertible 3×4 matrix",
    ),
    "applied_transform that flattens": (
        change_meta(lambda meta: {**meta, "applied_transform": torch.zeros(3, 4).tolist()}),
        "not an invertible 3×4 matrix",
    ),
    "applied_scale of 0": (change_meta(lambda meta: {**meta, "applied_scale": 0}), "not a number above 0"),
    "unknown orientation": (change_meta(lambda meta: {**meta, "orientation_override": "down"}), "must be one of pca"),
    "split without held-out views": (
        split(train=["images/0.png", "images/1.png"]),
        "has train_filenames and no val_filenames",
    ),
    "split names a missing file": (
        split(train=["images/0.png", "images/1.png"], val=["images/7.png"]),
        "val_filenames in .* lists images/7.png",
    ),
    "split of one view": (split(train=["images/0.png"], val=["images/1.png"]), "lists 1 views"),
    "some depth": (
        change_meta(lambda meta: meta["frames"][0].update(depth_file_path="depth/0.npy")),
        "1 of the 4 frames .* have a depth_file_path, and images/1.png has none",
    ),
    "no pose": (change_meta(lambda meta: meta["frames"][2].pop("transform_matrix") and None), "not a 4×4 matrix"),
    "pose of 3 × 3": (set_pose([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), "not a 4×4 matrix"),
    "ragged pose": (set_pose([[1, 0], [0]]), "not a 4×4 matrix"),
    "pose with NaN": (set_pose([[float("nan")] * 4] * 4), "contains NaN"),
    "pose transposed": (set_pose(moved(3.0, 0, 0).T.tolist()), "so transpose it"),
    "far from the origin": (
        change_meta(
            lambda meta: (
                [
                    frame.update(transform_matrix=moved(5e5 + index, 4e6, 0).tolist())
                    for index, frame in enumerate(meta["frames"])
                ]
                and None
            )
        ),
        "subtract the mean position",
    ),
    "pose that stretches": (set_pose(scaled(2, 1, 1)), "not rigid"),
    "pose that mirrors": (set_pose(scaled(1, 1, -1)), "not rigid"),
    "all at one place": (
        change_meta(lambda meta: [frame.update(transform_matrix=scaled(1, 1, 1)) for frame in meta["frames"]] and None),
        "have the same position",
    ),
    "some masks": (change_meta(lambda meta: meta["frames"][0].update(mask_path="masks/0.png")), "1 of the 4 frames"),
    "mask missing": (masks_and(lambda folder: (folder / "masks" / "1.png").unlink()), "There is no mask"),
    "mask of another size": (masks_and(write("masks/1.png", photo(side=8))), "as large as their photos"),
    "mask black": (masks_and(write("masks/1.png", photo(0, mode="L"))), "completely black"),
    "mask cut off": (masks_and(write("masks/1.png", photo()[:-60])), "masks/1.png cannot be read"),
}


@pytest.mark.parametrize("fault", CAPTURES)
def test_a_capture_with_a_fault_is_refused(capture: Path, fault: str):
    change, words = CAPTURES[fault]
    check_capture(NerfstudioDataParserConfig(), capture)
    change(capture)
    with refused(words):
        check_capture(NerfstudioDataParserConfig(), capture)


def test_smaller_photos_that_are_not_there(capture: Path):
    with refused("no folder images_4"):
        check_capture(NerfstudioDataParserConfig(downscale_factor=4), capture)
    (capture / "images_4").mkdir()
    with refused("images_4/0.png for --downscale-factor 4"):
        check_capture(NerfstudioDataParserConfig(downscale_factor=4), capture)
    for index in range(VIEWS):
        (capture / "images_4" / f"{index}.png").write_bytes(photo(side=5))
    with refused("0.png has 5 × 5 pixels and its camera 4 × 4 for --downscale-factor 4"):
        check_capture(NerfstudioDataParserConfig(downscale_factor=4), capture)
    for index in range(VIEWS):
        (capture / "images_4" / f"{index}.png").write_bytes(photo(side=4))
    account = check_capture(NerfstudioDataParserConfig(downscale_factor=4), capture)
    assert account.pictures.sizes == {(4, 4): VIEWS}
    change_meta(with_masks)(capture)
    with refused("There is no mask .*masks_4/0.png for --downscale-factor 4"):
        check_capture(NerfstudioDataParserConfig(downscale_factor=4), capture)


def test_large_photos_that_nerfstudio_halves_by_itself(capture: Path):
    side = 1700
    change_meta(lambda meta: meta | {"w": side, "h": side, "fl_x": side, "fl_y": side, "cx": 850, "cy": 850})(capture)
    (capture / "images_2").mkdir()
    for index in range(VIEWS):
        (capture / "images" / f"{index}.png").write_bytes(photo(side=side, mode="L", colour=90))
        if index < VIEWS - 1:
            (capture / "images_2" / f"{index}.png").write_bytes(photo(side=side // 2, mode="L", colour=90))
    with refused("images_2/3.png for photos above 1600 pixels"):
        check_capture(NerfstudioDataParserConfig(), capture)
    (capture / "images_2" / "3.png").write_bytes(photo(side=side // 2, mode="L", colour=90))
    assert "2 times smaller by itself" in check_capture(NerfstudioDataParserConfig(), capture).lines[1]
    masks_and(
        lambda folder: [
            path.write_bytes(photo(side=side, mode="L", colour=255)) for path in (folder / "masks").iterdir()
        ]
    )(capture)
    with refused("There is no mask .*masks_2/0.png"):
        check_capture(NerfstudioDataParserConfig(), capture)


def test_photos_that_are_shown_turned(capture: Path):
    """The camera must be that of the picture as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (capture / "images").iterdir():
        Image.new("RGB", (SIDE, 8)).save(path, exif=exif)
    change_meta(lambda meta: meta | {"h": 8, "cy": 4})(capture)
    with refused("0.png is rotated by its EXIF orientation to 8 × 16 pixels"):
        check_capture(NerfstudioDataParserConfig(), capture)
    change_meta(lambda meta: meta | {"w": 8, "h": SIDE, "cx": 4, "cy": 8})(capture)
    check_capture(NerfstudioDataParserConfig(), capture)


@pytest.mark.parametrize("name", ["images/0.PNG", "images/0.jpeg"])
def test_suffixes_do_not_matter(capture: Path, name: str):
    (capture / "images" / "0.png").rename(capture / name)
    change_meta(lambda meta: meta["frames"][0].update(file_path=name))(capture)
    check_capture(NerfstudioDataParserConfig(), capture)


def test_lenses_that_a_method_cannot_work_with(capture: Path):
    change_meta(lambda meta: meta | {"camera_model": "OPENCV_FISHEYE"})(capture)
    assert "fisheye" in check_capture(NerfstudioDataParserConfig(), capture, RESTYLED_LENSES).lines[2]
    with refused("fisheye cameras: the prior supports only perspective photos"):
        check_capture(NerfstudioDataParserConfig(), capture, ONE_LENS)
    change_meta(lambda meta: meta | {"camera_model": "EQUIRECTANGULAR"})(capture)
    for lenses, words in (
        (ONE_LENS, "the prior supports only"),
        (RESTYLED_LENSES, "only views of perspective and fisheye"),
    ):
        with refused(f"equirectangular cameras: {words}"):
            check_capture(NerfstudioDataParserConfig(), capture, lenses)
    change_meta(lambda meta: meta | {"camera_model": "OPENCV", "k1": 0.0, "k4": 0.01})(capture)
    with refused("parameter k4: the prior supports only"):
        check_capture(NerfstudioDataParserConfig(), capture, ONE_LENS)


def test_poses_that_nerfstudio_mirrors_are_refused(capture: Path):
    def upside_down(meta: dict) -> None:
        for index, frame in enumerate(meta["frames"]):
            pose = moved(index * 1.0, 0.1 * index**2, 0.05 * (-1) ** index)
            pose[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) if index else torch.eye(3)
            frame["transform_matrix"] = pose.tolist()

    change_meta(upside_down)(capture)
    outcomes = set()
    for turn in (1, -1):
        change_meta(
            lambda meta: (
                [
                    frame.update(
                        transform_matrix=(
                            torch.diag(torch.tensor([1.0, turn, turn, 1])) @ torch.tensor(frame["transform_matrix"])  # noqa: B023
                        ).tolist()
                    )
                    for frame in meta["frames"]
                ]
                and None
            )
        )(capture)
        try:
            check_capture(NerfstudioDataParserConfig(orientation_method="pca"), capture)
            outcomes.add("fine")
        except UserError as error:
            outcomes.add("refused" if "choose up, vertical or none" in str(error) else str(error))
    assert outcomes == {"fine", "refused"}
    check_capture(NerfstudioDataParserConfig(orientation_method="up"), capture)


def blender(folder: Path, *splits: str) -> None:
    (folder / "transforms.json").unlink()
    for split_name in splits:
        frames = [
            {"file_path": f"./images/{index}", "transform_matrix": moved(index, 0, 0).tolist()}
            for index in range(VIEWS)
        ]
        (folder / f"transforms_{split_name}.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))


def test_nerf_synthetic_sets(capture: Path):
    blender(capture, "train", "test")
    with refused("end the command with blender-data"):
        check_capture(NerfstudioDataParserConfig(), capture)
    with refused("copy transforms_test.json to transforms_val.json"):
        check_capture(BlenderDataParserConfig(), capture)
    (capture / "transforms_test.json").rename(capture / "transforms_val.json")
    account = check_capture(BlenderDataParserConfig(), capture)
    assert any("transforms_test.json is missing" in line for line in account.lines)
    path = capture / "transforms_train.json"
    good = path.read_text()
    for old, new, words in (
        ("images/2", "images/2.png", "must not end in .png"),
        ("images/2", "images/9", "transforms_train.json lists .*9.png, which does not exist"),
        ("0.8", "0", "no camera_angle_x"),
        ("images/2", "images/1", "2 frames for the same photo"),
    ):
        path.write_text(good.replace(old, new))
        with refused(words):
            check_capture(BlenderDataParserConfig(), capture)
    path.write_text(good)
    (capture / "images" / "2.png").write_bytes(photo(side=24))
    with refused("2.png has 24 × 24 pixels"):
        check_capture(BlenderDataParserConfig(), capture)


def test_what_a_dataparser_stumbles_over_is_a_sentence(capture: Path):
    with refused("The dataparser ScanNet cannot read the train views of .* correct the files"):
        check_capture(ScanNetDataParserConfig(), capture)
    with refused("cannot read the train views .*train/eval"):
        check_capture(NerfstudioDataParserConfig(eval_mode="filename"), capture)


def test_the_account_of_a_capture_names_what_was_found(capture: Path):
    change_meta(lambda meta: with_masks(meta) or meta | {"k1": 0.01, "applied_transform": torch.eye(4)[:3].tolist()})(
        capture
    )
    account = check_capture(NerfstudioDataParserConfig(train_split_fraction=0.5), capture)
    said = " ".join(account.lines)
    for words in (
        "2 views to train on, 2 held out (--train-split-fraction 0.5)",
        "16 × 16 pixels",
        "% of the pictures are inside",
        "perspective, 53° across, with distortion",
        "orientation up, centre poses",
        "after the applied_transform of transforms.json",
    ):
        assert words in said


def test_poses_with_axes_of_opencv_are_pointed_out(capture: Path):
    def around(sign: float) -> None:
        def turn(meta: dict) -> None:
            for frame, pose in zip(meta["frames"], spherical_views(VIEWS, generator=torch.Generator().manual_seed(0))):
                frame["transform_matrix"] = (pose @ torch.diag(torch.tensor([1, sign, sign, 1.0]))).tolist()

        change_meta(turn)(capture)

    around(1.0)
    assert not any("OpenCV" in line for line in check_capture(NerfstudioDataParserConfig(), capture).lines)
    around(-1.0)
    assert any("OpenCV" in line for line in check_capture(NerfstudioDataParserConfig(), capture).lines)


def test_a_mask_and_alpha_that_say_something_are_fine(capture: Path):
    masks_and(all_photos(photo((9, 9, 9, 255), mode="RGBA")))(capture)
    check_capture(NerfstudioDataParserConfig(), capture)


def test_no_such_folder(tmp_path: Path):
    with refused("There is no .*nowhere"):
        check_capture(NerfstudioDataParserConfig(), tmp_path / "nowhere")
