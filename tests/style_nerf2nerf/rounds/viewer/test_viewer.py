"""The panel in the viewer: what is asked for there happens at the next step, and stays so after an interruption."""

import functools
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import ns
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import read_image
from eschernet_prior.base.run_folder import newest_checkpoint, read_checkpoint
from eschernet_prior.base.trainer import RunTrainer, TrainingStopped
from presses import control, press_at
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.rounds.runner import RoundRunner
from style_nerf2nerf.rounds.schedule import RoundSchedule
from style_nerf2nerf.rounds.storage import RECONSTRUCTION, RoundsConfig, RoundSettings
from style_nerf2nerf.rounds.viewer.panel import CURRENT, ORIGINAL, RESTYLED, StageProgress, StylePanel, ViewControls
from style_nerf2nerf.rounds.viewer.shown import fit_inside

SETTINGS = RoundSettings("a mosaic", "", 5.0, None)
CONFIG = RoundsConfig(reconstruct_steps=10, rounds=2, retrain_steps=4, strength=0.8, strength_decay=0.5)


def panel(prompts: bool = True, **changes) -> StylePanel:
    config = StylePipelineConfig(rounds=CONFIG)
    return StylePanel(RoundSettings(**{**SETTINGS.__dict__, **changes}), lambda _: 0.8, config.check_round, prompts)


# What is written down about rounds.


def test_an_untouched_schedule_is_the_configured_one(tmp_path: Path):
    schedule = RoundSchedule(tmp_path, CONFIG)
    assert (schedule.next_begin, schedule.total_steps) == (10, 18)
    schedule.begin(10, SETTINGS)
    schedule.begin(14, SETTINGS)
    assert (schedule.next_begin, schedule.total_steps) == (None, 18)
    assert [schedule.number_at(step) for step in (0, 9, 10, 13, 14, 30)] == [0, 0, 1, 1, 2, 2]
    assert [each.settings.strength for each in schedule.begun] == [0.8, 0.4]


def test_a_round_that_is_asked_for_comes_early_and_counts(tmp_path: Path):
    schedule = RoundSchedule(tmp_path, CONFIG)
    schedule.begin(7, SETTINGS)
    assert (schedule.reconstruction_end, schedule.next_begin, schedule.total_steps) == (7, 11, 15)
    schedule.begin(9, RoundSettings("night", "day", 2.0, 0.9))
    schedule.begin(13, SETTINGS)
    again = RoundSchedule(tmp_path, CONFIG)
    assert again.begun == schedule.begun
    assert again.begun[1].settings.prompt == "night"
    assert again.begun[1].settings.strength == 0.9
    assert again.total_steps == 17, "a third round, although two are configured"
    assert RoundSchedule(tmp_path, RoundsConfig(**{**CONFIG.__dict__, "rounds": 5})).total_steps == 25


def test_a_round_that_is_asked_for_twice_at_a_step_is_one(tmp_path: Path):
    schedule = RoundSchedule(tmp_path, CONFIG)
    schedule.begin(10, SETTINGS)
    schedule.begin(10, RoundSettings("night", "", 2.0, None))
    assert [each.settings.prompt for each in schedule.begun] == ["night"]
    assert schedule.begun[0].settings.strength == 0.8


def test_an_undone_round_ends_the_run_until_another_is_asked_for(tmp_path: Path):
    schedule = RoundSchedule(tmp_path, CONFIG)
    with pytest.raises(UserError):
        schedule.begin_undo()
    schedule.begin(10, SETTINGS)
    schedule.begin_undo()
    assert RoundSchedule(tmp_path, CONFIG).undoing
    schedule.finish_undo(12)
    schedule = RoundSchedule(tmp_path, CONFIG)
    assert (schedule.begun, schedule.undoing, schedule.next_begin, schedule.total_steps) == ((), False, None, 12)
    schedule.begin(12, SETTINGS)
    assert RoundSchedule(tmp_path, CONFIG).total_steps == 16


def test_other_words_start_from_the_photos_at_the_first_strength(tmp_path: Path):
    schedule, night = RoundSchedule(tmp_path, CONFIG), RoundSettings("night", "", 5.0, None)
    schedule.begin(10, SETTINGS)
    schedule.begin(14, SETTINGS)
    assert (schedule.start_of_next(SETTINGS), schedule.strength_of_next(SETTINGS)) == ("current", 0.2)
    assert (schedule.start_of_next(night), schedule.strength_of_next(night)) == ("photos", 0.8)
    kept = RoundSettings("night", "", 5.0, None, "current")
    assert (schedule.start_of_next(kept), schedule.strength_of_next(kept)) == ("current", 0.2)
    for step in (18, 22):
        schedule.begin(step, night)
    assert [each.start for each in schedule.begun] == ["current", "current", "photos", "current"]
    assert [each.settings.strength for each in schedule.begun] == [0.8, 0.4, 0.8, 0.4]
    assert schedule.strength_of_next(night) == 0.2
    assert RoundSchedule(tmp_path, CONFIG).begun == schedule.begun
    schedule.begin(22, SETTINGS)
    assert schedule.begun[-1].start == "photos", "it takes the place of a round that nothing was retrained on"
    assert schedule.begun[-1].settings.strength == 0.8


