"""A catalogue of what people get wrong: each costs one sentence that says what to do, before anything is built.

What a whole command does on such a sentence is in tests/test_messages.py: exit status 1 and no stack trace.
"""

import copy
import errno
import io
import json
import pickle
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from eschernet_prior.base.cameras import spherical_views
from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import check_state
from eschernet_prior.base.trainer import read_checkpoint, report_full_disk
from eschernet_prior.densify.datamanager import ONE_LENS
from style_nerf2nerf import gallery
from style_nerf2nerf.config import style_nerf2nerf_tiny
from style_nerf2nerf.datamanager import RESTYLED_LENSES
from style_nerf2nerf.features import VGG19Features
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.models.hub import ensure_ip_adapter, locate_clipseg, locate_lora
from style_nerf2nerf.restyler.settings import Settings
from style_nerf2nerf.rounds.runner import RoundRunner
from style_nerf2nerf.trainer import StyleTrainerConfig

VIEWS, SIDE = 4, 16


def refused(words: str):
    """Expects one sentence with these words: a line that ends in a full stop."""
    sentence = rf"^(?=.*{words})[^\n]{{30,}}\.$"
    return pytest.raises(UserError, match=sentence)


# Captures.


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
    "transforms.json is Latin-1": (rewritten("latin-1"), "not written in UTF-8"),
    "transforms.json is binary": (write("transforms.json", b"\x00\x01\x02"), "not a JSON file"),
    "transforms.json is a list": (write("transforms.json", b"[]"), "nerfstudio's layout"),
    "frames are no list": (write("transforms.json", b'{"frames": 7}'), "nerfstudio's layout"),
    "no frames": (change_meta(lambda meta: {**meta, "frames": []}), "has 0 views"),
    "one view": (change_meta(lambda meta: {**meta, "frames": meta["frames"][:1]}), "has 1 views"),
    "frame without file": (change_meta(lambda meta: meta["frames"][1].pop("file_path") and None), "no file_path"),
    "frame is a name": (change_meta(lambda meta: {**meta, "frames": ["0.png", "1.png"]}), "no file_path"),
    "frames of one photo": (
        change_meta(lambda meta: meta["frames"][1].update(file_path="./images/0.png")),
        "2 frames of one photo, images/0.png",
    ),
    "backslashes": (named("images\\2.png"), r"images\\2.png with backslashes"),
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
    "distortion of 5 numbers": (change_meta(lambda meta: {**meta, "distortion_params": [0] * 5}), "are not 6 numbers"),
    "k4 alone": (change_meta(lambda meta: {**meta, "k4": 0.1}), "k4 alone"),
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
        "no invertible 3×4 matrix",
    ),
    "applied_transform that flattens": (
        change_meta(lambda meta: {**meta, "applied_transform": torch.zeros(3, 4).tolist()}),
        "no invertible 3×4 matrix",
    ),
    "applied_scale of 0": (change_meta(lambda meta: {**meta, "applied_scale": 0}), "no number above 0"),
    "unknown orientation": (change_meta(lambda meta: {**meta, "orientation_override": "down"}), "is none of pca"),
    "split without held-out views": (
        split(train=["images/0.png", "images/1.png"]),
        "has train_filenames and no val_filenames",
    ),
    "split names a missing file": (
        split(train=["images/0.png", "images/1.png"], val=["images/7.png"]),
        "val_filenames in .* names images/7.png",
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
    "mask black": (masks_and(write("masks/1.png", photo(0, mode="L"))), "black all over"),
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
    with refused("0.png is shown turned by its EXIF orientation, as 8 × 16 pixels"):
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
    with refused("fisheye cameras: the prior knows perspective photos"):
        check_capture(NerfstudioDataParserConfig(), capture, ONE_LENS)
    change_meta(lambda meta: meta | {"camera_model": "EQUIRECTANGULAR"})(capture)
    for lenses, words in ((ONE_LENS, "the prior knows"), (RESTYLED_LENSES, "only views of perspective and fisheye")):
        with refused(f"equirectangular cameras: {words}"):
            check_capture(NerfstudioDataParserConfig(), capture, lenses)
    change_meta(lambda meta: meta | {"camera_model": "OPENCV", "k1": 0.0, "k4": 0.01})(capture)
    with refused("parameter k4: the prior knows"):
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
        ("images/2", "images/9", "There is no picture .*9.png"),
        ("0.8", "0", "no camera_angle_x"),
        ("images/2", "images/1", "2 frames of one photo"),
    ):
        path.write_text(good.replace(old, new))
        with refused(words):
            check_capture(BlenderDataParserConfig(), capture)
    path.write_text(good)
    (capture / "images" / "2.png").write_bytes(photo(side=24))
    with refused("2.png has 24 × 24 pixels"):
        check_capture(BlenderDataParserConfig(), capture)


