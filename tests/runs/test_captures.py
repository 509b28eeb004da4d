"""Whole runs on captures as people bring them: odd lenses, frames, sizes and masks; and runs that are continued."""

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts.train import main as train
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from torchmetrics.image import lpip

import ns
from eschernet_prior.base.cameras import spherical_views
from eschernet_prior.base.dataset_io import ASSUMED_TRANSFORM
from eschernet_prior.base.field import small_field
from eschernet_prior.base.files import read_json
from eschernet_prior.base.run_folder import newest_checkpoint
from eschernet_prior.base.trainer import RunTrainerConfig
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.densify.datamanager import DensifyDataManagerConfig
from eschernet_prior.densify.references import read_object, read_references
from style_nerf2nerf.config import style_nerf2nerf_tiny

VIEWS = 6
PROMPT = "a [gold] statue, [/blurry]"
"""Words in the square brackets of other programs, which are tags to the library that prints in colours."""
QUICK = {
    "prompt": PROMPT,
    "vis": "tensorboard",
    "timestamp": "then",
    "pipeline__rounds__reconstruct_steps": 4,
    "pipeline__rounds__rounds": 1,
    "pipeline__rounds__retrain_steps": 2,
    "pipeline__turntable_frames": 0,
    "pipeline__num_eval_views": 1,
    "steps_per_save": 2,
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise, coarse enough for lossy formats."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def disc(width: int, height: int) -> np.ndarray:
    """A mask, True inside."""
    rows, columns = np.mgrid[:height, :width]
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(width, height) / 3) ** 2


def make_capture(folder: Path, sizes=((48, 48),) * VIEWS, masks=None, **top) -> Path:
    """A capture of noise from cameras around an object.

    Args:
        folder: where it goes.
        sizes: width and height of each view.
        masks: makes the picture of a mask from where it is True; None for no masks.
        top: what else the top of transforms.json says.
    """
    poses = spherical_views(len(sizes), generator=torch.Generator().manual_seed(1))
    frames = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, ((width, height), pose) in enumerate(zip(sizes, poses)):
        frame = {"file_path": f"images/{index}.png", "transform_matrix": pose.tolist()}
        lens = {"w": width, "h": height, "fl_x": 50.0, "fl_y": 50.0, "cx": width / 2, "cy": height / 2}
        picture(width, height, index).save(folder / frame["file_path"])
        if masks is not None:
            frame["mask_path"] = f"masks/{index}.png"
            masks(disc(width, height)).save(folder / frame["mask_path"])
        frames.append(frame | lens)
    (folder / "transforms.json").write_text(json.dumps({**top, "frames": frames}))
    return folder


def read(folder: Path, **options):
    config = NerfstudioDataParserConfig(data=folder, train_split_fraction=1.0, **options)
    return config.setup().get_dataparser_outputs("train")


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    """Fisheye photos of an old capture: beside a colmap folder, without the `applied_transform` that it implies."""
    folder = make_capture(tmp_path_factory.mktemp("data") / "old", camera_model="OPENCV_FISHEYE", k1=0.05, k2=-0.01)
    (folder / "colmap" / "sparse" / "0").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the run below has said."""
    return []


@pytest.fixture(scope="module")
def finished(capture: Path, tmp_path_factory, cache, said: list[str]) -> Path:
    output_dir = tmp_path_factory.mktemp("outputs")
    with CONSOLE.capture() as captured:
        ns.train(output_dir, parser=("nerfstudio-data",), data=capture, **QUICK)
    said.append(" ".join(captured.get().split()))
    return ns.only_run(output_dir)


def test_words_in_brackets_are_words(finished: Path, said: list[str]):
    assert f"views restyled as “{PROMPT}”" in said[0]


def test_nerfacto_trains_on_the_restyled_dataset(finished: Path, tmp_path: Path, monkeypatch):
    """nerfstudio's own method, as `ns-train nerfacto --data RUN/restyled/round_01`, at its smallest."""
    # Its metric of pictures would download weights.
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", lambda **_: torch.nn.Identity())
    config = copy.deepcopy(all_methods["nerfacto"])
    config.output_dir, config.vis, config.max_num_iterations = tmp_path, "tensorboard", 2
    config.machine.device_type, config.mixed_precision = "cpu", False
    config.pipeline.datamanager = VanillaDataManagerConfig(
        dataparser=NerfstudioDataParserConfig(data=finished / "restyled" / "round_01"), train_num_rays_per_batch=32
    )
    config.pipeline.model = small_field(config.pipeline.model)
    config.pipeline.model.implementation = "torch"
    train(config)
    assert len(list(tmp_path.rglob("step-000000001.ckpt"))) == 1


