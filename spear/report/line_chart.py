"""Curves as inline SVG: readable as it stands and on paper; a script adds values under the pointer.

Every line carries its points as numbers in a `data-points` attribute, and the picture its scales,
so `spear/report/script.py` can find the nearest step and smooth without drawing anything anew.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spear.report.drawing import (
    BASE,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    figure,
    grid,
    picture,
    place_x,
    place_y,
    text,
    x_label,
)
from spear.report.markup import Html, element, join
from spear.report.scales import Scale, short
from spear.report.series import Series


@dataclass(frozen=True)
class Line:
    """A curve with its name and its looks: "train", "valid", "reference"."""

    label: str
    series: Series
    look: str


@dataclass(frozen=True)
class Mark:
    """A step at which something happened: "restart" or "skip", and what to say about it."""

    step: float
    look: str
    text: str


def line_chart(
    title: str,
    lines: Sequence[Line],
    unit: str = "",
    *,
    is_log: bool = False,
    marks: Sequence[Mark] = (),
    x_name: str = "step",
) -> Html:
    """Returns a figure of curves, over steps if nothing else is said.

    Args:
        title: What is shown.
        lines: At least one.
        unit: Of the values, said beside the title.
        is_log: Whether losses should be on a logarithmic axis; only where all are above 0.
        marks: Steps to mark.
        x_name: What the curves are over.
    """
    thin = [Line(line.label, line.series.thinned(), line.look) for line in lines]
    x = Scale.around([step for line in thin for step in line.series.steps])
    x = Scale(min(step for line in thin for step in line.series.steps), x.high)
    y = Scale.around([v for line in thin for v in line.series.values], is_log, zero=True)
    axes = [
        *grid(y),
        *_steps(x, x_name),
        *(_mark(mark, x) for mark in marks if x.low <= mark.step <= x.high),
    ]
    drawing = picture(
        _describe(title, unit, x_name, thin),
        *axes,
        *(_draw(line, x, y) for line in thin),
        element("line", class_="cursor", y1=TOP, y2=BASE),
        data_name=x_name,
        data_x=json.dumps([x.low, x.high]),
        data_y=json.dumps([y.low, y.high, y.is_log]),
    )
    note = f"{unit}, log scale" if unit and y.is_log else "log scale" if y.is_log else unit
    return figure(title, note, drawing, [(line.label, line.look) for line in lines])


def _steps(x: Scale, name: str) -> list[Html]:
    """Returns the numbers below the picture."""
    ticks = [text(short(value), place_x(x, value), BASE + 15) for value in x.ticks()]
    axis = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=BASE, y2=BASE, class_="axis")
    return [axis, *ticks, x_label(name)]


def _draw(line: Line, x: Scale, y: Scale) -> Html:
    """Returns a curve; where a value is not finite it has a gap, and lone points are dots."""
    points = list(zip(line.series.steps, line.series.values, strict=True))
    runs: list[list[str]] = [[]]
    for step, value in points:
        if math.isfinite(value):
            runs[-1].append(f"{place_x(x, step)},{place_y(y, value)}")
        elif runs[-1]:
            runs.append([])
    numbers = [[_brief(step, 12), _brief(value, 5)] for step, value in points]
    path = element(
        "path",
        d=" ".join("M" + "L".join(run) for run in runs if run),
        class_=f"line {line.look}",
        data_label=line.label,
        data_points=json.dumps(numbers, separators=(",", ":")),
    )
    is_sparse = line.look == "valid" and len(points) <= 40
    dotted = [place for run in runs if run and (is_sparse or len(run) == 1) for place in run]
    return join([path, *(_dot(place, line.look) for place in dotted)])


def _brief(value: float, digits: int) -> float | None:
    """Returns a value as JSON says it shortest; what is not finite is nothing."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _dot(place: str, look: str) -> Html:
    across, down = place.split(",")
    return element("circle", cx=across, cy=down, r=2.6, class_=f"dot {look}")


def _mark(mark: Mark, x: Scale) -> Html:
    place = place_x(x, mark.step)
    base = BASE
    title = element("title", mark.text)
    if mark.look == "skip":
        corners = f"{place - 4},{base + 1} {place + 4},{base + 1} {place},{base - 8}"
        return element("polygon", title, points=corners, class_="skip")
    return element("g", title, element("path", d=f"M{place},{TOP}V{base}", class_="restart"))


def _describe(title: str, unit: str, x_name: str, lines: Sequence[Line]) -> str:
    """Returns the picture in words, for those who cannot see it: where each curve ends."""
    ends = [f"{line.label} ends at {line.series.values[-1]:.4g}" for line in lines]
    return f"{title}{f' in {unit}' if unit else ''} by {x_name}: {', '.join(ends)}"
