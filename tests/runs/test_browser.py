"""A person in front of the viewer: Chromium opens a running training and presses everything that can be pressed."""

import io
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ns
from eschernet_prior.base.files import read_json
from processes import forkserver

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STEPS = 170
"""Of the training that is watched, with its one round: so many that the field shows the scene."""
CHANGE = 1.0
"""Mean change of a colour, of 255, above which something else is shown."""
SHARP = 2.0
"""Seconds after which a picture is sharp on a machine that does nothing else."""
FLAT = 2.0
"""Spread of colours, of 255, below which a picture is one flat colour but for its compression."""
PATIENCE = 240
"""Seconds for anything that a training does."""


def train_with_viewer(output_dir: Path, cache: Path, port: int) -> None:
    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    ns.train(
        output_dir,
        prompt="a mosaic",
        pipeline__model__more_prompts=["a pencil sketch"],
        pipeline__rounds__reconstruct_steps=STEPS - 20,
        pipeline__rounds__rounds=1,
        pipeline__rounds__retrain_steps=20,
        pipeline__datamanager__train_num_rays_per_batch=256,
        viewer__quit_on_train_completion=False,
        viewer__websocket_port=port,
    )


def wait_for(what, why: str):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{why}: not within {PATIENCE} s")


def spread(screenshot: bytes) -> float:
    """Standard deviation, of 255, of the colours in the middle of the viewer: 0 where it shows one flat colour."""
    with Image.open(io.BytesIO(screenshot)) as picture:
        scene = np.asarray(picture.convert("RGB"), np.float32)[200:700, 100:800]
    return float(scene.std((0, 1)).mean())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def view_a_run(config: Path, cache: Path, port: int) -> None:
    from nerfstudio.scripts.viewer.run_viewer import RunViewer, ViewerConfigWithoutNumRays

    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    viewer = ViewerConfigWithoutNumRays(websocket_host="127.0.0.1", websocket_port=port)
    RunViewer(load_config=config, viewer=viewer).main()


@contextmanager
def running(target, *args):
    """A process of its own that is killed in the end."""
    process = forkserver().Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        # WebGL in software, because there may be no GPU; no sandbox, because the tests may run as root.
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def artefacts(pytestconfig) -> Path:
    """Where screenshots are kept for people to look at."""
    folder = pytestconfig.rootpath / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def training(cache: Path, tmp_path_factory) -> Iterator[tuple[Path, int]]:
    """A training that has made its one round and waits in the viewer: its run folder, and the viewer's port."""
    folder, port = tmp_path_factory.mktemp("watched"), free_port()
    with running(train_with_viewer, folder, cache, port):
        (run,) = wait_for(lambda: [path.parent for path in folder.glob("*/*/*/rounds.json")], "a run folder")
        wait_for(lambda: "round_01" in (read_json(run / "metrics.json") or {}), "the configured round")
        yield run, port


def opened(browser, port: int):
    """The viewer's page, once something listens there."""

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, "a viewer that listens")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
    return page


def slider(page, name: str):
    """The thumb of the slider of that name."""
    row = f"//label[normalize-space()='{name}']/ancestor::*[.//*[@role='slider']][1]"
    return page.locator(f"xpath={row}//*[@role='slider']").first


def choose(page, now: str, then: str) -> None:
    """Change a drop-down that shows `now`."""
    page.locator(f"input[value={now!r}]:not([type=hidden])").click()
    page.get_by_role("option", name=then, exact=True).click()


