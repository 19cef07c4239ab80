"""The report that a run leaves in its folder: `report.md`, and its curves as `report.png`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spear.errors import MissingPackageError
from spear.files import atomic_path, write_text
from spear.optional import require
from spear.progress import get_logger
from spear.training.clock import format_duration
from spear.training.metrics import read_jsonl
from spear.training.position import Position

_logger = get_logger(__name__)
_MAX_ROWS = 12


def write_report(
    run_folder: Path, position: Position, elapsed_s: float, num_skipped: int, checkpoint: Path
) -> None:
    """Writes `report.md` and, where matplotlib is installed, `report.png`.

    Args:
        run_folder: The run; its `metrics.jsonl` holds all curves.
        position: Where the run ended.
        elapsed_s: Seconds that it took, over all restarts.
        num_skipped: Steps that were skipped for non-finite numbers.
        checkpoint: The last checkpoint.
    """
    records = list(read_jsonl(run_folder / "metrics.jsonl"))
    has_plot = _plot(records, run_folder / "report.png")
    lines = [
        "# Training report",
        "",
        "| | |",
        "| --- | --- |",
        f"| steps | {position.step} |",
        f"| epochs begun | {position.epoch + 1} |",
        f"| audio seen | {position.audio_hours:.4g} h |",
        f"| time | {format_duration(elapsed_s)} |",
        f"| skipped steps (non-finite) | {num_skipped} |",
        f"| last checkpoint | `{checkpoint.relative_to(run_folder)}` |",
        "",
        *_section("Validation", records, "valid/"),
        *_section("Training", records, "train/"),
    ]
    if has_plot:
        lines += ["## Curves", "", "![loss and other values by step](report.png)", ""]
    write_text(run_folder / "report.md", "\n".join(lines))


def _section(title: str, records: Sequence[dict[str, Any]], prefix: str) -> list[str]:
    """Returns a table of the values under a prefix: a row a step, evenly thinned."""
    rows = [record for record in records if any(tag.startswith(prefix) for tag in record)]
    if not rows:
        return []
    tags = sorted({tag for row in rows for tag in row if tag.startswith(prefix)})
    names = [tag.removeprefix(prefix) for tag in tags]
    lines = [f"## {title}", "", f"| step | {' | '.join(names)} |", "| --- " * (len(tags) + 1) + "|"]
    for row in _thin(rows):
        cells = [f"{row[tag]:.4g}" if tag in row else "" for tag in tags]
        lines.append(f"| {row['step']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _thin(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns at most `_MAX_ROWS` rows at even distances, the first and the last among them."""
    if len(rows) <= _MAX_ROWS:
        return rows
    return [rows[i * (len(rows) - 1) // (_MAX_ROWS - 1)] for i in range(_MAX_ROWS)]


def _plot(records: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draws one panel for each value that training and validation share, losses first."""
    try:
        figures = require("matplotlib.figure", "drawing the report's curves")
    except MissingPackageError as error:
        _logger.info("%s; the report has no curves", error)
        return False
    found = {
        tag.split("/", 1)[1]
        for record in records
        for tag in record
        if tag.startswith(("train/", "valid/"))
    }
    names = sorted(found, key=lambda name: ("loss" not in name, name))
    if not names:
        return False
    num_columns = min(3, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = figures.Figure(figsize=(4.5 * num_columns, 3.0 * num_rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        for part in ("train", "valid"):
            points = [(r["step"], r[f"{part}/{name}"]) for r in records if f"{part}/{name}" in r]
            if points:
                marker = "." if part == "train" else "o"
                axes.plot(*zip(*points, strict=True), marker=marker, label=part)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
    return True
