"""The report of a run: complete in itself, and readable on a phone."""

import shutil
from pathlib import Path

import pytest

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json
from style_nerf2nerf.rounds.report.curves import CURVES_FILE, Curves, read_curves
from style_nerf2nerf.rounds.report.page import REPORT_FILE, report_page, write_report
from style_nerf2nerf.rounds.report.plots import line_plot, ticks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_shows_its_pictures_without_asking_the_network_for_anything(run: Path, tmp_path: Path, width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked = browser.new_page(viewport={"width": width, "height": 844}), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((run / REPORT_FILE).as_uri())
        images = page.evaluate("[...document.images].map(each => [each.complete, each.naturalWidth])")
        plots = page.locator("svg").count()
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        page.screenshot(path=tmp_path / f"report_{width}.png", full_page=True)
        text = page.inner_text("body")
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [(run / REPORT_FILE).as_uri()]
    assert len(images) == 4, "a sheet and a turntable a round"
    assert all(complete and width > 0 for complete, width in images)
    assert plots == 3
    assert overflow <= 0, "nothing is wider than the window"
    for words in ("a cartoon", "Strength", "Reconstruction", "Round 2: retrain", "diffusers"):
        assert words in text


def test_the_report_is_made_again_from_the_run_folder_and_shows_text_as_it_was_written(run: Path, tmp_path: Path):
    copy = tmp_path / "data" / "method" / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.ckpt", "*.safetensors"))
    manifest = copy / "restyled" / "round_02" / "manifest.json"
    content = read_json(manifest)
    content["request"]["settings"]["prompt"] = "<script>alert(1)</script> & gold"
    write_json(manifest, content)
    page = write_report(copy).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; gold" in page
    for folder in ("restyled", "previews"):
        shutil.rmtree(copy / folder)
    assert "Round 2" in report_page(copy), "what is gone is left out"
    with pytest.raises(UserError, match=r"run\.json"):
        report_page(tmp_path)


def test_curves_of_an_interrupted_run_go_on_where_it_did(tmp_path: Path):
    curves = Curves(tmp_path, 1200)
    for step in (0, 1, 3, 6, 9):
        curves.add(step, {"style_loss": step}, {"psnr": 2.0 * step})
    Curves(tmp_path, 1200).add(6, {"style_loss": 66}, {})
    with (tmp_path / CURVES_FILE).open("a") as file:
        file.write('{"step": 9, "sty')
    assert read_curves(tmp_path) == {"style_loss": [(0, 0.0), (3, 3.0), (6, 66.0)], "psnr": [(0, 0.0), (3, 6.0)]}
    assert read_curves(tmp_path / "nothing") == {}


def test_plots_draw_what_can_be_drawn():
    assert line_plot({"a": []}, label="nothing") == ""
    assert line_plot({"a": [(0, 0.0), (1, -1.0)]}, label="nothing", logarithmic=True) == ""
    plot = line_plot({"<a>": [(0, 1.0), (10, 100.0)]}, label="loss", logarithmic=True, marks={"round 1": 5})
    assert "&lt;a&gt;" in plot
    assert "<a>" not in plot
    assert plot.count("<circle") == 2
    assert "round 1" in plot
    assert line_plot({"one": [(3, 0.0)]}, label="a single point")


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert ticks(-2.3, 1.1) == [-2, -1, 0, 1]
    assert ticks(199.9, 208.1) == [200, 202, 204, 206, 208]
