"""The pictures of a quantiser's report: use of codes, work of codebooks, course of training.

All are legible for 1 to 64 codebooks of up to 4096 codes: codebooks are rows, and codes are sorted
by use, so that neighbouring ones can share a pixel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from spear.mvq.evaluation import Evaluation
from spear.system.markdown import new_figure, save_figure, whole_ticks

_MAX_COLUMNS = 512
_MAX_LABELLED = 16
# Usage is shown from an eighth of the uniform share to eight times as much.
_USAGE_TICKS = {-3: "1/8", -2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4", 3: "8"}
_COURSE = {
    "relative_error": "relative error",
    "least_entropy": "least entropy",
    "num_dead": "unused codes",
}


def draw_usage(path: Path, evaluation: Evaluation) -> bool:
    """Draws how evenly every codebook uses its codes; returns whether it could.

    On the left a row for each codebook, its codes sorted by use, coloured by the share of frames
    beside the uniform share; on the right the entropy as a bar, with the number of unused codes.
    """
    num_codebooks, codebook_size = evaluation.usage.shape
    figure = new_figure(9.0, _height(num_codebooks))
    if figure is None:
        return False
    from matplotlib import colormaps

    shares, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = shares.imshow(
        relative_usage(evaluation.usage),
        cmap=colormaps["coolwarm"].with_extremes(bad="black"),  # what is not finite: unused codes
        vmin=min(_USAGE_TICKS),
        vmax=max(_USAGE_TICKS),
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, float(codebook_size), num_codebooks - 0.5, -0.5),
    )
    shares.set(xlabel="code, most frequent first", ylabel="codebook", title="use of codes")
    whole_ticks(shares, "y")
    scale = figure.colorbar(image, ax=shares, ticks=list(_USAGE_TICKS))
    scale.ax.set_yticklabels(list(_USAGE_TICKS.values()))
    scale.set_label("times uniform (black: unused)")
    bars.barh(np.arange(num_codebooks), evaluation.entropies)
    for row, count in enumerate(evaluation.num_unused):
        if count:
            bars.text(0.02, row, f"{count} unused", va="center", fontsize="x-small", color="white")
    bars.set(xlim=(0, 1), xlabel="entropy / log K", title="evenness")
    bars.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
    return True


def draw_codebooks(path: Path, found: Mapping[str, Evaluation]) -> bool:
    """Draws the correlation of codebooks, and the error without each.

    Args:
        path: The PNG.
        found: Evaluations by the name of their frames; correlations are those of the last.

    Returns:
        Whether there is a picture: not without matplotlib, nor for a single codebook.
    """
    last = list(found.values())[-1]
    size = len(last.errors_without)
    figure = new_figure(10.0, min(max(4.0, _height(size)), 7.0)) if size > 1 else None
    if figure is None:
        return False
    matrix, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    others = np.where(np.eye(size, dtype=bool), np.nan, last.correlations.numpy())
    limit = max(0.2, float(np.nanmax(np.abs(others))))
    image = matrix.imshow(others, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    for (row, column), value in np.ndenumerate(others if size <= _MAX_LABELLED else others[:0]):
        if row != column:
            color = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{round(100 * value)}"
            matrix.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    matrix.set(xlabel="codebook", ylabel="codebook", title="correlation (numbers in %)")
    figure.colorbar(image, ax=matrix, location="bottom", shrink=0.8, aspect=30)
    width = 0.8 / len(found)
    for index, (name, part) in enumerate(found.items()):
        rows = np.arange(size) + (index - (len(found) - 1) / 2) * width
        bars.barh(rows, part.errors_without, width, label=name)
    bars.axvline(last.relative_error, color="black", linestyle=":", label="with all codebooks")
    bars.set(xlabel="relative error", ylabel="codebook", title="error without one codebook")
    bars.set_ylim(size - 0.5, -0.5)
    whole_ticks(matrix, "both")
    whole_ticks(bars, "y")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    save_figure(figure, path)
    return True


def draw_history(path: Path, history: Sequence[Mapping[str, float]]) -> bool:
    """Draws the course of training; returns whether it could.

    Args:
        path: The PNG.
        history: For every round `iteration`, `relative_error`, `least_entropy` and `num_dead`.
    """
    figure = new_figure(7.0, 0.8 + 1.6 * len(_COURSE)) if history else None
    if figure is None:
        return False
    panels = figure.subplots(len(_COURSE), 1, sharex=True)
    for axes, (key, label) in zip(panels, _COURSE.items(), strict=True):
        axes.plot([row["iteration"] for row in history], [row[key] for row in history], marker=".")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    whole_ticks(panels[-1], "x")
    panels[-1].set_xlabel("round of training")
    save_figure(figure, path)
    return True


def relative_usage(usage: Tensor) -> np.ndarray:
    """Base-2 logarithm of each code's use beside uniform use, sorted, most frequent first.

    Args:
        usage: (N, K) counts.

    Returns:
        (N, min(K, 512)) float64; a column stands for neighbouring codes by the least of them, so
        that unused ones, -inf, are not hidden.
    """
    counts = np.sort(usage.double().numpy(), axis=1)[:, ::-1]
    uniform = np.maximum(counts.mean(axis=1, keepdims=True), 1e-12)
    num_columns = min(counts.shape[1], _MAX_COLUMNS)
    last = np.arange(1, num_columns + 1) * counts.shape[1] // num_columns - 1
    with np.errstate(divide="ignore"):
        return np.log2(counts[:, last] / uniform)


def _height(num_codebooks: int) -> float:
    """Returns inches: a row is legible from about a tenth of an inch on."""
    return min(max(1.6 + 0.2 * num_codebooks, 2.8), 10.0)
