"""What `spear verify` says of a folder: a table, a list of problems, a picture.

`FolderReport` gathers the findings of the shards and adds what only the folder as a whole shows;
the rest writes `verify.md` and `verify.png` beside the shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spear.data.verify.findings import Count, ShardFindings
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


@dataclass
class FolderReport:
    """What was found in one shard folder."""

    path: Path
    """The folder."""
    counts: list[Count] = field(default_factory=lambda: [Count("audio")])
    """One for the audio and one for each teacher."""
    duration_s: float = 0.0
    """Seconds of audio."""

    def count(self, name: str) -> Count:
        """Returns the count of one part, a new one where there is none of the name."""
        known = [one for one in self.counts if one.name == name]
        if not known:
            known = [Count(name)]
            self.counts += known
        return known[0]

    def absorb(self, findings: ShardFindings) -> None:
        """Adds what was found in one shard."""
        self.duration_s += findings.duration_s
        for part in findings.counts:
            self.count(part.name).absorb(part)

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each, with folder, shard and cut."""
        return [f"{self.path}: {problem}" for count in self.counts for problem in count.problems]

    @property
    def num_problems(self) -> int:
        """How much is wrong; more than `problems` where there is very much."""
        return sum(count.num_problems for count in self.counts)

    @property
    def tokens_are_bad(self) -> bool:
        """Whether a problem is one of tokens."""
        return any(count.num_problems for count in self.counts[1:])


def make_table(report: FolderReport) -> str:
    """Returns what a folder holds as a Markdown table."""
    rows = [
        (
            count.name,
            str(count.num_shards),
            f"{count.num_cuts:,}",
            f"{report.duration_s / 3600:.3f}" if count is report.counts[0] else "",
            f"{count.num_frames:,}" if count.num_frames else "",
            str(count.num_problems),
        )
        for count in report.counts
    ]
    header = ("part", "shards", "cuts", "hours", "frames", "problems")
    return markdown_table(header, rows, "lrrrrr")


def write_report(report: FolderReport, table: str) -> None:
    """Writes `verify.md` and its picture into the folder."""
    lines = [f"- {problem}" for problem in report.problems[:MAX_LISTED]]
    if report.num_problems > len(lines):
        lines.append(f"- and {report.num_problems - len(lines):,} more")
    found = "\n".join(lines) or "No problems."
    blocks = [f"# Verification of {report.path}", table, found]
    picture = report.path / "verify.png"
    if _draw_differences(picture, report.counts):
        blocks.append(embed_picture(picture, "frames of each token array against its duration"))
    write_markdown(report.path / "verify.md", blocks)


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
