"""The pictures of a quantiser's report: use of codes, work of codebooks, course of training.

All are legible for 1 to 64 codebooks of up to 4096 codes: codebooks are rows, and codes are sorted
by use, so that neighbouring ones can share a pixel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spear.mvq.evaluation import Evaluation
from spear.system.markdown import new_figure, save_figure, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, float]]

_MAX_COLUMNS = 512
_MAX_LABELLED = 16
# Usage is shown from an eighth of the uniform share to eight times as much.
_USAGE_OCTAVES = 3.0
_COLORS = ("tab:gray", "tab:blue")


def draw_usage(path: Path, evaluation: Evaluation) -> bool:
    """Draws how evenly every codebook uses its codes; returns whether it could.

    On the left a row for each codebook, its codes sorted by use, coloured by the share of frames
    beside the uniform share; on the right the entropy as a bar, with the number of unused codes.
    """
    num_codebooks, codebook_size = evaluation.usage.shape
    figure = new_figure(9.0, _height(num_codebooks))
    if figure is None:
        return False
    shares, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    octaves = relative_usage(evaluation.usage)
    image = shares.imshow(
        np.where(np.isinf(octaves), octaves, octaves.clip(min=-_USAGE_OCTAVES)),
        cmap=_with_black_below("coolwarm"),
        vmin=-_USAGE_OCTAVES,
        vmax=_USAGE_OCTAVES,
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, float(codebook_size), num_codebooks - 0.5, -0.5),
    )
    shares.set(xlabel="code, most frequent first", ylabel="codebook", title="use of codes")
    whole_ticks(shares, "y")
    ticks = [-3, -2, -1, 0, 1, 2, 3]
    aspect = 5 * _height(num_codebooks)  # as wide in a tall picture as in a low one
    scale = figure.colorbar(image, ax=shares, ticks=ticks, extend="min", aspect=aspect)
    scale.ax.set_yticklabels(["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    scale.set_label("times uniform (black: unused)")
    _draw_entropies(bars, evaluation)
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
    num_codebooks = len(last.errors_without)
    height = min(max(4.0, _height(num_codebooks)), 7.0)
    figure = new_figure(10.0, height) if num_codebooks > 1 else None
    if figure is None:
        return False
    matrix, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_correlations(matrix, last.correlations.numpy())
    width = 0.8 / len(found)
    for index, (name, part) in enumerate(found.items()):
        rows = np.arange(num_codebooks) + (index - (len(found) - 1) / 2) * width
        bars.barh(rows, part.errors_without, width, color=_COLORS[-len(found) :][index], label=name)
    bars.axvline(last.relative_error, color="black", linestyle=":", label="with all codebooks")
    bars.set(xlabel="relative error", ylabel="codebook", title="error without one codebook")
    bars.set_ylim(num_codebooks - 0.5, -0.5)
    whole_ticks(bars, "y")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    save_figure(figure, path)
    return True


def draw_history(path: Path, history: History) -> bool:
    """Draws the course of training; returns whether it could.

    Args:
        path: The PNG.
        history: For every round `iteration`, `relative_error`, `least_entropy` and `num_dead`;
            panels of what is missing are left out.
    """
    names = {
        "relative_error": "relative error",
        "least_entropy": "least entropy",
        "num_dead": "unused codes",
    }
    shown = {key: label for key, label in names.items() if all(key in row for row in history)}
    figure = new_figure(7.0, 0.8 + 1.6 * len(shown)) if history and shown else None
    if figure is None:
        return False
    rounds = [row.get("iteration", index) for index, row in enumerate(history)]
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(panels, shown.items(), strict=True):
        axes.plot(rounds, [row[key] for row in history], marker=".")
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


def _draw_entropies(axes: "Axes", evaluation: Evaluation) -> None:
    rows = np.arange(len(evaluation.entropies))
    axes.barh(rows, evaluation.entropies, color=_COLORS[-1])
    for row, count in enumerate(evaluation.num_unused):
        if count:
            axes.text(0.02, row, f"{count} unused", va="center", fontsize="x-small", color="white")
    axes.set(xlim=(0, 1), xlabel="entropy / log K", title="evenness")
    axes.grid(axis="x", alpha=0.3)


def _draw_correlations(axes: "Axes", correlations: np.ndarray) -> None:
    size = len(correlations)
    others = np.where(np.eye(size, dtype=bool), np.nan, correlations)
    limit = max(0.2, float(np.nanmax(np.abs(others))))
    axes.set_facecolor("lightgray")
    image = axes.imshow(others, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    if size <= _MAX_LABELLED:
        for row, column in zip(*np.nonzero(~np.eye(size, dtype=bool)), strict=True):
            value = others[row, column]
            color = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{round(100 * value)}"
            axes.text(column, row, text, ha="center", va="center", fontsize="x-small", color=color)
    axes.set(xlabel="codebook", ylabel="codebook", title="correlation (numbers in %)")
    if size > _MAX_LABELLED:
        axes.set_title("correlation")
    whole_ticks(axes, "both")
    axes.figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30)


def _with_black_below(name: str) -> object:
    """Returns the colour map, with black for what is far below its range: unused codes."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(under="black", bad="black")


def _height(num_codebooks: int) -> float:
    """Returns inches: a row is legible from about a tenth of an inch on."""
    return min(max(1.6 + 0.2 * num_codebooks, 2.8), 10.0)
