"""The report that a run leaves in its folder: `report.md`, and its curves as `report.png`.

It can be read in a terminal. `spear report` makes a page of the same records, with the values by
codebook and everything else that the run left.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spear.system.markdown import (
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    write_markdown,
)
from spear.training.logs.clock import format_duration
from spear.training.logs.metrics import read_jsonl
from spear.training.position import Position

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
    records = [_scalars(record) for record in read_jsonl(run_folder / "metrics.jsonl")]
    picture = run_folder / "report.png"
    facts = [
        ("steps", f"{position.step}"),
        ("epochs begun", f"{position.epoch + 1}"),
        ("audio seen", f"{position.audio_hours:.4g} h"),
        ("time", format_duration(elapsed_s)),
        ("skipped steps (non-finite)", f"{num_skipped}"),
        ("last checkpoint", f"`{checkpoint.relative_to(run_folder)}`"),
    ]
    blocks = [
        "# Training report",
        markdown_table(("", ""), facts),
        *_section("Validation", records, "valid/"),
        *_section("Training", records, "train/"),
    ]
    if _plot(records, picture):
        blocks += ["## Curves", embed_picture(picture, "loss and other values by step")]
    write_markdown(run_folder / "report.md", blocks)


def _scalars(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of metrics without its lists, which hold a value for each codebook."""
    return {tag: value for tag, value in record.items() if not isinstance(value, list)}


def _section(title: str, records: Sequence[dict[str, Any]], prefix: str) -> list[str]:
    """Returns a table of the values under a prefix: a row a step, evenly thinned."""
    rows = [record for record in records if any(tag.startswith(prefix) for tag in record)]
    if not rows:
        return []
    tags = sorted({tag for row in rows for tag in row if tag.startswith(prefix)})
    cells = [
        (str(row["step"]), *(f"{row[tag]:.4g}" if tag in row else "" for tag in tags))
        for row in _thin(rows)
    ]
    names = [tag.removeprefix(prefix) for tag in tags]
    return [f"## {title}", markdown_table(("step", *names), cells)]


def _thin(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns at most `_MAX_ROWS` rows at even distances, the first and the last among them."""
    if len(rows) <= _MAX_ROWS:
        return rows
    return [rows[i * (len(rows) - 1) // (_MAX_ROWS - 1)] for i in range(_MAX_ROWS)]


def _plot(records: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draws one panel for each value that training and validation share, losses first."""
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
    figure = new_figure(4.5 * num_columns, 3.0 * num_rows)
    if figure is None:
        return False
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
    save_figure(figure, path)
    return True
