"""The step schedule, and what an interrupted round leaves on disk."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import write_image
from properties import examples
from style_nerf2nerf.rounds.schedule import RoundSchedule
from style_nerf2nerf.rounds.storage import RoundFolder, RoundRequest, RoundsConfig, RoundSettings
from style_nerf2nerf.trainer import StageSchedulerConfig

REQUEST = RoundRequest(1, 10, RoundSettings("a mosaic", "", 5.0, 0.8), ("a", "b"), (4, 6), {"seed": 0})


@examples(50)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(0, 60))
def test_every_step_belongs_to_the_stage_that_a_plain_list_names(reconstruct, rounds, retrain, first_step):
    config = RoundsConfig(reconstruct, rounds, retrain, first_step=first_step)
    stages = [0] * (first_step or reconstruct) + [number for number in range(1, rounds + 1) for _ in range(retrain)]
    settings = RoundSettings("a mosaic", "", 5.0, None)
    with TemporaryDirectory() as folder:
        schedule = RoundSchedule(Path(folder), config)
        assert schedule.total_steps == len(stages)
        while (begin := schedule.next_begin) is not None:
            schedule.begin(begin, settings)
    assert [schedule.number_at(step) for step in range(len(stages))] == stages
    assert [each.begin for each in schedule.begun] == [stages.index(number) for number in range(1, rounds + 1)]
    assert schedule.total_steps == len(stages)
    assert schedule.number_at(schedule.total_steps + 7) == rounds


def test_strength_falls_from_round_to_round():
    config = RoundsConfig(strength=0.8, strength_decay=0.5)
    assert [config.strength_of(number) for number in (1, 2, 3)] == pytest.approx([0.8, 0.4, 0.2])


@pytest.mark.parametrize(
    "wrong", [{"rounds": -1}, {"retrain_steps": 0}, {"strength": 0.0}, {"strength": 1.2}, {"strength_decay": 0.0}]
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UserError):
        RoundsConfig(**wrong).check()


def test_interrupted_renders_go_on_where_they_stopped(tmp_path: Path):
    folder = RoundFolder(tmp_path, 1)
    rendered = []

    def render(index: int):
        if index == 1 and len(rendered) == 1:
            raise KeyboardInterrupt
        rendered.append(index)
        return torch.full((3, 4, 6), index / 2), torch.ones(1, 4, 6)

    folder.open_work(REQUEST)
    with pytest.raises(KeyboardInterrupt):
        folder.renders(REQUEST.views, render, lambda _: None)
    rendered.append("resumed")
    folder.open_work(REQUEST)
    views = folder.renders(REQUEST.views, render, lambda _: None)
    assert rendered == [0, "resumed", 1]
    assert [float(colour.mean()) for colour, _ in views] == [0.0, 0.5]


def test_work_for_another_request_is_not_taken_over(tmp_path: Path):
    folder = RoundFolder(tmp_path, 1)
    folder.open_work(REQUEST)
    (folder.work / "field").mkdir()
    (folder.work / "field" / "a.safetensors").write_bytes(b"of another prompt")
    other = replace(REQUEST, settings=replace(REQUEST.settings, prompt="a pencil sketch"))
    folder.open_work(other)
    assert not (folder.work / "field").exists()


def test_a_round_appears_whole_and_only_for_its_request(tmp_path: Path):
    folder = RoundFolder(tmp_path, 1)
    folder.open_work(REQUEST)

    def write_half(path: Path) -> None:
        write_image(path / "images" / "a.png", torch.zeros(3, 4, 6))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.finish(REQUEST, write_half, {})
    assert not folder.path.exists()
    assert not folder.is_done(REQUEST)
    assert [path.name for path in folder.path.parent.iterdir()] == [".round_01"], "no half-written folder stays"

    def write(path: Path) -> None:
        for name in REQUEST.views:
            write_image(path / "images" / f"{name}.png", torch.full((3, 4, 6), 0.2))
            write_image(path / "renders" / f"{name}.png", torch.full((3, 4, 6), 0.6))

    folder.finish(REQUEST, write, {"models": {"source": "embedded"}})
    assert folder.is_done(REQUEST)
    assert not folder.is_done(replace(REQUEST, settings=replace(REQUEST.settings, strength=0.7)))
    assert not folder.work.exists()
    assert torch.allclose(folder.render("b"), torch.tensor(0.6), atol=1e-3)
    (restyled,) = folder.restyled("b", styles=1)
    assert torch.allclose(restyled, torch.tensor(0.2), atol=1e-3)
    assert json.loads((folder.path / "manifest.json").read_text())["models"] == {"source": "embedded"}


def test_learning_rates_fall_in_the_reconstruction_and_again_in_every_round():
    config = StageSchedulerConfig(
        reconstruct_final=0.1, retrain=0.5, retrain_final=0.05, reconstruct_steps=100, retrain_steps=10
    )
    assert config.factor(0) == 1
    assert config.factor(50) == pytest.approx(0.1**0.5)
    assert config.factor(100) == config.factor(110) == 0.5, "rounds as they are laid out"
    assert config.factor(105) == pytest.approx(0.5 * 0.1**0.5)
    early = replace(config, reconstruct_steps=60, round_begins=(60, 67))
    assert early.factor(60) == early.factor(67) == early.factor(77) == 0.5, "one was begun early"
    assert early.factor(66) == pytest.approx(0.5 * 0.1**0.6)
    constant = replace(config, retrain=0.3, retrain_final=0.3)
    assert {constant.factor(step) for step in range(100, 130)} == {0.3}
