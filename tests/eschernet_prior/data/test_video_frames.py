"""Frames of a video: the sharp ones, evenly spread, as players show them."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from eschernet_prior.base.errors import UserError
from eschernet_prior.data.photo_pictures import prepare_pictures
from eschernet_prior.data.photos_dataparser import PhotosDataParserConfig, posed_photos
from eschernet_prior.data.video_frames import sharpness, write_sharp_frames
from textured_room import draw_room, room_poses

RATE, COUNT = 10, 40
WIDTH, HEIGHT = 192, 128


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Four seconds on an arc around the room's corner; of ten frames only the fourth is sharp."""
    import av

    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        for index, pose in enumerate(room_poses(COUNT, arc=0.8)):
            picture = draw_room(pose, WIDTH, HEIGHT)
            if index % 10 != 3:
                picture = cv2.blur(picture, (5, 1))
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_the_sharpest_frame_of_each_span_is_taken(video: Path, tmp_path: Path):
    times = write_sharp_frames(video, tmp_path, 4, 1000)
    assert list(times) == [f"frame_0000{n}.jpg" for n in (1, 2, 3, 4)]
    assert list(times.values()) == pytest.approx([0.3, 1.3, 2.3, 3.3], abs=0.01)
    for name, time in times.items():
        with Image.open(tmp_path / name) as picture:
            shown = np.asarray(picture).astype(float)
        # Every second camera stands higher: another frame would be far off.
        assert np.abs(shown - draw_room(room_poses(COUNT, arc=0.8)[round(time * RATE)], WIDTH, HEIGHT)).mean() < 20


def test_blur_is_less_sharp():
    picture = draw_room(room_poses(3)[0], 64)[..., 1]
    assert sharpness(cv2.blur(picture, (3, 3))) < sharpness(picture)


def test_a_name_with_brackets_is_a_name(video: Path, tmp_path: Path, capsys):
    named = tmp_path / "a [b] [i].mp4"
    named.symlink_to(video)
    write_sharp_frames(named, tmp_path, 4, 96)
    assert "frames of a [b] [i].mp4" in " ".join(capsys.readouterr().out.split())


def test_a_short_video_gives_all_its_frames_and_large_ones_are_reduced(video: Path, tmp_path: Path):
    assert len(write_sharp_frames(video, tmp_path, 500, 96)) == COUNT
    with Image.open(tmp_path / "frame_00007.jpg") as picture:
        assert picture.size == (96, 64)


def test_a_video_held_upright_is_shown_upright(video: Path, tmp_path: Path):
    import imageio_ffmpeg

    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]
    turned = tmp_path / "turned.mp4"
    subprocess.run([*ffmpeg, "-display_rotation", "90", "-i", str(video), "-c", "copy", str(turned)], check=True)
    shown = tmp_path / "shown.png"
    subprocess.run([*ffmpeg, "-i", str(turned), "-frames:v", "1", str(shown)], check=True)
    (tmp_path / "out").mkdir()
    name = next(iter(write_sharp_frames(turned, tmp_path / "out", 500, 1000)))
    with Image.open(shown) as expected, Image.open(tmp_path / "out" / name) as picture:
        assert picture.size == expected.size == (HEIGHT, WIDTH)
        assert np.abs(np.asarray(picture).astype(float) - np.asarray(expected.convert("RGB"))).mean() < 8


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_costs_one_sentence(tmp_path: Path, content: bytes, monkeypatch):
    monkeypatch.setenv("STYLE_NERF2NERF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "clip.mov"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*clip.mov cannot be decoded as a video[^\n]*\.$"):
        posed_photos(PhotosDataParserConfig(data=path))


def test_a_sound_file_is_no_video(tmp_path: Path):
    import av

    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(UserError, match="contains no pictures"):
        write_sharp_frames(path, tmp_path, 10, 100)


def test_frames_of_a_video_are_pictures_of_one_lens(video: Path, tmp_path: Path):
    pictures = prepare_pictures(video, tmp_path, 1600, 4)
    assert {(p.width, p.height, p.lens, p.focal) for p in pictures} == {(WIDTH, HEIGHT, "video", None)}
    assert [picture.source for picture in pictures] == ["0.30 s", "1.30 s", "2.30 s", "3.30 s"]