def test_the_restyled_dataset_has_the_lens_and_the_poses_of_the_capture(capture: Path, finished: Path):
    plain = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}
    made, given = read(finished / "restyled" / "round_01", **plain), read(capture, **plain)
    assert set(made.cameras.camera_type.flatten().tolist()) == {CameraType.FISHEYE.value}
    assert read_json(finished / "restyled" / "round_01" / "transforms.json")["applied_transform"] == ASSUMED_TRANSFORM
    places = [[path.name for path in given.image_filenames].index(path.name) for path in made.image_filenames]
    for index, place in enumerate(places):
        ours, theirs = (each.cameras.generate_rays(at, keep_shape=True) for each, at in ((made, index), (given, place)))
        torch.testing.assert_close(ours.directions, theirs.directions, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.origins, theirs.origins, atol=1e-4, rtol=0)


def test_a_run_records_its_data_and_is_not_continued_with_other_options(capture: Path, finished: Path, capsys):
    recorded = read_json(finished / "run.json")["capture"]
    assert recorded["data"] == str(capture)
    assert recorded["dataparser"]["orientation_method"] == "up"
    noted = (finished / "dataparser_transforms.json").read_bytes()
    output_dir, longer = finished.parents[2], {**QUICK, "pipeline__rounds__rounds": 2}
    for options, words in (
        (("--orientation-method", "none"), "orientation_method = up and cannot be continued with none"),
        (("--downscale-factor", "1"), "downscale_factor = None and cannot be continued with 1"),
    ):
        said = ns.refusal(capsys, output_dir, parser=("nerfstudio-data", *options), data=capture, **longer)
        assert words in said
    other = make_capture(capture.parent / "other" / "old", ((48, 40),) * VIEWS, camera_model="OPENCV_FISHEYE")
    said = ns.refusal(capsys, output_dir, parser=("nerfstudio-data",), data=other, **longer)
    assert "was started with other data" in said
    assert (finished / "dataparser_transforms.json").read_bytes() == noted
    assert not (finished / "restyled" / "round_02").exists()


def test_a_field_is_not_started_from_in_another_frame(capture: Path, finished: Path, tmp_path: Path, capsys):
    named = {**QUICK, "load_dir": finished / "nerfstudio_models", "prompt": "a pencil sketch", "timestamp": "later"}
    parser = ("nerfstudio-data", "--center-method", "none")
    assert "was trained on other poses" in ns.refusal(capsys, tmp_path, parser=parser, data=capture, **named)


def test_a_field_is_not_started_from_with_other_data(capture: Path, finished: Path, tmp_path: Path, capsys):
    noted = (finished / "dataparser_transforms.json").read_bytes()
    other = shutil.copytree(capture, tmp_path / "old") / "transforms.json"
    meta = read_json(other)
    meta["frames"][2]["transform_matrix"][0][3] += 0.5
    other.write_text(json.dumps(meta))
    named = {**QUICK, "load_dir": finished / "nerfstudio_models", "prompt": "a pencil sketch", "timestamp": "later"}
    said = ns.refusal(capsys, tmp_path / "out", parser=("nerfstudio-data",), data=other.parent, **named)
    assert "was trained on other poses" in said
    assert (finished / "dataparser_transforms.json").read_bytes() == noted


def test_the_capture_may_move(capture: Path, finished: Path, tmp_path: Path):
    """What counts is what it holds."""
    shutil.copytree(capture, tmp_path / "old")
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    config.output_dir, config.timestamp, config.vis = finished.parents[2], "then", "tensorboard"
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    config.pipeline.datamanager.data = tmp_path / "old"
    before = read_json(finished / "run.json")
    try:
        RunTrainerConfig.prepare(config)
    finally:
        (finished / "run.json").write_text(json.dumps(before))


def test_a_run_that_was_moved_loads_its_own_checkpoint_from_anywhere(finished: Path, tmp_path: Path, monkeypatch):
    copied = tmp_path / "somewhere else"
    shutil.copytree(finished, copied)
    mine = newest_checkpoint(copied / "nerfstudio_models")
    state = torch.load(mine, weights_only=True)
    key = next(key for key in state["pipeline"] if key.endswith("mlp_head.layers.0.bias"))
    state["pipeline"][key] = torch.full_like(state["pipeline"][key], 0.125)
    torch.save(state, mine)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    relative = Path(os.path.relpath(copied / "config.yml"))
    config, pipeline, path, _ = eval_setup(relative)
    assert path == mine
    assert config.get_base_dir() == copied == pipeline.config.run_dir
    assert bool((pipeline.state_dict()[key] == 0.125).all())
    _, original, path, _ = eval_setup(finished / "config.yml")
    assert path.parent.parent == finished
    assert not bool((original.state_dict()[key] == 0.125).all())