def test_a_damaged_schedule_is_named(tmp_path: Path):
    for content in ("{", "[]", '{"begun": [{"what": 1}]}'):
        (tmp_path / "rounds.json").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            RoundSchedule(tmp_path, CONFIG)


# The panel.


def test_the_controls_come_in_their_order_and_words_only_where_there_are_words():
    names = ["Prompt", "Negative prompt", "New words start from", "Strength", "Guidance"]
    rest = ["Plan", "Restyle now", "Undo round", "May change", "Its size", "Show what may change"]
    assert [each.name for each in panel().elements] == [*names, *rest]
    assert [each.name for each in panel(prompts=False).elements] == rest
    assert [each.name for each in ViewControls(restyled_views=True).elements] == [
        "Status",
        "See",
        "Style shown",
        "Keep this amount",
    ]


def test_the_panel_says_what_the_next_round_should_look_like():
    controls = panel(prompt="gold", negative_prompt="blue")
    assert controls.settings() == RoundSettings("gold", "blue", 5.0, None)
    control(controls, "Prompt").value = "night"
    control(controls, "Guidance").value = 2.5
    control(controls, "Strength").value = 0.9
    control(controls, "New words start from").value = "the field as it is"
    assert controls.settings() == RoundSettings("night", "blue", 2.5, 0.9, "current")
    assert ViewControls(restyled_views=True).see == CURRENT


def test_a_strength_that_nobody_moved_follows_the_rounds_and_the_words():
    config = StylePipelineConfig(rounds=CONFIG)
    strengths = {"a mosaic": 0.4, "night": 0.8}
    controls = StylePanel(SETTINGS, lambda settings: strengths[settings.prompt], config.check_round, prompts=True)
    assert control(controls, "Strength").value == 0.4
    control(controls, "Prompt").value = "night"
    controls.refresh()
    assert control(controls, "Strength").value == 0.8
    assert controls.settings().strength is None
    control(controls, "Strength").value = 0.7
    control(controls, "Prompt").value = "a mosaic"
    controls.refresh()
    assert controls.settings().strength == 0.7


def test_the_panel_says_what_a_press_would_do_and_what_is_wrong_with_the_words():
    controls = panel()
    controls.describe = lambda settings: f"Round 1 as {settings.prompt}"
    controls.refresh()
    assert controls.plan == "Round 1 as a mosaic"
    control(controls, "Prompt").value = " "
    controls.refresh()
    assert "prompt is empty" in controls.plan


@pytest.mark.parametrize(
    ("change", "words"), [(("Prompt", "  "), "prompt is empty"), (("Strength", 0.01), "leave no step to run")]
)
def test_what_cannot_work_is_said_in_the_status_line_and_not_asked_for(change, words):
    controls = panel()
    name, value = change
    control(controls, name).value = value
    control(controls, "Restyle now").cb_hook(None)
    assert words in controls.status_text
    assert controls.take() is None


def test_a_press_is_neither_lost_nor_doubled():
    controls = panel()
    control(controls, "Undo round").cb_hook(None)
    assert not controls.pending
    assert "no round to undo" in controls.status_text
    presses = [threading.Thread(target=controls.ask, args=("restyle",)) for _ in range(8)]
    for press in presses:
        press.start()
    for press in presses:
        press.join()
    assert controls.pending
    control(controls, "Prompt").value = "gold"
    controls.ask("restyle")
    control(controls, "Prompt").value = "something that nobody has pressed for"
    first, second = controls.take(), controls.take()
    assert (first.button, first.settings.prompt, second) == ("restyle", "gold", None)


def test_undo_takes_a_queued_round_out_and_is_kept_before_a_round_that_follows():
    controls = panel()
    controls.num_begun = 2
    controls.ask("restyle")
    controls.ask("undo")
    assert not controls.pending
    assert "cancelled" in controls.status_text
    for button in ("undo", "undo", "restyle"):
        controls.ask(button)
    assert [controls.take().button, controls.take().button, controls.take()] == ["undo", "restyle", None]


