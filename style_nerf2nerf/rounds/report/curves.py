"""Losses and measures by training step, kept in the run folder for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

CURVES_FILE = "curves.jsonl"
POINTS = 400
"""Steps that are written down in a run, about."""


class Curves:
    """Writes a line of numbers every few steps; what a resumed run does again replaces what was there."""

    def __init__(self, run_dir: Path, total_steps: int) -> None:
        """Nothing is written yet.

        Args:
            run_dir: The run folder.
            total_steps: Of the run, which decides how many steps are between two lines.
        """
        self.path = run_dir / CURVES_FILE
        self._every = max(1, total_steps // POINTS)

    def add(self, step: int, losses: Mapping[str, Tensor], metrics: Mapping[str, Tensor | float]) -> None:
        """Write down what a step gave, if it is its turn.

        Args:
            step: The training step.
            losses: Weighted losses by name.
            metrics: Further measures by name.
        """
        if step % self._every:
            return
        values = {**losses, **metrics}
        numbers = {
            name: round(float(value.detach() if isinstance(value, Tensor) else value), 6)
            for name, value in values.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def read_curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The values by step of every loss and measure of a run; empty where none were written down.

    Where a step was made twice, by a run that was interrupted, the later one counts and what came after it is left out.
    A last line that a killed run did not finish is left out, too.
    """
    path, rows = run_dir / CURVES_FILE, []
    for line in path.read_text("utf8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                curves.setdefault(name, []).append((row["step"], value))
    return curves
