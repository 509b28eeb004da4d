"""Whole runs on photos without poses and on a video, and what nerfstudio's commands make of them."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

import ns
from escher_models import tiny
from eschernet_prior.base.files import read_json, write_json
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.data.photos_dataparser import PhotosDataParserConfig, posed_photos
from textured_room import draw_room, jpeg, room_poses

FRAMES, SIZE = 24, (192, 144)
PARSER = ("photos-data", "--video-frames", "12")
QUICK = {
    "timestamp": "then",
    "vis": "tensorboard",
    "pipeline__rounds__reconstruct_steps": 8,
    "pipeline__rounds__rounds": 1,
    "pipeline__rounds__retrain_steps": 2,
    "pipeline__turntable_frames": 0,
    "pipeline__datamanager__max_view_size": 64,
}


def write_video(path: Path, arc: float) -> Path:
    """A walk around the corner of the room, two seconds long."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *SIZE, "yuv420p", 8_000_000
        for pose in room_poses(FRAMES, arc):
            frame = av.VideoFrame.from_ndarray(draw_room(pose, *SIZE), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "walk around.mp4", 0.8)


@pytest.fixture(scope="module")
def filmed(video: Path, cache: Path, tmp_path_factory) -> Path:
    """A run of the main job on a video."""
    output_dir = tmp_path_factory.mktemp("outputs")
    ns.train(output_dir, data=video, parser=PARSER, **QUICK)
    return ns.only_run(output_dir)


def test_a_video_becomes_a_restyled_field(filmed: Path, video: Path):
    capture = read_json(filmed / "run.json")["capture"]
    assert capture["data"] == str(video)
    assert (capture["dataparser"]["kind"], capture["dataparser"]["video_frames"]) == ("PhotosDataParserConfig", 12)
    assert len(capture["cameras"]) == 52, "the poses of both splits are known"
    measured = ns.metrics(filmed)
    assert measured["reconstruction"]["psnr"] > 10.5  # 11.5 dB after 8 steps
    assert measured["round_01"]["style_distance_after"] < 0.95 * measured["round_01"]["style_distance_before"]  # 0.88
    names = [frame["file_path"] for frame in read_json(filmed / "restyled/round_01/transforms.json")["frames"]]
    assert len(names) == 3
    assert all(name.startswith("images/frame_000") for name in names)


def test_nerfstudios_commands_work_on_it_from_any_folder(filmed: Path, tmp_path: Path, monkeypatch, ffmpeg, capsys):
    from nerfstudio.scripts.eval import ComputePSNR
    from nerfstudio.scripts.render import DatasetRender, RenderInterpolated

    monkeypatch.chdir(tmp_path)
    config = filmed / "config.yml"
    ComputePSNR(load_config=config, output_path=tmp_path / "s.json").main()
    assert json.loads((tmp_path / "s.json").read_text())["results"]["psnr"] > 10.5
    DatasetRender(load_config=config, output_path=tmp_path / "views", rendered_output_names=["rgb"]).main()
    held_out = list((tmp_path / "views").rglob("*.jpg"))
    assert len(held_out) == 1
    with Image.open(held_out[0]) as picture:
        assert picture.size == SIZE
    frames = {"output_path": tmp_path / "frames", "output_format": "images", "interpolation_steps": 2}
    RenderInterpolated(load_config=config, downscale_factor=4, **frames).main()
    assert len(list((tmp_path / "frames").glob("*.jpg"))) == 2 * 10
    assert "Finding the poses" not in capsys.readouterr().out, "they are cached"


def test_it_is_continued_with_its_own_video_only(filmed: Path, video: Path, tmp_path: Path, capsys):
    output_dir, name = filmed.parents[2], filmed.parents[1].name
    longer = {**QUICK, "pipeline__rounds__rounds": 2, "experiment_name": name}
    other = write_video(tmp_path / video.name, 0.6)
    assert "was started with other data" in ns.refusal(capsys, output_dir, data=other, parser=PARSER, **longer)
    said = ns.refusal(capsys, output_dir, data=video, parser=("photos-data", "--video-frames", "11"), **longer)
    assert "video_frames = 12 and cannot be continued with 11" in said
    assert not (filmed / "restyled" / "round_02").exists()
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(video, tmp_path / "elsewhere"))
    before = read_json(filmed / "run.json")
    ns.train(output_dir, data=moved, parser=PARSER, **{**QUICK, "experiment_name": name})
    assert read_json(filmed / "run.json")["capture"]["data"] == str(moved)
    write_json(filmed / "run.json", before)


def test_poses_that_are_found_otherwise_are_not_looked_through(filmed: Path, video: Path, capsys):
    """As after an update of COLMAP, with an empty cache."""
    path = posed_photos(PhotosDataParserConfig(data=video, video_frames=12)) / "transforms.json"
    before = path.read_text()
    meta = json.loads(before)
    for frame in meta["frames"]:
        pose = np.array(frame["transform_matrix"])
        turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        frame["transform_matrix"] = (turn @ pose).tolist()
    path.write_text(json.dumps(meta))
    try:
        with pytest.raises(SystemExit):
            eval_setup(filmed / "config.yml")
    finally:
        path.write_text(before)
    assert "have changed since" in " ".join(capsys.readouterr().out.split())
    eval_setup(filmed / "config.yml")


@pytest.fixture(scope="module")
def cut_out(tmp_path_factory) -> Path:
    """Photos without poses that are transparent around what they show."""
    folder = tmp_path_factory.mktemp("cut out")
    rows, columns = np.mgrid[:256, :256] - 127.5
    disc = (np.hypot(rows, columns) < 115).astype(np.uint8) * 255
    for index, pose in enumerate(room_poses(6, arc=0.6)):
        Image.fromarray(np.dstack([draw_room(pose, 256), disc])).save(folder / f"{index}.png")
    return folder


def test_the_views_that_photos_do_not_show_are_generated(cut_out: Path, cache: Path, tmp_path: Path):
    prior = tmp_path / "prior"
    tiny(image_size=32).save_pretrained(prior)
    few = {
        "pipeline__datamanager__densify__num_views": 2,
        "pipeline__datamanager__densify__prior": prior,
        "pipeline__datamanager__densify__num_inference_steps": 1,
        "pipeline__datamanager__densify__samples": 1,
        "max_num_iterations": 4,
        "viewer__quit_on_train_completion": True,
    }
    ns.train(tmp_path, method="eschernet-nerfacto-tiny", data=cut_out, parser=("photos-data",), **few)
    run = ns.only_run(tmp_path)
    (made,) = (run.parents[1] / "densified").glob("*/transforms.json")
    assert len(read_json(made)["frames"]) == 2
    assert list((run / "nerfstudio_models").glob("*.ckpt"))


def test_photos_that_do_not_say_where_the_object_ends_are_refused_before_anything_is_built(
    tmp_path: Path, cache: Path, capsys
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, pose in enumerate(room_poses(6, arc=0.6)):
        (photos / f"{index}.jpg").write_bytes(jpeg(draw_room(pose, 256)))
    config = copy.deepcopy(eschernet_nerfacto_tiny.config)
    config.output_dir, config.vis = tmp_path / "out", "tensorboard"
    config.pipeline.datamanager.dataparser = PhotosDataParserConfig(data=photos)
    with pytest.raises(SystemExit):
        config.set_timestamp()
    said = " ".join(capsys.readouterr().out.split())
    assert "do not show where the object ends" in said
    assert not list((tmp_path / "out").rglob("*"))
