"""Rows of figures by name: kept in a JSON file as they come, averaged, shown as a table."""

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
"""Measures in the table's order; those that no row has are left out."""

Rows = dict[str, dict[str, float]]
"""By what was measured, and measure."""


class Results:
    """Rows that are kept in a JSON file as they come: what is there is not measured again."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        """Read what an earlier command with the same options has left.

        Args:
            path: Of the JSON file.
            protocol: The options that the figures depend on.
        """
        self.path, self.protocol = path, protocol
        kept = read_json(path) or {}
        self.rows: Rows = kept["rows"] if kept.get("protocol") == protocol else {}

    def row(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The figures of a row, measured where they are not there."""
        if name not in self.rows:
            self.rows[name] = measure()
            self.write()
        return self.rows[name]

    def write(self, **more: Any) -> None:
        """Keep the rows, with more entries beside them."""
        write_json(self.path, {"protocol": self.protocol, "rows": self.rows, "published": PUBLISHED, **more})


def table_of(rows: Rows, title: str) -> Table:
    """A row for each thing measured, a column for each measure that any of them has."""
    names = [*SHOWN, *(name for row in rows.values() for name in row if name not in SHOWN)]
    columns = [name for name in dict.fromkeys(names) if any(name in row for row in rows.values())]
    table = Table("", *(SHOWN.get(name, name.replace("_", " ")) for name in columns), title=title)
    for label, row in rows.items():
        table.add_row(label, *(f"{row[name]:.4g}" if name in row else "" for name in columns))
    return table


def means(rows: Rows, labels: Sequence[str], parts: Sequence[str]) -> Rows:
    """Means over parts of rows that are named `part: label`, over the measures that all of a label's rows have."""
    found: Rows = {}
    for label in labels:
        each = [rows[f"{part}: {label}"] for part in parts if f"{part}: {label}" in rows]
        shared = [name for name in each[0] if all(name in row for row in each)] if each else []
        found[label] = {name: fmean(row[name] for row in each) for name in shared}
    return found
