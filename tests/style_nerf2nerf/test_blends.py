"""The sheet of blends: runs from one field, at some shares of the second style."""

import json

import pytest
from PIL import Image

import ns
from style_nerf2nerf import blends
from style_nerf2nerf.blends import cli


def arguments(folder, *more: object) -> list[str]:
    options = {**ns.SMALL, "output-dir": folder}
    options["pipeline.rounds.retrain-steps"] = 1
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["style-nerf2nerf-tiny", *words, *map(str, more), *ns.SCENE]


def test_the_sheet_and_its_figures(others, tmp_path, monkeypatch):
    shares = (0.0, 0.25)
    monkeypatch.setattr(blends, "SHARES", shares)
    both = [word for name in ("red", "blue") for word in ("--pipeline.restyled-data", others[name])]
    cli([str(tmp_path / "blends.png"), *arguments(tmp_path, *both)])
    figures = json.loads((tmp_path / "blends.json").read_text())
    assert list(figures) == [f"{share:g}" for share in shares]
    assert all(set(each["style_distance"]) == {"red", "blue"} for each in figures.values())
    begins = [json.loads(path.read_text())["first_step"] for path in sorted(tmp_path.rglob("run.json"))]
    assert begins == [0, 12], "the second starts from what the first had reconstructed"
    weights = [ns.metrics(path.parent)["round_01"]["style_weights"] for path in sorted(tmp_path.rglob("run.json"))]
    assert weights == [[1 - share, share] for share in shares]
    with Image.open(tmp_path / "blends.png") as sheet:
        assert sheet.width > 2 * 64


@pytest.mark.parametrize(
    ("more", "words"), [((), "two styles"), (("--pipeline.model.more-prompts", "gold") * 2, "two styles, not 3")]
)
def test_there_must_be_two_styles(tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        cli([str(tmp_path / "blends.png"), *arguments(tmp_path, *more)])
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_picture_comes_first(capsys):
    with pytest.raises(SystemExit):
        cli(["style-nerf2nerf-tiny"])
    assert "OUT.png" in capsys.readouterr().out
