"""Rows of results by name: saved to a JSON file as they are measured, averaged, and printed as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from eschernet_prior.base.files import read_json, write_json
from style_nerf2nerf.evaluation.published import PUBLISHED

SHOWN = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "style_distance": "style distance",
    "single_image_style_distance": "to one view",
    "short_rmse": "short RMSE",
    "long_rmse": "long RMSE",
    "short_lpips": "short LPIPS",
    "long_lpips": "long LPIPS",
    "bpsnr": "BPSNR",
    "bssim": "BSSIM",
    "clip_tids": "TIDS",
    "clip_dc": "DC",
}
"""Columns of the table in order, by metric; metrics that no row has are omitted."""

Rows = dict[str, dict[str, float]]
"""Results by row and metric."""


class Results:
    """Rows that are saved to a JSON file as they are measured; rows in the file are not measured again."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        """Read the rows of an earlier command with the same options.

        Args:
            path: The JSON file.
            protocol: The options that the results depend on.
        """
        self.path, self.protocol = path, protocol
        kept = read_json(path) or {}
        self.rows: Rows = kept["rows"] if kept.get("protocol") == protocol else {}

    def row(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return a row, measuring it if it is missing."""
        if name not in self.rows:
            self.rows[name] = measure()
            self.write()
        return self.rows[name]

    def write(self, **more: Any) -> None:
        """Write the rows, together with further entries."""
        write_json(self.path, {"protocol": self.protocol, "rows": self.rows, "published": PUBLISHED, **more})


def table_of(rows: Rows, title: str) -> Table:
    """Format rows as a table, with a column for each metric that any row has."""
    names = [*SHOWN, *(name for row in rows.values() for name in row if name not in SHOWN)]
    columns = [name for name in dict.fromkeys(names) if any(name in row for row in rows.values())]
    table = Table("", *(SHOWN.get(name, name.replace("_", " ")) for name in columns), title=title)
    for label, row in rows.items():
        table.add_row(label, *(f"{row[name]:.4g}" if name in row else "" for name in columns))
    return table


def means(rows: Rows, labels: Sequence[str], parts: Sequence[str]) -> Rows:
    """Average rows named `part: label` over parts, for the metrics that all rows of a label have."""
    found: Rows = {}
    for label in labels:
        each = [rows[f"{part}: {label}"] for part in parts if f"{part}: {label}" in rows]
        shared = [name for name in each[0] if all(name in row for row in each)] if each else []
        found[label] = {name: fmean(row[name] for row in each) for name in shared}
    return found