def test_what_a_dataparser_stumbles_over_is_a_sentence(capture: Path):
    with refused("ColmapDataParser, the dataparser, cannot read the train views of .* correct the files"):
        check_capture(ColmapDataParserConfig(), capture)
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


# Options.


def changed(**options: object) -> StyleTrainerConfig:
    """The tiny method's configuration with some options; underscores twice stand for dots."""
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    for name, value in options.items():
        owner, *path = config, *name.split("__")
        for part in path[:-1]:
            owner = getattr(owner, part)
        assert hasattr(owner, path[-1])
        setattr(owner, path[-1], value)
    return config


OPTIONS = {
    "prompt empty": ({"model__prompt": ""}, "--prompt"),
    "prompt of blanks": ({"model__prompt": " \n\t"}, "--prompt"),
    "further prompt empty": ({"model__more_prompts": ("",)}, "--prompt"),
    "prompt huge": ({"model__prompt": "very " * 5000}, "at most 1000"),
    "negative prompt huge": ({"model__negative_prompt": "ugly " * 5000}, "at most 1000"),
    "strength above 1": ({"rounds__strength": 1.5}, "rounds.strength"),
    "strength 0": ({"rounds__strength": 0.0}, "rounds.strength"),
    "decay 0": ({"rounds__strength_decay": 0.0}, "strength-decay"),
    "no retraining": ({"rounds__retrain_steps": 0}, "retrain-steps"),
    "negative reconstruction": ({"rounds__reconstruct_steps": -1}, "reconstruct-steps"),
    "negative rounds": ({"rounds__rounds": -1}, "rounds.rounds"),
    "too few denoising steps": ({"restyle__num_inference_steps": 1}, "less than one step"),
    "negative loss": ({"model__style_loss_mult": -1.0}, "style-loss-mult"),
    "all losses off": (
        {f"model__{name}_loss_mult": 0.0 for name in ("style", "aligned", "ray", "rgb", "gram")},
        "All losses that follow the restyled views are off",
    ),
    "layer weights do not fit": ({"model__style_layer_weights": (1.0,)}, "one per layer"),
    "share negative": ({"model__more_prompts": ("b",), "style_weights": (-1.0, 2.0)}, "style-weights"),
    "shares all 0": ({"model__more_prompts": ("b",), "style_weights": (0.0, 0.0)}, "style-weights"),
    "shares too many": ({"style_weights": (0.5, 0.5)}, "1 styles and 2"),
    "no reference picture": ({"restyle__reference": Path("nowhere.png")}, "no picture nowhere.png"),
    "guidance negative": ({"restyle__guidance_scale": -1.0}, "guidance"),
    "guidance is NaN": ({"restyle__guidance_scale": float("nan")}, "guidance"),
    "sharing too strong": ({"restyle__share_strength": 2.0}, "sharing"),
    "two kinds of noise": ({"restyle__same_noise": True, "restyle__warped_noise": True}, "choose one"),
    "adapter without picture": ({"restyle__ip_adapter": "sdxl"}, "IP-Adapter"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_cannot_work_are_refused(fault: str):
    options, words = OPTIONS[fault]
    config = changed(**{f"pipeline__{name}": value for name, value in options.items()})
    with refused(words):
        config.pipeline.check()


@pytest.mark.parametrize("prompt", ["水彩画の庭", "картина маслом", "صورة زيتية", "🎨 colours", "naïve “quotes”"])
def test_prompts_in_any_script_are_fine(prompt: str):
    changed(pipeline__model__prompt=prompt).pipeline.check()


@pytest.fixture
def port():
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def in_the_way(folder: Path) -> dict:
    (folder / "out").write_text("a file where a folder should be")
    return {"output_dir": folder / "out"}


def checkpoint(folder: Path, name: str = "step-000000003.ckpt") -> Path:
    (folder / "nerfstudio_models").mkdir(exist_ok=True)
    torch.save({"step": 3, "pipeline": {}}, folder / "nerfstudio_models" / name)
    return folder / "nerfstudio_models"


def damaged(name: str, content: str):
    def make(folder: Path) -> dict:
        run = folder / "procedural-data" / "style-nerf2nerf-tiny" / "then"
        run.mkdir(parents=True)
        (run / name).write_text(content)
        return {"timestamp": "then", "output_dir": folder}

    return make


def of_version_0_1(folder: Path) -> dict:
    options = damaged("run.json", '{"first_step": 0, "asked": {}}')(folder)
    checkpoint(folder / "procedural-data" / "style-nerf2nerf-tiny" / "then")
    return options


RUNS = {
    "output folder is a file": (in_the_way, "Nothing can be written to"),
    "no folder of checkpoints": (lambda folder: {"load_dir": folder / "nowhere"}, "no checkpoint"),
    "empty folder of checkpoints": (lambda folder: {"load_dir": folder}, "no checkpoint"),
    "no such checkpoint": (lambda folder: {"load_checkpoint": folder / "step-1.ckpt"}, "no file"),
    "no such step": (lambda folder: {"load_dir": checkpoint(folder), "load_step": 7}, "no checkpoint of step 7"),
    "checkpoint without its step": (
        lambda folder: {"load_checkpoint": checkpoint(folder, "best.ckpt") / "best.ckpt"},
        "does not say its step",
    ),
    "two devices": (lambda _: {"machine__num_devices": 2}, "num-devices"),
    "half a run.json": (damaged("run.json", '{"asked": {'), "run.json is damaged"),
    "run of version 0.1": (of_version_0_1, "version 0.1 and cannot be continued: .*--load-dir"),
    "half a rounds.json": (damaged("rounds.json", '{"begun": ['), "rounds.json is damaged"),
    "unknown scene": (lambda _: {"pipeline__datamanager__dataparser__scene": "atlantis"}, "atlantis"),
    "no views": (lambda _: {"pipeline__datamanager__dataparser__num_views": 0}, "procedural-data needs at least"),
}


@pytest.mark.parametrize("fault", RUNS)
def test_a_run_that_cannot_begin_is_refused(tmp_path: Path, fault: str):
    make, words = RUNS[fault]
    config = changed(**{"output_dir": tmp_path, **make(tmp_path)})
    with refused(words):
        config.prepare()


@pytest.mark.parametrize(
    "tag", ["object:style_nerf2nerf.rounds.RoundsConfig\n  rounds: 1", "name:eschernet_prior.field.FieldModel"]
)
def test_a_config_of_version_0_1_is_refused_by_every_command(tag: str, capsys):
    """ns-viewer, ns-eval and the like read it with this loader."""
    with pytest.raises(SystemExit):
        yaml.load(f"model: !!python/{tag}", Loader=yaml.Loader)  # noqa: S506
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"written by version 0\.1 .*--load-dir RUN/nerfstudio_models\.", said)


@pytest.mark.parametrize("viewer", ["viewer", "viewer+tensorboard"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, port: int, viewer: str):
    with refused(f"127.0.0.1:{port}"):
        changed(output_dir=tmp_path, viewer__websocket_port=port, vis=viewer).prepare()
    changed(output_dir=tmp_path, viewer__websocket_port=port, vis="tensorboard").prepare()


def test_a_port_that_is_none(tmp_path: Path):
    with refused("127.0.0.1:70000"):
        changed(output_dir=tmp_path, viewer__websocket_port=70000).prepare()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path):
    with refused("no CUDA device"):
        changed(output_dir=tmp_path, machine__device_type="cuda").prepare()


# Checkpoints.


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code out of a checkpoint ran",)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


CHECKPOINTS = {
    "empty": (b"", "cannot be read|holds more than"),
    "cut off": (saved({"step": 1, "pipeline": {"a": torch.zeros(500)}})[:900], "cannot be read"),
    "text": (b"this is no checkpoint", "cannot be read|holds more than"),
    "code": (saved({"step": 1, "pipeline": Evil()}), "more than weights"),
    "code in a plain pickle": (pickle.dumps(Evil()), "more than weights"),
    "another program's": (saved({"state_dict": {}}), "not a nerfstudio checkpoint"),
    "a list": (saved([1, 2]), "not a nerfstudio checkpoint"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, fault: str):
    content, words = CHECKPOINTS[fault]
    path = tmp_path / "step-000000001.ckpt"
    path.write_bytes(content)
    with refused(f"(?:{words})"):
        read_checkpoint(path)


OWN = {"field.mlp.weight": torch.zeros(4, 4), "field.embedding_appearance.weight": torch.zeros(7, 3)}
FIELDS = {
    "another method's": ({"field.mlp.bias": torch.zeros(4)}, (), "differ by name"),
    "another table size": ({"field.mlp.weight": torch.zeros(8, 4)}, (), r"\(8, 4\) there"),
    "another number of photos": (
        {"field.embedding_appearance.weight": torch.zeros(9, 3)},
        (),
        "another number of images",
    ),
    "tiny-cuda-nn's": ({"field.mlp.params": torch.zeros(16)}, ("field.mlp.weight",), "implementation tcnn"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_a_field_that_does_not_fit_is_refused(fault: str):
    other, without, words = FIELDS[fault]
    loaded = {name: value for name, value in {**OWN, **other}.items() if name not in without}
    with refused(words):
        check_state(OWN, loaded, "The checkpoint")


# Models and the disk.


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda _: locate_models("/nowhere"), "no restyling models"),
        (lambda _: locate_models("sdxl"), "restyle.source embedded"),
        (lambda _: locate_lora("sdxl"), "restyle.speed"),
        (lambda folder: locate_lora(folder / "lora.safetensors"), "no LoRA"),
        (lambda _: locate_clipseg("hub"), "pipeline.masks"),
        (lambda folder: locate_clipseg(folder), "no CLIPSeg"),
        (lambda folder: ensure_ip_adapter(folder), "no IP-Adapter"),
        (lambda _: VGG19Features("imagenet"), "VGG19"),
        (lambda folder: VGG19Features(str(folder / "vgg.pth")), "vgg"),
        (lambda _: Settings(prompt="").check(), "prompt is empty"),
        (lambda folder: gallery.GalleryOptions(folder).check(), "no run in"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch, ask, words: str):
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with refused(words):
        ask(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more_says_how_to_go_on(tmp_path: Path, number: int):
    config = changed(output_dir=tmp_path, timestamp="then", experiment_name="scene")
    with refused("--timestamp then"), report_full_disk(config):
        raise OSError(number, "No space left on device")
    with refused("--timestamp then"), report_full_disk(config):
        try:
            raise OSError(number, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  what torch.save makes of it
    with pytest.raises(RuntimeError, match=re.escape("of the program")), report_full_disk(config):
        raise RuntimeError("a fault of the program")


# Views and patches that the style loss cannot look at.


@pytest.mark.parametrize(
    ("sides", "patch", "words"),
    [
        ((31, 64), 0, "31×31 pixels are too small"),
        ((64, 16), 0, "16×16 pixels are too small"),
        ((64, 64), 16, "style-patch-size of 32 or more"),
    ],
)
def test_sizes_below_what_the_style_loss_needs(sides: tuple[int, int], patch: int, words: str):
    views, held_out = (
        Cameras(torch.eye(4)[None, :3], fx=50.0, fy=50.0, cx=8.0, cy=8.0, width=side, height=side) for side in sides
    )
    manager = SimpleNamespace(style_cameras=lambda: views, held_out_views=lambda count: (["0"], held_out))
    config = StylePipelineConfig(model=StyleModelConfig(style_patch_size=patch))
    with refused(words):
        RoundRunner._check_sizes(SimpleNamespace(config=config, pipeline=SimpleNamespace(datamanager=manager)), 32)
