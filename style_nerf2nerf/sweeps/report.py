"""The report of a sweep: one table as CSV and Markdown, and one HTML page with the pictures of all runs."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eschernet_prior.base.files import atomic_path, read_json
from style_nerf2nerf.sweeps.jobs import Outcome

WIDEST = 1200
"""Largest width of a picture on the page in pixels."""
COLUMNS = ("scene", "prompt", "seed", "variant", "state", "minutes", "attempts", "PSNR", "style before", "style after")
"""Columns of the table. PSNR (dB) is that of the reconstruction on held-out photos; style distances are those before
and after the last round."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; } .failed { color: #b00; white-space: pre-wrap; }
"""


def write_report(output_dir: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write `sweep.csv`, `sweep.md` and `sweep.html` into the folder of a sweep.

    Returns:
        The path of the page; it contains its pictures, so it can be copied alone.
    """
    rows = [row_of(outcome) for outcome in outcomes]
    with atomic_path(output_dir / "sweep.csv") as partial, partial.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([row[name] for name in COLUMNS] for row in rows)
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(str(row[name]).replace("|", "\\|") for name in COLUMNS) for row in rows]
    with atomic_path(output_dir / "sweep.md") as partial:
        partial.write_text("".join(f"| {line} |\n" for line in lines), "utf8")
    with atomic_path(output_dir / "sweep.html") as partial:
        partial.write_text(_page(outcomes, rows), "utf8")
    return output_dir / "sweep.html"


def row_of(outcome: Outcome) -> dict[str, Any]:
    """Compute one row of the table; values that were not measured are empty."""
    job = outcome.job
    metrics = read_json(job.run_dir / "metrics.json") or {}
    rounds = [metrics[name] for name in sorted(metrics) if name.startswith("round_")]
    last = rounds[-1] if rounds else {}

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return {
        "scene": job.scene,
        "prompt": job.prompt or "(reconstruction)",
        "seed": job.seed if job.prompt is not None else "",
        "variant": job.variant,
        "state": outcome.state,
        "minutes": number(outcome.seconds / 60, 1),
        "attempts": outcome.attempts,
        "PSNR": number(metrics.get("reconstruction", {}).get("psnr"), 2),
        "style before": number(last.get("style_distance_before"), 3),
        "style after": number(last.get("style_distance_after"), 3),
    }


def _page(outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]]) -> str:
    def cells(tag: str, values: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

    parts = [cells("th", COLUMNS), *(cells("td", [row[name] for name in COLUMNS]) for row in rows)]
    sections = []
    for outcome in outcomes:
        job = outcome.job
        pictures = sorted((job.run_dir / "previews").glob("round_*.png"))
        if outcome.state == "finished" and not pictures:
            continue
        title = html.escape(f"{job.scene}: {job.prompt or 'reconstruction'} (seed {job.seed}, {job.variant or 'base'})")
        shown = "".join(f'<p><img alt="{title}" src="{_embedded(path)}"></p>' for path in pictures)
        failed = f'<p class="failed">{html.escape(outcome.reason)}</p>' if outcome.state == "failed" else ""
        sections.append(f"<h2>{title}</h2>{failed}{shown}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sweep</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>Sweep</h1><table>{''.join(parts)}</table>{''.join(sections)}</body></html>\n"
    )


def _embedded(path: Path) -> str:
    """A picture as a data URL, at most `WIDEST` pixels wide."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((WIDEST, 10 * WIDEST))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