def test_a_capture_that_is_gone_is_named(finished: Path, capture: Path, tmp_path: Path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.yml"
    path.write_text(path.read_text().replace("- old\n", "- gone\n"))
    with pytest.raises(SystemExit):
        eval_setup(path)
    assert "gone: move the capture back" in " ".join(capsys.readouterr().out.split())


def palette_mask(inside: np.ndarray) -> Image.Image:
    """As segmentation tools write them: entry 1 of the palette, dark red, is inside."""
    mask = Image.fromarray(inside.astype(np.uint8)).convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0])
    return mask


def test_mixed_sizes_and_palette_masks_are_trained_on(tmp_path: Path, cache):
    # The eighth, which nerfstudio holds out, is upright, and most views are not.
    sizes = [(40, 48) if index in (1, 3, 5, 8) else (48, 40) for index in range(11)]
    capture = make_capture(tmp_path / "mixed", sizes, palette_mask)
    parser = ("nerfstudio-data",)
    ns.train(tmp_path / "out", parser=parser, data=capture, pipeline__masks="dataset", **QUICK)
    run = ns.only_run(tmp_path / "out")
    style = ns.metrics(run)["round_01"]
    assert style["style_distance_before"] > 0, "the mask leaves something to look at"
    assert style["held_out"]["views"] == ["8"]
    assert style["held_out"]["psnr_to_base"] > 0


# Photos of other pixel formats, through the dataset that is trained on.

RECORDED = {
    "palette": lambda photo: photo.quantize(64),
    "inks": lambda photo: photo.convert("CMYK"),
    "sixteen_bits": lambda photo: Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257),
    "grey_with_alpha": lambda photo: photo.convert("LA"),
}


def dataset(folder: Path, **options):
    from eschernet_prior.densify.datamanager import ObjectDataset

    return ObjectDataset(NerfstudioDataParserConfig(data=folder, **options).setup().get_dataparser_outputs("train"))


@pytest.mark.parametrize("kind", RECORDED)
def test_photos_of_any_pixel_format_are_trained_on_as_they_are_shown(tmp_path: Path, kind: str):
    capture = make_capture(tmp_path / "capture")
    shown = []
    for index, path in enumerate(sorted((capture / "images").iterdir())):
        stored = RECORDED[kind](picture(48, 48, index))
        stored.save(path, "TIFF" if kind == "inks" else "PNG")
        grey = kind in ("sixteen_bits", "grey_with_alpha")
        shown.append(picture(48, 48, index).convert("L").convert("RGB") if grey else stored.convert("RGB"))
    photos = dataset(capture)
    for index, path in enumerate(photos.image_filenames):
        expected = torch.from_numpy(np.array(shown[int(path.stem)])).float() / 255
        torch.testing.assert_close(photos.get_image_float32(index), expected, atol=0.5 / 255, rtol=0)


def test_photos_with_and_without_alpha_may_be_mixed(tmp_path: Path):
    capture = make_capture(tmp_path / "capture")
    photos = sorted((capture / "images").iterdir())
    opaque = Image.open(photos[0]).convert("RGBA")
    opaque.save(photos[0])
    assert {photo["image"].shape[-1] for photo in dataset(capture)} == {3}, "opaque alpha says nothing"
    cut_out = Image.open(photos[1]).convert("RGB")
    cut_out.putalpha(Image.fromarray(disc(48, 48)))
    cut_out.save(photos[1])
    mixed = dataset(capture)
    images = torch.stack([photo["image"] for photo in mixed])
    assert images.shape[-1] == 4
    alphas = {path.stem: image[..., 3] for path, image in zip(mixed.image_filenames, images)}
    assert bool((alphas["0"] == 1).all())
    assert bool((alphas["2"] == 1).all())
    assert torch.equal(alphas["1"] > 0.5, torch.from_numpy(disc(48, 48)))


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_masks_of_any_pixel_format_are_trained_on(tmp_path: Path, mode: str):
    def mask(inside: np.ndarray) -> Image.Image:
        if mode == "P":
            return palette_mask(inside)
        return Image.fromarray(inside.astype(np.uint8) * (1 if mode == "L" else 255)).convert(mode)

    photos = dataset(make_capture(tmp_path / "capture", masks=mask))
    for photo in photos:
        assert torch.equal(photo["mask"][..., 0], torch.from_numpy(disc(48, 48)))


def test_opaque_alpha_does_not_hide_masks(tmp_path: Path):
    capture = make_capture(tmp_path / "capture", masks=lambda inside: Image.fromarray(inside.astype(np.uint8) * 255))
    expected = read_references(read(capture), 32).silhouettes
    for path in (capture / "images").iterdir():
        Image.open(path).convert("RGBA").save(path)
    torch.testing.assert_close(read_references(read(capture), 32).silhouettes, expected)
    _, inside = read_object(read(capture), 0)
    assert torch.equal(inside[0] > 0, torch.from_numpy(disc(48, 48)))


