"""What all pictures of the page share: their size, their margins, and axes as SVG."""

from collections.abc import Sequence

from spear.report.markup import Html, element
from spear.report.scales import Scale, short

WIDTH, HEIGHT = 360, 220
"""Of a picture, in units that are about a pixel."""
LEFT, RIGHT, TOP = 46, 12, 8
"""Margins around the axes."""
BASE = HEIGHT - 34
"""Where the vertical axis begins."""


def figure(title: str, note: str, drawing: Html, legend: Sequence[tuple[str, str]] = ()) -> Html:
    """Returns a drawing below its title; `legend` holds labels and looks, shown where several."""
    keys = [
        element("span", element("i", class_=f"key {look}"), label, class_="entry")
        for label, look in legend
    ]
    caption = element(
        "figcaption",
        element("strong", title),
        element("span", note, class_="unit") if note else "",
        element("span", *keys, class_="legend") if len(keys) > 1 else "",
    )
    return element("figure", caption, drawing, class_="chart")


def place_x(x: Scale, step: float) -> float:
    """Returns where a step lies in the picture, to a tenth of a unit."""
    return round(LEFT + x.place(step) * (WIDTH - LEFT - RIGHT), 1)


def place_y(y: Scale, value: float) -> float:
    """Returns where a value lies in the picture, to a tenth of a unit."""
    return round(BASE - y.place(value) * (BASE - TOP), 1)


def grid(y: Scale) -> list[Html]:
    """Returns horizontal lines with their values."""
    parts = []
    for value in y.ticks():
        height = place_y(y, value)
        parts.append(
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="grid")
        )
        parts.append(text(short(value), LEFT - 6, height + 4, "end"))
    return parts


def text(words: str, x: float, y: float, anchor: str = "middle") -> Html:
    """Returns words at a place of a picture."""
    return element("text", words, x=round(x, 1), y=round(y, 1), text_anchor=anchor)


def x_label(words: str) -> Html:
    """Returns the name of the horizontal axis."""
    return text(words, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4)


def picture(description: str, *parts: Html, **attributes: str) -> Html:
    """Returns a drawing; the description is for those who cannot see it."""
    size = f"0 0 {WIDTH} {HEIGHT}"
    label = {"role": "img", "aria-label": description}
    return element("svg", *parts, viewBox=size, **label, **attributes)
