"""Every command of the README: what it says exists, and, as a slow test, does what it says.

    uv run pytest -n0 -m slow tests/readme -s

runs them one after the other in an empty folder, as they stand in the README, and prints time and verdict of each.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PLACEHOLDERS, Command, Reader, commands
from PIL import Image
from results import after_views, look

from eschernet_prior.base.images import write_image
from eschernet_prior.base.sampling import evenly_spaced
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig, cached_scene
from style_nerf2nerf.rounds.report.previews import ROWS, contact_sheet
from textured_room import draw_room, jpeg, room_poses

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ALL = commands(README)
NERFSTUDIO = ("train", "viewer", "eval", "render", "export", "process-data")
FACTORS = (2, 4, 8)
"""Smaller copies that nerfstudio's captures have."""
PHOTOS, PHOTO_SIZE = 24, (480, 360)
"""Photos without poses: how many, and their width and height."""


def test_commands_are_read_from_fenced_and_indented_blocks():
    readme = """
    uv run one

Text with `uv run none`.

```bash
pip install uv && uv run ns-train a \\
  --b "C D" RUN/x
# uv run none
```
```python
python = none
```

    uv run python -m two PHOTOS
"""
    found = commands(readme)
    words = [" ".join(each.words) for each in found]
    assert words == ["one", "pip install uv", "ns-train a --b C D RUN/x", "python -m two PHOTOS"]
    assert [bool(each.skipped) for each in found] == [False, True, False, False]
    assert [each.placeholders for each in found] == [set(), set(), {"RUN"}, {"PHOTOS"}]


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.text)
def test_a_command_is_one_that_the_script_can_run(command: Command):
    if command.skipped is None:
        assert command.words[0] in (*(f"ns-{name}" for name in NERFSTUDIO), "python")
        assert command.placeholders <= set(PLACEHOLDERS)


def test_placeholders_are_filled(tmp_path: Path):
    for name in ("first", "second"):
        run = tmp_path / "outputs" / "scene" / "method" / name
        (run / "nerfstudio_models").mkdir(parents=True)
        (run / "nerfstudio_models" / "step-000000001.ckpt").touch()
        (run / "config.yml").touch()
        os.utime(run / "config.yml", (1, {"first": 1, "second": 2}[name]))
    reader = Reader(tmp_path, {"CAPTURE": tmp_path / "capture"})
    scored = reader.line(Command("uv run ns-eval --load-config RUN/config.yml"))
    assert scored[-1] == "outputs/scene/method/second/config.yml"
    resumed = reader.line(Command("uv run ns-train m --data CAPTURE --timestamp TIME"))
    assert resumed[2:] == ["--data", "capture", "--timestamp", "second"]


@pytest.mark.parametrize("styles", [1, 2])
@pytest.mark.parametrize("views", [2, 12])
def test_the_views_after_a_round_are_cut_out_of_its_sheet(tmp_path: Path, styles: int, views: int):
    columns = {str(number): list(torch.rand(views, 3, 48, 64)) for number in range(2 + styles)}
    sheet = tmp_path / "round_01.png"
    write_image(sheet, contact_sheet(columns))
    shown = after_views(sheet, styles, views)
    expected = torch.stack([columns[str(1 + styles)][row] for row in evenly_spaced(ROWS, views)]).permute(0, 2, 3, 1)
    assert shown.shape == (min(views, 6), 4 * 48, 4 * 64, 3)
    assert np.abs(shown[:, ::4, ::4] - 255 * expected.numpy()).max() < 1


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    """A reader who has photos of a room without poses, a capture of the embedded cottage with smaller copies, masks for
    its left halves, and its photos in other colours.

    README_FOLDER in the environment names the folder that all this and the results are kept in.
    """
    named = os.environ.get("README_FOLDER")
    folder = tmp_path_factory.mktemp("reader") if named is None else Path(named).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    assert not list(folder.iterdir()), f"{folder} is not empty"
    scene = cached_scene(ProceduralDataParserConfig(num_views=32, num_eval_views=4))
    meta = json.loads((scene / "transforms.json").read_text())
    have = {name: folder / name.lower() for name in ("PHOTOS", "CAPTURE", "MASKS", "PICTURES")}
    largest = max(FACTORS)
    for name in ("PHOTOS", "MASKS", "PICTURES"):
        have[name].mkdir()
    for index, pose in enumerate(room_poses(PHOTOS)):
        (have["PHOTOS"] / f"IMG_{index + 1}.JPG").write_bytes(jpeg(draw_room(pose, *PHOTO_SIZE)))
    capture = have["CAPTURE"]
    capture.mkdir()
    for frame in meta["frames"]:
        name = Path(frame["file_path"]).name
        with Image.open(scene / frame["file_path"]) as picture:
            small = picture.convert("RGB")
        for factor in (1, *FACTORS):
            images = capture / ("images" if factor == 1 else f"images_{factor}")
            images.mkdir(exist_ok=True)
            side = small.width * largest // factor
            small.resize((side, side), Image.Resampling.BICUBIC).save(images / name)
        frame["file_path"] = f"images/{name}"
        Image.fromarray(np.asarray(small)[..., ::-1].copy()).save(have["PICTURES"] / name)
        white = np.zeros((64, 64), np.uint8)
        white[:, :32] = 255
        Image.fromarray(white).save(have["MASKS"] / name)
    for name in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        meta[name] *= largest
    (capture / "transforms.json").write_text(json.dumps(meta))
    return Reader(folder, have)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("command", ALL, ids=lambda command: command.text)
def test_a_command_does_what_the_readme_says(reader: Reader, command: Command, ffmpeg):
    reader.environment["PATH"] = os.environ["PATH"]
    if command.skipped is not None:
        print(f"\n  not run   {command.text}: {command.skipped}")
        return
    quick, failed = os.environ.get("README_QUICK") == "1", []
    for run in reader.runs_to_look_at(command) if "RUN" in command.placeholders else [None]:
        about = "" if run is None else f" (RUN is {run.relative_to(reader.folder)})"
        print(f"\n            {command.text}{about}", flush=True)
        try:
            seconds, cpu, said = reader.run(command, quick, run)
            lines = look(command, reader.folder, run or reader.last_run, cpu, said, quick)
        except AssertionError as error:
            print(f"  FAILED    {error}")
            failed.append(error)
            continue
        print(f"  {'refused' if command.refused else 'works':9} in {seconds:.0f} s, {cpu:.0f} s of one core")
        for line in lines:
            print(f"            {line}")
    if failed:
        raise failed[0]
