"""report.html: what a run did, as one page that holds its pictures and plots itself and asks the network for nothing.

It is made from what is in the run folder, so it can be made again at any time:

    python -m style_nerf2nerf.rounds.report.page RUN
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro
from markupsafe import Markup
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path, read_json
from style_nerf2nerf.rounds.report.curves import read_curves
from style_nerf2nerf.rounds.report.plots import Points, line_plot
from style_nerf2nerf.rounds.report.previews import sheet_path, turntable_file
from style_nerf2nerf.rounds.storage import RoundFolder

REPORT_FILE = "report.html"
WIDEST = 1400
"""Pixels across a contact sheet in the page, at most."""
QUALITY = 82
"""Of WebP pictures, from 0 to 100."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of the command line."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder: outputs/<data>/<method>/<time>."""


def write_report(run_dir: Path) -> Path:
    """Write report.html of a run, as far as the run has come; whole or not at all.

    Args:
        run_dir: The run folder.

    Returns:
        The page.

    Raises:
        UserError: If the folder does not belong to a run, or a file in it is damaged.
    """
    page = report_page(run_dir)
    with atomic_path(run_dir / REPORT_FILE) as partial:
        partial.write_text(page, "utf8")
    return run_dir / REPORT_FILE


def report_page(run_dir: Path) -> str:
    """The page as HTML; see `write_report`."""
    run = read_json(run_dir / "run.json")
    if run is None:
        raise UserError(f"There is no run in {run_dir}: give the folder that has a run.json.")
    metrics: dict[str, Any] = read_json(run_dir / "metrics.json") or {}
    numbers = sorted(int(name.removeprefix("round_")) for name in metrics if name.startswith("round_"))
    manifests = {number: read_json(RoundFolder(run_dir, number).path / "manifest.json") or {} for number in numbers}
    settings: dict[str, Any] = run["asked"]
    reconstruction = metrics.get("reconstruction", {})
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        Path(__file__).with_name("page.html.jinja").read_text("utf8")
    )
    return template.render(
        title=_title(settings, manifests),
        method=run["method"],
        run=f"{run_dir.resolve().parent.parent.name}/{run_dir.resolve().name}",
        state=f"{len(numbers)} finished {'round' if len(numbers) == 1 else 'rounds'}",
        numbers=_key_numbers(metrics, numbers),
        rounds=[_round(run_dir, number, metrics[f"round_{number:02d}"], manifests[number]) for number in numbers],
        plots=_plots(run_dir, metrics, numbers),
        times=_times(reconstruction, metrics, manifests),
        models=_models(manifests[numbers[-1]]) if numbers else [],
        settings=[(name, _plain(value)) for name, value in settings.items()],
    )


def _title(settings: Mapping[str, Any], manifests: Mapping[int, Any]) -> str:
    for manifest in reversed(list(manifests.values())):
        if manifest:
            return _styles(manifest["request"])
    return settings.get("prompt") or "A run"


def _styles(request: Mapping[str, Any]) -> str:
    folders = [Path(folder).name for folder in request["restyled_data"]]
    return " + ".join(folders or [request["settings"]["prompt"], *request["more_prompts"]])


def _key_numbers(metrics: Mapping[str, Any], rounds: list[int]) -> list[tuple[str, str]]:
    numbers = []
    if "psnr" in metrics.get("reconstruction", {}):
        numbers.append(("dB PSNR of the photos' field on held-out photos", f"{metrics['reconstruction']['psnr']:.1f}"))
    if rounds:
        last = metrics[f"round_{rounds[-1]:02d}"]
        before, after = last["style_distance_before"], last["style_distance_after"]
        least = last.get("style_distance_least", 0.0)
        if before > least:
            of = "style distance above the blend's least" if least else "style distance"
            share = 100 * (after - least) / (before - least)
            numbers.append((f"of the {of} is left after the last round", f"{share:.0f} %"))
        if "psnr_to_base" in last.get("held_out", {}):
            numbers.append(("dB PSNR between before and after", f"{last['held_out']['psnr_to_base']:.1f}"))
    return numbers


def _round(run_dir: Path, number: int, measured: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    request = manifest.get("request", {})
    settings = request.get("settings", {})
    facts = [
        ("Prompt", settings.get("prompt")),
        ("Not", settings.get("negative_prompt")),
        (
            "Started from",
            "the photos' field" if request.get("start") == "photos" or number == 1 else "the field before it",
        ),
        ("Strength", f"{settings['strength']:.2f}" if settings else None),
        ("Guidance", settings.get("guidance_scale")),
        ("Masks", request.get("masks")),
        ("Views", len(request.get("views", []))),
        (
            "Style distance of the views",
            f"{measured['style_distance_before']:.3f} → {measured['style_distance_after']:.3f}",
        ),
        (
            "No picture of this blend is nearer than",
            f"{measured['style_distance_least']:.3f}" if measured.get("style_distance_least") else None,
        ),
        (
            "Change of depth",
            f"{measured['held_out']['depth_change']:.1%}" if "depth_change" in measured["held_out"] else None,
        ),
    ]
    sheet, turntable = sheet_path(run_dir, number), turntable_file(run_dir, number)
    return {
        "number": number,
        "styles": _styles(request) if request else "its pictures are not there any more",
        "sheet": _still(sheet) if sheet.is_file() else None,
        "caption": "Before | restyled | after, one view a row.",
        "turntable": _embedded(turntable.read_bytes()) if turntable.is_file() else None,
        "facts": [(name, value) for name, value in facts if value not in (None, "")],
    }


def _plots(run_dir: Path, metrics: Mapping[str, Any], rounds: list[int]) -> list[Markup]:
    curves = read_curves(run_dir)
    losses = {name.removesuffix("_loss").replace("_", " "): points for name, points in curves.items() if "loss" in name}
    ends = [metrics["reconstruction"]["steps"]] if "reconstruction" in metrics else []
    ends += [metrics[f"round_{number:02d}"]["steps"] for number in rounds[:-1]]
    marks = {f"round {number}": step for number, step in zip(rounds, ends)}
    held_out: dict[str, list[tuple[float, float]]] = {}
    likeness: dict[str, list[tuple[float, float]]] = {}
    for number in rounds:
        measured = metrics[f"round_{number:02d}"]
        step, views = measured["steps"], measured["held_out"]
        for style, distances in views.get("style_distance", {}).items():
            points = held_out.setdefault(f"held-out views: {style}", [])
            points.append((step, distances.get("mean", float("nan"))))
        if "psnr_to_base" in views:
            likeness.setdefault("held-out views to the photos' field", []).append((step, views["psnr_to_base"]))
    distance: dict[str, Points] = {"views trained on": curves.get("style_loss", []), **held_out}
    psnr: dict[str, Points] = {"photos, by ray batch": curves.get("psnr", [])}
    psnr["views trained on, to the photos' field"] = curves.get("psnr_to_base", [])
    plots = [
        line_plot(losses, label="Weighted losses", logarithmic=True, marks=marks),
        line_plot(distance, label="Style distance", marks={}),
        line_plot({**psnr, **likeness}, label="PSNR in dB", marks=marks),
    ]
    return [Markup(plot) for plot in plots if plot]  # noqa: S704, every text in it is escaped


def _times(
    reconstruction: Mapping[str, Any], metrics: Mapping[str, Any], manifests: Mapping[int, Any]
) -> list[tuple[str, str]]:
    rows = [("Reconstruction", reconstruction.get("seconds"))]
    for number, manifest in manifests.items():
        parts = manifest.get("seconds", {})
        rows += [(f"Round {number}: {part}", seconds) for part, seconds in parts.items()]
        rows.append((f"Round {number}: retrain", metrics[f"round_{number:02d}"].get("seconds")))
    return [(name, _duration(seconds)) for name, seconds in rows if seconds is not None]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _models(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    models = manifest.get("models") or {}
    return [(name.replace("_", " "), _plain(value)) for name, value in models.items() if value not in ({}, [], None)]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value) or "none"
    return "none" if value in (None, "") else str(value)


def _still(path: Path) -> str:
    """A picture as a WebP data URI, no wider than `WIDEST`."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((WIDEST, 8 * WIDEST))
        buffer = io.BytesIO()
        small.save(buffer, "webp", quality=QUALITY, method=4)
    return _embedded(buffer.getvalue())


def _embedded(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


def main(options: ReportOptions) -> None:
    """Make a run's report again."""
    CONSOLE.print(f"Report: {write_report(options.run)}", soft_wrap=True, markup=False)


def entrypoint() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(ReportOptions, description=__doc__))


if __name__ == "__main__":
    entrypoint()