def test_a_round_that_is_being_made_is_not_asked_for_twice():
    controls = panel()
    controls.being_made = controls.settings()
    controls.ask("restyle")
    assert not controls.pending
    assert "being made" in controls.status_text
    control(controls, "Prompt").value = "gold"
    controls.ask("restyle")
    assert controls.pending


def test_progress_says_the_time_left_and_forgets_a_pause():
    now, told = [0.0], []
    progress = StageProgress(told.append, lambda: now[0])
    progress.begin("Round 1 of 2: retraining")
    for done in range(1, 8):
        now[0] += 900.0 if done == 4 else 2.0
        progress.update(done, 40)
    assert told[-1] == "Round 1 of 2: retraining: 7 of 40, 1:06 left"
    now[0] += 0.1
    progress.update(8, 40)
    assert "7 of 40" in told[-1], "not told more often than a person reads"
    progress.update(40, 40)
    assert told[-1].endswith("40 of 40")


def test_a_picture_is_shown_whole_in_the_middle():
    shown = fit_inside(torch.ones(3, 10, 20), (40, 40))
    assert shown.shape == (3, 40, 40)
    assert torch.allclose(shown[:, 10:30], torch.tensor(1.0))
    assert shown[:, :10].sum() == shown[:, 30:].sum() == 0


def test_nerfstudios_pause_button_holds_a_restyling_and_stop_ends_it():
    trainer = SimpleNamespace(training_state="paused", stop_training=False)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (RunTrainer.wait_or_stop(trainer), passed.set()), daemon=True)
    waiting.start()
    assert not passed.wait(0.3)
    trainer.training_state = "training"
    assert passed.wait(10)
    trainer.stop_training = True
    with pytest.raises(TrainingStopped):
        RunTrainer.wait_or_stop(trainer)


# In a training. The main job of tests/ns.py: 12 steps of reconstruction, then two rounds of 3 steps.


@pytest.fixture
def press(monkeypatch):
    """See `presses.press_at`."""
    return functools.partial(press_at, monkeypatch.setattr)


def requests(run: Path) -> list[dict]:
    folders = sorted((run / "restyled").glob("round_*"))
    return [json.loads((folder / "manifest.json").read_text())["request"] for folder in folders]


def copied(run: Path, to: Path) -> Path:
    copy = to / run.relative_to(run.parents[2])
    shutil.copytree(run, copy)
    return copy


def step_of(run: Path) -> int:
    return read_checkpoint(newest_checkpoint(run / "nerfstudio_models"))["step"]


def test_restyle_now_begins_the_next_round_early_with_other_words_from_the_photos_field(press, tmp_path, monkeypatch):
    begin, fields = RoundRunner._begin, []

    def begun(self: RoundRunner, *args) -> None:
        before = self.pipeline.model.field_state()
        begin(self, *args)
        fields.append((before, self.pipeline.model.field_state()))

    monkeypatch.setattr(RoundRunner, "_begin", begun)
    press(13, "restyle", Prompt="a gold statue", Guidance=1.5, Strength=0.7)
    ns.train(tmp_path)
    run = ns.only_run(tmp_path)
    first, second = requests(run)
    assert (first["step"], second["step"]) == (12, 13)
    assert first["settings"]["prompt"] != second["settings"]["prompt"] == "a gold statue"
    assert second["settings"]["guidance_scale"] == 1.5
    assert second["settings"]["strength"] == 0.7
    assert (first["start"], second["start"]) == ("current", "photos")
    assert step_of(run) == 15, "two rounds, the first of one step"
    reconstruction, (painted, restarted) = load_file(run / RECONSTRUCTION), fields[1]
    assert all(torch.equal(value, restarted[name]) for name, value in reconstruction.items())
    assert not all(torch.equal(value, painted[name]) for name, value in reconstruction.items())
    one, two = (sorted((run / "restyled" / f"round_0{n}" / "renders").iterdir()) for n in (1, 2))
    views = [torch.stack([read_image(path) for path in paths]) for paths in (one, two)]
    assert (views[0] - views[1]).abs().mean() < 0.02, "views of the photos' field"
    assert "a gold statue" in ns.metrics(run)["round_02"]["held_out"]["style_distance"]


