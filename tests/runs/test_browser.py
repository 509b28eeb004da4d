"""A person in front of the viewer: Chromium opens a running training, changes the prompt and asks for a round."""

import io
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ns
from eschernet_prior.base.files import read_json
from processes import forkserver

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240
"""Seconds for anything that a training does."""


def train_with_viewer(output_dir: Path, cache: Path, port: int) -> None:
    os.environ["STYLE_NERF2NERF_CACHE"] = str(cache)
    ns.train(
        output_dir,
        prompt="a mosaic",
        pipeline__rounds__rounds=1,
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


def shows_a_picture(screenshot: bytes) -> bool:
    """Whether there is more in the middle of the viewer than one colour, all that a field of a few steps has."""
    with Image.open(io.BytesIO(screenshot)) as picture:
        scene = np.asarray(picture.convert("RGB"), np.float32)[200:800, 100:800]
    return scene.std() > 10


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
def test_the_prompt_is_changed_and_a_round_asked_for_in_the_browser(cache: Path, tmp_path: Path):
    from playwright.sync_api import expect, sync_playwright

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    training = forkserver().Process(target=train_with_viewer, args=(tmp_path, cache, port))
    training.start()
    try:
        (run,) = wait_for(lambda: [path.parent for path in tmp_path.glob("*/*/*/rounds.json")], "a run folder")
        wait_for(lambda: "round_01" in (read_json(run / "metrics.json") or {}), "the configured round")
        with sync_playwright() as playwright:
            # WebGL in software, because there may be no GPU; no sandbox, because the tests may run as root.
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
            )
            page = browser.new_page(viewport={"width": 1280, "height": 960})
            page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
            page.set_default_timeout(1000 * PATIENCE)
            expect.set_options(timeout=1000 * PATIENCE)
            expect(page.get_by_text("Finished after 1 round")).to_be_visible()
            for name in ("See", "Prompt", "Negative prompt", "Strength", "Guidance", "Undo round"):
                expect(page.get_by_text(name, exact=True)).to_be_visible()
            prompt = page.locator("input[value='a mosaic']")
            prompt.fill("a gold statue")
            page.get_by_role("button", name="Restyle now").click()
            wait_for(lambda: "round_02" in (read_json(run / "metrics.json") or {}), "the round that was asked for")
            expect(page.get_by_text("Finished after 2 rounds")).to_be_visible()
            page.locator("input[value='current field']:not([type=hidden])").click()
            page.get_by_role("option", name="restyled view of the nearest camera").click()
            page.mouse.move(300, 500)
            wait_for(lambda: shows_a_picture(page.screenshot()), "a restyled view, unlike the field of so few steps")
            browser.close()
    finally:
        training.kill()
        training.join()
    first, second = (read_json(run / "restyled" / f"round_0{n}" / "manifest.json")["request"] for n in (1, 2))
    assert (first["settings"]["prompt"], second["settings"]["prompt"]) == ("a mosaic", "a gold statue")
