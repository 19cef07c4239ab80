"""What the reports of all stages share: Markdown blocks and tables, and pictures.

A report is a Markdown file and, where matplotlib is installed, a PNG. The picture is written first,
so that a report whose Markdown is there is whole. The same content gives the same bytes, and a file
that would not change is left alone: running a finished stage again touches nothing.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import numpy as np

from spear.errors import MissingPackageError
from spear.system.files import atomic_path
from spear.system.optional import require
from spear.system.progress import get_logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_logger = get_logger(__name__)
_DPI = 120
_NUM_BINS = 40
_LONG_TAIL = 20.0  # largest value over the median, above which linear bins would be one bar


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Returns a Markdown table.

    Args:
        header: Names of the columns; empty ones for a table of facts.
        rows: The cells; a bar or a line break in one does not break the table.
        align: A letter for each column, "r" for right; columns without a letter are on the left.
    """
    marks = ["---:" if side == "r" else "---" for side in align.ljust(len(header), "l")]
    lines = [header, marks, *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())


def code(text: str) -> str:
    """Returns text that Markdown shows as it is, such as an id or a transcript; empty stays so."""
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}" if text.strip() else ""


def write_markdown(path: Path, blocks: Iterable[str]) -> None:
    """Writes blocks (headings, paragraphs, tables) with blank lines between; skips empty ones."""
    text = "\n\n".join(block for block in blocks if block) + "\n"
    _write_if_changed(path, text.encode("utf-8"))


def replace_end(path: Path, title: str, blocks: Iterable[str]) -> None:
    """Puts blocks below a title (`## ...`) at the end of a report, in the place of an earlier end.

    Args:
        path: The report; it need not be there.
        title: Where the end begins; all from it on is replaced.
        blocks: As for `write_markdown`.
    """
    text = path.read_text("utf-8") if path.is_file() else ""
    write_markdown(path, [text.partition(title)[0].strip(), title, *blocks])


def embed_picture(path: Path, caption: str) -> str:
    """Returns the Markdown that shows a picture which lies beside the report."""
    return f"![{caption}]({quote(path.name)})"


def new_figure(width_in: float, height_in: float) -> "Figure | None":
    """Returns an empty figure, outside pyplot's global state.

    Args:
        width_in: Inches.
        height_in: Inches.

    Returns:
        None where matplotlib is missing, after one log line that says how to install it.
    """
    try:
        figures = require("matplotlib.figure", "the picture of a report")
    except MissingPackageError as error:
        _logger.info("report without a picture: %s", error)
        return None
    figure: Figure = figures.Figure(figsize=(width_in, height_in), layout="constrained")
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png")
    _write_if_changed(path, stream.getvalue())


def draw_histograms(
    path: Path, groups: Mapping[str, np.ndarray], x_label: str, y_label: str
) -> bool:
    """Draws one histogram for each group, below each other over the same bins.

    Args:
        path: The PNG.
        groups: Values (n,) by title; groups without values are left out.
        x_label: What the values are, with their unit.
        y_label: What is counted.

    Returns:
        Whether there is a picture: not without matplotlib, nor without values.
    """
    groups = {title: values for title, values in groups.items() if len(values)}
    figure = new_figure(7.0, 0.8 + 1.9 * len(groups)) if groups else None
    if figure is None:
        return False
    bins, scale = _bins(np.concatenate(list(groups.values())))
    for number, (title, values) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(len(groups), 1, number)
        axes.hist(values, bins=bins.tolist())
        axes.set(xscale=scale, xlim=(bins[0], bins[-1]), ylabel=y_label)
        whole_ticks(axes, "y")
        name_axes(axes, title)
        axes.tick_params(labelbottom=number == len(groups))
    axes.set_xlabel(x_label)
    save_figure(figure, path)
    return True


def name_axes(axes: "Axes", title: str) -> None:
    """Sets a title that a user may have chosen: a dollar sign in it begins no formula."""
    axes.set_title(title, parse_math=False)


def whole_ticks(axes: "Axes", axis: Literal["x", "y", "both"]) -> None:
    """Puts the ticks of a linear axis of counts or numbers at whole numbers."""
    axes.locator_params(axis=axis, integer=True, min_n_ticks=1)


def _bins(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns the edges of equal bins, and the scale of the axis on which they look equal."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > _LONG_TAIL * float(np.median(values)):
        return np.geomspace(low, high, _NUM_BINS + 1), "log"
    if high - low < 1e-3 * max(abs(low), abs(high), 1.0):  # all the same: one bar in the middle
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _NUM_BINS + 1), "linear"


def _write_if_changed(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_path(path) as partial:
        partial.write_bytes(content)
