"""What `spear verify` says of a folder: a table, a list of problems, a picture.

`write_report` writes `verify.md` and `verify.png` beside the shards.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spear.data.verify.findings import Count, Findings
from spear.data.verify.shard import MAX_FRAME_DIFFERENCE
from spear.system.markdown import (
    embed_picture,
    markdown_table,
    name_axes,
    new_figure,
    save_figure,
    write_markdown,
)

MAX_LISTED = 10_000
"""Problems in `verify.md`; more are counted."""


def make_table(findings: Findings) -> str:
    """Returns what a folder holds as a Markdown table."""
    rows = [
        (
            count.name,
            str(count.num_shards),
            f"{count.num_cuts:,}",
            f"{findings.duration_s / 3600:.3f}" if count is findings.counts[0] else "",
            f"{count.num_frames:,}" if count.num_frames else "",
            str(count.num_problems),
        )
        for count in findings.counts
    ]
    header = ("part", "shards", "cuts", "hours", "frames", "problems")
    return markdown_table(header, rows, "lrrrrr")


def write_report(folder: Path, findings: Findings, table: str) -> None:
    """Writes `verify.md` and its picture into the folder."""
    lines = [f"- {folder}: {problem}" for problem in findings.problems[:MAX_LISTED]]
    if findings.num_problems > len(lines):
        lines.append(f"- and {findings.num_problems - len(lines):,} more")
    found = "\n".join(lines) or "No problems."
    blocks = [f"# Verification of {folder}", table, found]
    picture = folder / "verify.png"
    if _draw_differences(picture, findings.counts):
        blocks.append(embed_picture(picture, "frames of each token array against its duration"))
    write_markdown(folder / "verify.md", blocks)


def _draw_differences(path: Path, counts: Sequence[Count]) -> bool:
    """Draws, for every teacher, how far the frames of token arrays are from duration x rate.

    Half a frame to either side is rounding; a teacher that pads or drops edges stands beside that,
    and arrays of another rate or other cuts lie outside the dotted lines, which are problems.
    """
    counts = [count for count in counts if count.differences]
    figure = new_figure(7.0, 0.8 + 1.9 * len(counts)) if counts else None
    if figure is None:
        return False
    edge = 2 * MAX_FRAME_DIFFERENCE
    for number, count in enumerate(counts, start=1):
        axes = figure.add_subplot(len(counts), 1, number)
        frames = np.clip(np.array(list(count.differences)) / 10, -edge, edge)
        bins = np.arange(-edge - 0.05, edge + 0.1, 0.1)
        axes.hist(frames, bins=bins.tolist(), weights=list(count.differences.values()))
        for limit in (-MAX_FRAME_DIFFERENCE, MAX_FRAME_DIFFERENCE):
            axes.axvline(limit, color="black", linestyle=":")
        axes.set(xlim=(bins[0], bins[-1]), yscale="log", ylim=(0.5, None))
        axes.set(ylabel="token arrays")
        name_axes(axes, count.name)
        axes.tick_params(labelbottom=number == len(counts))
    axes.set_xlabel(f"frames minus duration x rate (beyond {edge}: drawn there)")
    save_figure(figure, path)
    return True