def field_of_the_page(page) -> np.ndarray:
    """The part of the window that the viewer renders, (height, width, 3) in 0 … 255."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        return np.asarray(picture.convert("RGB"), np.float32)[100:700, 50:900]


def changed(page, before: np.ndarray, why: str) -> np.ndarray:
    """Wait until something else is shown, and then until that is sharp."""
    wait_for(lambda: np.abs(field_of_the_page(page) - before).mean() > CHANGE, why)
    time.sleep(SHARP)
    return field_of_the_page(page)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
@pytest.mark.slow
def test_every_control_of_the_panel_does_what_it_says(browser, training, artefacts: Path):
    """One person's way through the panel, after the round that was configured."""
    from playwright.sync_api import expect

    run, port = training

    def finished(number: int) -> bool:
        return f"round_{number:02d}" in (read_json(run / "metrics.json") or {})

    def request(number: int) -> dict:
        return read_json(run / "restyled" / f"round_{number:02d}" / "manifest.json")["request"]

    page = opened(browser, port)
    expect(page.get_by_text("Finished after 1 round.")).to_be_visible()
    expect(page.get_by_text(f"Step: {STEPS - 1}")).to_be_visible()
    wait_for(lambda: spread(page.screenshot()) > FLAT, "a first view of the scene")
    time.sleep(SHARP)
    page.screenshot(path=artefacts / "1_first_view.png")
    for name in ("Restyle now", "Undo round", "Keep this amount"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["y"] + box["height"] <= 800, f"{name} is on the first screen"

    # See, and how much of the style.
    now = field_of_the_page(page)
    choose(page, "now", "before")
    before = changed(page, now, "the field before the first round")
    page.screenshot(path=artefacts / "2_before.png")
    choose(page, "before", "now")
    again = changed(page, before, "the field now")
    assert np.abs(again - now).mean() < np.abs(again - before).mean()
    slider(page, "Style shown").focus()
    page.keyboard.press("Home")
    none = changed(page, again, "no style")
    assert np.abs(none - before).mean() < np.abs(none - now).mean()
    page.get_by_role("button", name="Keep this amount").click()
    wait_for(lambda: (run / "kept" / "amount_0.00" / "config.yml").is_file(), "a field that is kept")
    slider(page, "Style shown").focus()
    page.keyboard.press("End")
    changed(page, none, "all of the style")
    choose(page, "now", "restyled view")
    page.screenshot(path=artefacts / "3_restyled_view.png")
    choose(page, "restyled view", "now")

    # The words, and what a press is going to do.
    plan = page.get_by_text("Restyle now: round 2 as")
    expect(plan).to_contain_text("the field as it is")
    page.locator("input[value='a mosaic']").fill("a gold statue")
    expect(plan).to_contain_text("“a gold statue”, from the photos' field, strength 0.50")
    choose(page, "the photos' field", "the field as it is")
    expect(plan).to_contain_text("“a gold statue”, from the field as it is, strength 0.38")
    choose(page, "the field as it is", "the photos' field")
    for name, key in (("Strength", "ArrowRight"), ("Guidance", "ArrowLeft"), ("Style 2: a pencil sketch", "Home")):
        slider(page, name).focus()
        page.keyboard.press(key)
    expect(plan).to_contain_text("strength 0.51")
    page.screenshot(path=artefacts / "4_other_words.png")

    # Pressed twice: one round. Pressed in the middle of it: the next.
    page.get_by_role("button", name="Restyle now").dblclick()
    expect(page.get_by_text("Round 2 of 2: retraining")).to_be_visible()
    page.locator("input[value='a gold statue']").fill("a woodcut")
    expect(page.get_by_text("it ends round 2 here")).to_be_visible()
    page.get_by_role("button", name="Pause Training").click()
    choose(page, "everything", "inside a box")
    slider(page, "Its size").focus()
    page.keyboard.press("End")
    expect(page.get_by_text("only inside the box")).to_be_visible()
    page.screenshot(path=artefacts / "5_box.png")
    choose(page, "inside a box", "everything")
    page.get_by_role("button", name="Restyle now").click()
    expect(page.get_by_text("A round is queued.")).to_be_visible()
    page.screenshot(path=artefacts / "6_paused.png")
    assert not (run / "restyled" / "round_03").exists()
    page.get_by_role("button", name="Resume Training").click()
    wait_for(lambda: finished(3), "the round that was asked for in the middle of another")
    expect(page.get_by_text("Finished after 3 rounds.")).to_be_visible()
    page.screenshot(path=artefacts / "7_third_round.png")
    assert [request(number)["settings"]["prompt"] for number in (1, 2, 3)] == ["a mosaic", "a gold statue", "a woodcut"]
    assert [request(number)["start"] for number in (1, 2, 3)] == ["current", "photos", "photos"]
    assert request(2)["settings"]["strength"] == pytest.approx(0.51)
    assert request(2)["settings"]["guidance_scale"] == pytest.approx(1.9)
    assert read_json(run / "metrics.json")["round_03"]["style_weights"][1] == 0.0

    third = field_of_the_page(page)
    page.get_by_role("button", name="Undo round").click()
    expect(page.get_by_text("Finished after 2 rounds.")).to_be_visible()
    changed(page, third, "the field before the last round")
    page.screenshot(path=artefacts / "8_undone.png")
    assert (run / "restyled" / "undone_03").is_dir()
    page.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
def test_ns_viewer_shows_the_scene_of_a_finished_run(browser, training, cache: Path):
    from playwright.sync_api import expect

    run, _ = training
    port = free_port()
    with running(view_a_run, run / "config.yml", cache, port):
        page = opened(browser, port)
        expect(page.get_by_role("button", name="Show Train Cams")).to_be_visible()
        wait_for(lambda: spread(page.screenshot()) > FLAT, "a picture of the scene")
        page.close()
