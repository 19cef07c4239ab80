"""The report that a run leaves in its folder: `report.md`, and its curves as `report.png`.

It can be read in a terminal. `spear report` makes a page of the same curves, with the values by
codebook and everything else that the run left.
"""

from collections.abc import Mapping
from pathlib import Path

from spear.system.markdown import (
    embed_picture,
    markdown_table,
    name_axes,
    new_figure,
    save_figure,
    write_markdown,
)
from spear.training.logs.clock import format_duration
from spear.training.logs.curves import Curve, evenly, read_curves
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
    curves = read_curves(run_folder)
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
        *_section("Validation", curves, "valid/"),
        *_section("Training", curves, "train/"),
    ]
    if _plot(curves, picture):
        blocks += ["## Curves", embed_picture(picture, "loss and other values by step")]
    write_markdown(run_folder / "report.md", blocks)


def _section(title: str, curves: Mapping[str, Curve], prefix: str) -> list[str]:
    """Returns a table of the values under a prefix: at most so many steps, at even distances."""
    found = {
        tag.removeprefix(prefix): curves[tag] for tag in sorted(curves) if tag.startswith(prefix)
    }
    steps = evenly(sorted({step for curve in found.values() for step in curve}), _MAX_ROWS)
    rows = [
        (f"{step:.0f}", *(f"{c[step]:.4g}" if step in c else "" for c in found.values()))
        for step in steps
    ]
    return [f"## {title}", markdown_table(("step", *found), rows)] if rows else []


def _plot(curves: Mapping[str, Curve], path: Path) -> bool:
    """Draws one panel for each value that training and validation share, losses first."""
    found = {tag.partition("/")[2] for tag in curves if tag.startswith(("train/", "valid/"))}
    names = sorted(found, key=lambda name: ("loss" not in name, name))
    num_columns = min(3, len(names))
    num_rows = -(-len(names) // 3)
    figure = new_figure(4.5 * num_columns, 3.0 * num_rows) if names else None
    if figure is None:
        return False
    for index, name in enumerate(names):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        for part, marker in (("train", "."), ("valid", "o")):
            curve = curves.get(f"{part}/{name}")
            if curve:
                axes.plot(list(curve), list(curve.values()), marker=marker, label=part)
        name_axes(axes, name)
        axes.set_xlabel("step")
        axes.legend()
    save_figure(figure, path)
    return True
