"""Line plots as SVG that stands in a page by itself: no script, no font, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
"""Margins around the axes."""
COLOURS = ("#3b6fd6", "#d9622b", "#2a9d6f", "#a34fbf", "#c79a12", "#7a7f8c", "#d64577", "#4aa3c7")
FEW = 30
"""Points up to which each is also drawn as a dot."""


def line_plot(
    series: Mapping[str, Points], *, label: str, logarithmic: bool = False, marks: Mapping[str, float] | None = None
) -> str:
    """Draw series over the training step.

    Args:
        series: Points (step, value) by name; those without points are left out.
        label: What the values are, with their unit.
        logarithmic: Whether the value axis is; values of 0 and less are left out then.
        marks: Steps at which something happened, by what it was.

    Returns:
        An `<svg>` element, or an empty text where there is nothing to draw.
    """
    shown = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not logarithmic)]
        for name, points in series.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    steps = [x for points in shown.values() for x, _ in points] + list((marks or {}).values())
    values = [math.log10(y) if logarithmic else y for points in shown.values() for _, y in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in ticks(low, high):
        text = f"{10**tick:.2g}" if logarithmic else f"{tick:.3g}"
        parts.append(f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    parts.extend(
        f'<text x="{across(tick):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{tick:.0f}</text>'
        for tick in ticks(first, last)
    )
    for name, step in (marks or {}).items():
        left = across(step) < WIDTH / 2
        parts.append(f'<path class="mark" d="M{across(step):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{across(step) + (4 if left else -4):.1f}" y="{TOP + 10}"'
            f' text-anchor="{"start" if left else "end"}">{escape(name)}</text>'
        )
    for number, (_, points) in enumerate(shown.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across(x), down(math.log10(y) if logarithmic else y)) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line" stroke="{colour}" d="M{path}"/>')
        if len(places) <= FEW:
            parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
    parts.append("</svg>")
    names = [
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(shown)
    ]
    return "".join(parts) + f'<p class="legend">{"".join(names)}<small>{escape(label)}, by training step</small></p>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two others, at most so many and at least two where there are."""
    raw = (high - low) / most
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
