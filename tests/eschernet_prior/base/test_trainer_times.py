"""The speed in the log is that of training steps, whatever stage a step waited for."""

import pytest
from nerfstudio.utils.printing import human_format

from eschernet_prior.base.console import EventName, forget_time_of_step, writer

RAYS = 4096


@pytest.fixture(autouse=True)
def log(monkeypatch):
    monkeypatch.setattr(writer, "EVENT_STORAGE", [])
    monkeypatch.setattr(writer, "GLOBAL_BUFFER", {"events": {}, "max_buffer_size": 20, "max_iter": 100})


def put(step: int, seconds: float) -> None:
    """What nerfstudio puts into its log after a step."""
    writer.put_time(EventName.ITER_TRAIN_TIME, seconds, step, update_eta=True)
    writer.put_time(EventName.TRAIN_RAYS_PER_SEC, RAYS / seconds, step)


def shown() -> dict[str, float]:
    return {getattr(event["name"], "value", event["name"]): event["event"] for event in writer.EVENT_STORAGE}


def test_without_forgetting_an_hour_is_shown_as_quadrillions_of_rays():
    put(50, 7.85 * 3600)
    assert human_format(shown()["Train Rays / Sec"]) == "144.94 P"


def test_the_first_step_after_a_resume_is_left_out():
    put(50, 7.85 * 3600)
    forget_time_of_step(50)
    assert not shown()
    put(51, 0.5)
    assert shown()["Train Rays / Sec"] == pytest.approx(2 * RAYS)
    assert shown()["ETA (time)"] == pytest.approx(49 * 0.5)


def test_a_step_between_others_does_not_change_their_mean():
    put(49, 0.5)
    put(50, 3600)
    writer.put_scalar("loss", 1.0, 50)
    forget_time_of_step(50)
    assert writer.EVENT_STORAGE[-1]["name"] == "loss"
    assert shown()["Train Iter (time)"] == 0.5
    put(51, 0.5)
    assert shown()["Train Iter (time)"] == 0.5
    assert shown()["ETA (time)"] == pytest.approx(49 * 0.5)
