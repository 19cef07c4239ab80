"""The report of an evaluation: mAP, and every class with what it is mistaken for."""

from pathlib import Path

import numpy as np

from spear.system.markdown import (
    code,
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    write_markdown,
)
from spear.tagging.metrics import TaggingScores

_MAX_NAMED = 40
"""Classes up to which the picture names every point."""


def write_report(folder: Path, scores: TaggingScores, weights: str) -> None:
    """Writes `report.md` and, where matplotlib is installed, `report.png`.

    Args:
        folder: The folder of the evaluation.
        scores: What it found.
        weights: Which weights were used, as the configuration says it.
    """
    accuracy = "" if scores.accuracy is None else f"{100 * scores.accuracy:.2f}"
    header = ("clips", "classes", "mAP %", "mean ROC area", "accuracy %")
    row = (
        f"{scores.num_clips:,}",
        f"{len(scores.classes):,}",
        f"{100 * scores.mean_average_precision:.2f}",
        f"{scores.mean_roc_area:.4f}",
        accuracy,
    )
    blocks = [
        "# Tagging",
        f"Weights: {weights}. Accuracy is that of the most probable class, where every clip has "
        "exactly one.",
        markdown_table(header, [row], "rrrrr"),
    ]
    picture = folder / "report.png"
    if _draw(picture, scores):
        blocks.append(embed_picture(picture, "average precision by the number of clips"))
    blocks += ["## Classes", class_table(scores)]
    write_markdown(folder / "report.md", blocks)


def class_table(scores: TaggingScores) -> str:
    """Returns the Markdown table of all classes, the best first, those without clips last.

    "chance" is the average precision that random scores would have.
    """
    order = np.argsort(-np.nan_to_num(scores.average_precision, nan=-1.0), kind="stable")
    rows = [
        (
            code(scores.classes.names[number]),
            f"{scores.counts[number]:,}",
            _percent(scores.average_precision[number]),
            _percent(scores.counts[number] / scores.num_clips),
            "" if np.isnan(scores.roc_area[number]) else f"{scores.roc_area[number]:.4f}",
        )
        for number in order
    ]
    header = ("class", "clips", "average precision %", "chance %", "ROC area")
    return markdown_table(header, rows, "lrrrr")


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.2f}"


def _draw(path: Path, scores: TaggingScores) -> bool:
    """Draws average precision against the number of clips; returns whether it could."""
    figure = new_figure(7.0, 4.5)
    if figure is None:
        return False
    shown = np.flatnonzero(scores.counts)
    axes = figure.add_subplot()
    axes.scatter(scores.counts[shown], 100 * scores.average_precision[shown], s=14)
    axes.axhline(100 * scores.mean_average_precision, color="tab:gray", linewidth=1)
    if len(shown) <= _MAX_NAMED:
        for number in shown:
            place = (scores.counts[number], 100 * scores.average_precision[number])
            name = scores.classes.names[number]
            axes.annotate(name, place, fontsize="small", parse_math=False)
    axes.set(xscale="log", xlabel="clips of the class", ylabel="average precision (%)")
    axes.set_ylim(0.0, 103.0)
    save_figure(figure, path)
    return True