def test_restyle_now_in_the_middle_of_a_restyling_starts_it_again_with_other_words(tmp_path, monkeypatch):
    """Pressed at the second denoising step of round 1, which nothing has been retrained on yet."""
    panels, titles = [], []
    attach, update = RoundRunner.attach, StageProgress.update

    def attached(self: RoundRunner, trainer) -> None:
        attach(self, trainer)
        panels.append(self.panel)

    def pressed(self: StageProgress, done: int, total: int) -> None:
        update(self, done, total)
        if "restyling" in self._title and self._title not in titles and done == 2:
            titles.append(self._title)
            if len(titles) == 1:
                control(panels[0], "Prompt").value = "a gold statue"
                panels[0].ask("restyle")

    monkeypatch.setattr(RoundRunner, "attach", attached)
    monkeypatch.setattr(StageProgress, "update", pressed)
    ns.train(tmp_path)
    run = ns.only_run(tmp_path)
    assert "a gold statue" not in titles[0]
    assert "a gold statue" in titles[1], "what had been begun was given up"
    assert [(each["step"], each["settings"]["prompt"]) for each in requests(run)] == [
        (12, "a gold statue"),
        (15, "a gold statue"),
    ]
    assert step_of(run) == 17, "the rounds are as many and as long as configured"
    assert not [path for path in (run / "restyled").iterdir() if path.name not in ("round_01", "round_02")]


def test_a_finished_run_takes_another_round_and_goes_on_with_it(run, press, tmp_path):
    copy = copied(run, tmp_path)
    ns.train(tmp_path, timestamp=run.name, max_num_iterations=19)
    press(19, "restyle", Prompt="a pencil sketch")
    ns.train(tmp_path, timestamp=run.name, max_num_iterations=20)
    assert [each["step"] for each in requests(copy)] == [12, 15, 19]
    assert step_of(copy) == 21
    before = {path: path.stat().st_mtime_ns for path in (copy / "restyled").rglob("*")}
    ns.train(tmp_path, timestamp=run.name)
    assert {path: path.stat().st_mtime_ns for path in (copy / "restyled").rglob("*")} == before


def test_an_undone_round_leaves_the_field_that_was_before_it(press, tmp_path):
    press(14, "undo")
    ns.train(tmp_path, pipeline__rounds__rounds=1)
    run = ns.only_run(tmp_path)
    state = read_checkpoint(newest_checkpoint(run / "nerfstudio_models"))
    assert state["step"] == 13
    for name, value in load_file(run / RECONSTRUCTION).items():
        assert torch.equal(state["pipeline"][f"_model.{name}"], value), name
    assert [path.name for path in (run / "restyled").iterdir()] == ["undone_01"], "its views are put aside"
    assert list(ns.metrics(run)) == ["reconstruction"]
    ns.train(tmp_path, timestamp=run.name, pipeline__rounds__rounds=1)
    assert step_of(run) == 13, "there is nothing to go on with"
    press(14, "restyle", Prompt="night")
    ns.train(tmp_path, timestamp=run.name, pipeline__rounds__rounds=2)
    assert requests(run)[0]["step"] == 14


def test_the_viewer_shows_what_its_menu_says(tmp_path, monkeypatch):
    """Asked by a camera of the viewer's kind while round 1 is retrained on."""
    seen = {}
    enter = RoundRunner.enter

    def looked(self: RoundRunner, now: int, trainer) -> None:
        enter(self, now, trainer)
        if now == 14:
            shown, view = trainer.viewer_state.get_model(), trainer.pipeline.workbench._view
            camera = self.pipeline.datamanager.style_cameras()[:1].to(self.pipeline.device)
            camera.metadata = {"cam_idx": 0}
            for name in (CURRENT, ORIGINAL, RESTYLED):
                control(view, "See").value = name
                with torch.no_grad():
                    shown.eval()
                    seen[name] = shown.get_outputs_for_camera(camera, obb_box=None)
                    shown.train()
            seen["picture"] = self.retraining.views[0].restyled[0]
            seen["state"] = self.pipeline.model.field_state()

    monkeypatch.setattr(RoundRunner, "enter", looked)
    ns.train(tmp_path, pipeline__rounds__rounds=1)
    assert len({frozenset(seen[name]) for name in (CURRENT, ORIGINAL, RESTYLED)}) == 1, (
        "the same outputs to choose from"
    )
    assert torch.allclose(seen[RESTYLED]["rgb"].permute(2, 0, 1), seen["picture"], atol=1e-3)
    assert torch.equal(seen[RESTYLED]["depth"], seen[CURRENT]["depth"])
    change = (seen[ORIGINAL]["rgb"] - seen[CURRENT]["rgb"]).abs().max()
    assert change > 0, "two steps of retraining"
    run = ns.only_run(tmp_path)
    base = torch.stack([read_image(path) for path in sorted((run / "restyled" / "round_01" / "renders").iterdir())])
    assert (seen[ORIGINAL]["rgb"].permute(2, 0, 1) - base).abs().amax((1, 2, 3)).min() < 0.02