def prepared(method, capture: Path, folder: Path, **densify):
    """A method's configuration, prepared for a capture as `ns-train` does."""
    config = copy.deepcopy(method.config)
    config.output_dir, config.vis = folder, "tensorboard"
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    config.pipeline.datamanager.data = capture
    for name, value in densify.items():
        setattr(config.pipeline.datamanager.densify, name, value)
    config.set_timestamp()
    return config


def test_captures_without_outlines_or_of_other_lenses_are_not_densified(tmp_path: Path, capsys):
    def refusal(folder: Path, **densify) -> str:
        with pytest.raises(SystemExit):
            prepared(eschernet_nerfacto_tiny, folder, tmp_path / "out", **densify)
        return " ".join(capsys.readouterr().out.split())

    capture = make_capture(tmp_path / "capture")
    for path in (capture / "images").iterdir():
        Image.open(path).convert("RGBA").save(path)
    assert "do not show where the object ends" in refusal(capture)
    prepared(eschernet_nerfacto_tiny, capture, tmp_path / "out", background="keep")
    for model in ("OPENCV_FISHEYE", "EQUIRECTANGULAR"):
        other = make_capture(tmp_path / model, camera_model=model)
        assert "the prior supports only perspective photos" in refusal(other, background="keep")
        if model == "OPENCV_FISHEYE":
            prepared(eschernet_nerfacto_tiny, other, tmp_path / "out", num_views=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": "black"}, "3 masks are all black"),
        ({"masks": "damaged"}, "1.png cannot be read"),
        ({"masks": "others"}, "named like a photo"),
        ({"masks": "dataset"}, "has no masks"),
        ({"restyled_data": ("damaged",)}, "1.png cannot be read"),
        ({"restyled_data": ("nowhere",)}, "no folder"),
    ],
)
def test_folders_of_pictures_are_checked_before_the_capture_is_loaded(tmp_path: Path, capsys, options, words):
    capture = make_capture(tmp_path / "capture")
    for folder, names in (("black", "012"), ("damaged", "01"), ("others", "xyz")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L", (48, 48)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "damaged" / "1.png").write_bytes(b"no picture")
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    config.output_dir, config.vis = tmp_path / "out", "tensorboard"
    config.pipeline.datamanager.data = capture
    for name, value in options.items():
        places = [each if each == "dataset" else tmp_path / each for each in ([value] if name == "masks" else value)]
        setattr(config.pipeline, name, str(places[0]) if name == "masks" else tuple(places))
    with pytest.raises(SystemExit):
        config.set_timestamp()
    assert words in " ".join(capsys.readouterr().out.split())


def test_an_odd_number_of_rays_is_refused_for_pictures_of_several_sizes(tmp_path: Path, capsys):
    capture = make_capture(tmp_path / "capture", [(48, 40), (40, 48)] * 3)
    config = copy.deepcopy(style_nerf2nerf_tiny.config)
    config.output_dir, config.vis = tmp_path / "out", "tensorboard"
    config.pipeline.datamanager.data = capture
    config.pipeline.datamanager.train_num_rays_per_batch = 63
    with pytest.raises(SystemExit):
        config.set_timestamp()
    assert "train-num-rays-per-batch" in capsys.readouterr().out


def test_the_rim_of_smaller_fisheye_photos_is_smaller(tmp_path: Path):
    capture = make_capture(tmp_path / "capture", camera_model="OPENCV_FISHEYE", fisheye_crop_radius=20.0)
    (capture / "images_2").mkdir()
    for path in (capture / "images").iterdir():
        Image.open(path).resize((24, 24)).save(capture / "images_2" / path.name)
    parser = NerfstudioDataParserConfig(data=capture, downscale_factor=2)
    manager = DensifyDataManagerConfig(dataparser=parser).setup(device="cpu", test_mode="test")
    assert manager.train_dataset.cameras.metadata["fisheye_crop_radius"] == 10.0
    assert manager.train_pixel_sampler.config.fisheye_crop_radius == 10.0


def test_what_is_found_in_a_capture_is_said_and_not_kept_in_config(tmp_path: Path, capsys):
    import yaml

    capture = make_capture(tmp_path / "capture")
    config = prepared(style_nerf2nerf_tiny, capture, tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "6 views to train on, 0 held out" in said
    assert "48 × 48 pixels" in said
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)  # noqa: S506  as nerfstudio reads it
    assert again.capture is None
    assert again.pipeline.datamanager.data == capture
