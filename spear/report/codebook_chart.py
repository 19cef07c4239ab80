"""Values by codebook: bars for the last step, and all steps as a heat map."""

import math
from collections.abc import Mapping, Sequence

from spear.report.drawing import (
    BASE,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    figure,
    grid,
    picture,
    place_y,
    text,
    x_label,
)
from spear.report.markup import Html, element
from spear.report.scales import Scale, short

_SPAN = WIDTH - LEFT - RIGHT
_MAX_COLUMNS = 40


def bar_chart(
    title: str,
    groups: Mapping[str, Sequence[float]],
    unit: str = "",
    reference: tuple[str, Sequence[float]] | None = None,
) -> Html:
    """Returns bars side by side for every codebook.

    Args:
        title: What is shown.
        groups: Values (N,) by look, which is their label, too: "train", "valid".
        unit: Of the values.
        reference: Label and values (N,) to compare with, drawn as short lines across the bars.
    """
    shown = [*groups.values(), *([reference[1]] if reference else [])]
    num_codebooks = max(map(len, shown))
    y = Scale.around([value for values in shown for value in values], zero=True)
    slot = _SPAN / num_codebooks
    width = 0.8 * slot / len(groups)
    parts = [*grid(y), *_numbers(num_codebooks, slot), x_label("codebook")]
    for number, (look, values) in enumerate(groups.items()):
        first = LEFT + 0.1 * slot + number * width
        parts += [
            _bar(look, i, value, y, left=first + i * slot, width=width)
            for i, value in _finite(values)
        ]
    legend = [(look, look) for look in groups]
    if reference:
        label, values = reference
        legend.append((label, "reference"))
        parts += [_level(label, i, value, slot, y) for i, value in _finite(values)]
    return figure(title, unit, picture(f"{title} by codebook", *parts), legend)


def heat_map(title: str, by_step: Mapping[float, Sequence[float]], unit: str = "") -> Html:
    """Returns codebooks (rows) over steps (columns); the stronger the colour, the higher the value.

    Args:
        title: What is shown.
        by_step: Values (N,) by step; at most 40 steps at even distances are shown.
        unit: Of the values.
    """
    steps = _spread(sorted(by_step))
    values = [value for step in steps for _, value in _finite(by_step[step])]
    colours = Scale.around(values)
    num_codebooks = max(len(by_step[step]) for step in steps)
    column, row = _SPAN / len(steps), (BASE - TOP) / num_codebooks
    parts = []
    for across, step in enumerate(steps):
        for codebook, value in _finite(by_step[step]):
            place = (LEFT + across * column, TOP + codebook * row)
            strength = round(0.06 + 0.94 * colours.place(value), 3)
            # A little over the edge, or light would shine through between cells.
            box = _box(*place, column + 0.2, row + 0.2, class_="cell", fill_opacity=strength)
            words = element("title", f"step {step:g}, codebook {codebook}: {value:.4g}")
            parts.append(element("g", words, box))
    for codebook in range(0, num_codebooks, 1 + num_codebooks // 10):
        parts.append(text(str(codebook), LEFT - 6, TOP + (codebook + 0.5) * row + 4, "end"))
    for index in sorted({0, len(steps) // 2, len(steps) - 1}):
        parts.append(text(short(steps[index]), LEFT + (index + 0.5) * column, BASE + 15))
    parts.append(x_label("step"))
    span = f"{min(values):.3g} (faint) to {max(values):.3g} (strong)" if values else "no values"
    note = f"{unit}, {span}" if unit else span
    return figure(title, note, picture(f"{title} by codebook and step", *parts))


def _numbers(num_codebooks: int, slot: float) -> list[Html]:
    every = 1 + num_codebooks // 17
    return [
        text(str(codebook), LEFT + (codebook + 0.5) * slot, BASE + 15)
        for codebook in range(0, num_codebooks, every)
    ]


def _bar(look: str, codebook: int, value: float, y: Scale, *, left: float, width: float) -> Html:
    top, base = place_y(y, value), place_y(y, max(0.0, y.low))
    box = _box(left, min(top, base), width, abs(base - top), class_=f"bar {look}")
    return element("g", element("title", f"{look}, codebook {codebook}: {value:.4g}"), box)


def _level(label: str, codebook: int, value: float, slot: float, y: Scale) -> Html:
    path = f"M{LEFT + codebook * slot:.1f},{place_y(y, value)}h{slot:.1f}"
    title = element("title", f"{label}, codebook {codebook}: {value:.4g}")
    return element("g", title, element("path", d=path, class_="line reference"))


def _box(left: float, top: float, width: float, height: float, **attributes: object) -> Html:
    place = {"x": round(left, 1), "y": round(top, 1)}
    size = {"width": round(width, 1), "height": round(height, 1)}
    return element("rect", **place, **size, **attributes)


def _finite(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(i, value) for i, value in enumerate(values) if math.isfinite(value)]


def _spread(steps: list[float]) -> list[float]:
    if len(steps) <= _MAX_COLUMNS:
        return steps
    return [steps[i * (len(steps) - 1) // (_MAX_COLUMNS - 1)] for i in range(_MAX_COLUMNS)]
