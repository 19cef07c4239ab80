"""The pictures of `spear view`: a recording as an encoder sees it, over one axis of time.

Log-mel energies; the similarity of every frame with every other; every layer's first principal
components as colours; the teachers' tokens that the model predicts. Each is drawn into axes that
are given, so that it can stand alone or beside the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from spear.audio.fbank import HIGH_HZ, LOW_HZ
from spear.hub.token_heads import PredictedTokens
from spear.system.markdown import name_axes, new_figure
from spear.view.numbers import LayerColours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpecBase
    from matplotlib.image import AxesImage

_DB_PER_NEPER = 10 / np.log(10.0)
_RANGE_DB = 80.0
_TICKS_HZ = (200, 500, 1000, 2000, 4000, 7000)
# Steps of hue, saturation and value: the golden ratio's and two of its kin, whose multiples never
# come near each other.
_STEPS = np.array((0.618034, 0.819173, 0.671044))
_LAYER_IN, _CODEBOOK_IN = 0.21, 0.13
_SHADES = ("0.25", "0.5", "0.75")


@dataclass(frozen=True)
class Grid:
    """Where frames lie in time.

    Attributes:
        first_s: Centre of the first, in seconds of the recording.
        step_s: Seconds from one to the next.
    """

    first_s: float
    step_s: float

    def edges(self, num_frames: int) -> tuple[float, float]:
        """Returns the beginning of the first and the end of the last frame, in seconds."""
        begin = self.first_s - self.step_s / 2
        return begin, begin + num_frames * self.step_s


@dataclass(frozen=True)
class View:
    """What there is to draw of a recording.

    Attributes:
        title: What stands above the pictures.
        begin_s: Where the drawn part begins in the recording.
        end_s: Where it ends.
        log_mel: (T, M) float32, natural logarithm of energies.
        log_mel_grid: Their frames.
        similarity: (T', T') float32 in [-1, 1].
        similarity_grid: Its frames.
        layers: Colours of every layer from the front end, (T, 3).
        layer_grid: Their frames.
        rates_hz: Frames per second that each layer computes.
        tokens: Predictions by teacher; empty where the model has no heads.
        codebook_sizes: Entries of each teacher's codebooks.
        output_grid: The frames of the encoder's output, which tokens are predicted for.
    """

    title: str
    begin_s: float
    end_s: float
    log_mel: Tensor
    log_mel_grid: Grid
    similarity: Tensor
    similarity_grid: Grid
    layers: Sequence[LayerColours]
    layer_grid: Grid
    rates_hz: Sequence[float]
    tokens: Mapping[str, PredictedTokens]
    codebook_sizes: Mapping[str, int]
    output_grid: Grid


Panel = tuple[float, Callable[["Axes", View], None]]
"""Height in inches, and what draws it."""


def draw_everything(view: View) -> "Figure":
    """Draws all panels over one axis of time, and the similarity beside them."""
    panels = [_log_mel_panel(), _layers_panel(view), *_token_panels(view)]
    figure = _figure(16.0, sum(height for height, _ in panels) + 0.45 * len(panels) + 0.8)
    figure.suptitle(view.title, parse_math=False, fontsize="x-large")
    grid = figure.add_gridspec(1, 2, width_ratios=(6, 5))
    heights = [height for height, _ in panels]
    left = grid[0, 0].subgridspec(len(panels), 1, height_ratios=heights)
    _stack(figure, left, panels, view)
    draw_similarity(figure.add_subplot(grid[0, 1]), view)
    return figure


def draw_log_mel_alone(view: View) -> "Figure":
    """Draws the log-mel energies."""
    return _draw_panels([_log_mel_panel()], view)


def draw_layers_alone(view: View) -> "Figure":
    """Draws the layers."""
    return _draw_panels([_layers_panel(view)], view)


def draw_tokens_alone(view: View) -> "Figure":
    """Draws the tokens of every teacher."""
    return _draw_panels(_token_panels(view), view)


def draw_similarity_alone(view: View) -> "Figure":
    """Draws the similarity of frames."""
    figure = _figure(7.0, 6.2)
    draw_similarity(figure.add_subplot(), view)
    return figure


def draw_log_mel(axes: "Axes", view: View) -> None:
    """Draws energies in dB below the loudest, over time and frequency."""
    decibels = _DB_PER_NEPER * (view.log_mel - view.log_mel.max()).T.numpy()
    image = _over_time(axes, decibels, view.log_mel_grid, cmap="magma", vmin=-_RANGE_DB, vmax=0.0)
    axes.invert_yaxis()
    positions = mel_positions(np.array(_TICKS_HZ), view.log_mel.shape[1])
    axes.set_yticks(positions, [_short_hz(hz) for hz in _TICKS_HZ])
    axes.set(ylabel="Hz", title="log-mel energies")
    _colour_bar(axes, image, "dB", (-_RANGE_DB, -_RANGE_DB / 2, 0))


def draw_similarity(axes: "Axes", view: View) -> None:
    """Draws the cosine of every frame with every other, their mean taken away."""
    begin, end = view.similarity_grid.edges(len(view.similarity))
    image = axes.imshow(
        view.similarity.numpy(),
        cmap="RdBu_r",
        vmin=-1.0,
        vmax=1.0,
        extent=(begin, end, end, begin),
    )
    axes.set(xlabel="time (s)", ylabel="time (s)", title="similarity of the output's frames")
    axes.set(xlim=(view.begin_s, view.end_s), ylim=(view.end_s, view.begin_s))
    _colour_bar(axes, image, "cosine, mean removed", (-1, 0, 1))


def draw_layers(axes: "Axes", view: View) -> None:
    """Draws three principal components of every layer as red, green and blue."""
    colours = np.stack([layer.colours.numpy() for layer in view.layers])
    _over_time(axes, colours, view.layer_grid)
    names = ["front end", *map(str, range(1, len(view.layers)))]
    axes.set_yticks(
        range(len(names)),
        [f"{name}, {rate:g} Hz" for name, rate in zip(names, view.rates_hz, strict=True)],
    )
    axes.tick_params(axis="y", labelsize="small", length=0)
    axes.set(ylabel="layer", title="layers: three principal components as colours")
    for row in np.flatnonzero(np.diff(view.rates_hz)):
        axes.axhline(row + 0.5, color="white", linewidth=1.5)
    shares = 100 * np.stack([layer.explained.numpy() for layer in view.layers])
    bars = _beside(axes, "variance (%)")
    for left, share, shade in zip(
        np.cumsum(shares, 1).T - shares.T, shares.T, _SHADES, strict=True
    ):
        bars.barh(range(len(shares)), share, left=left, color=shade, height=0.8)
    bars.set_xlim(0, 100)
    _label_ends(bars, (0, 100), ("0", "100"))


def draw_tokens(axes: "Axes", view: View, teacher: str) -> None:
    """Draws the predicted tokens of a teacher as colours, paler where the model is less sure."""
    predicted, size = view.tokens[teacher], view.codebook_sizes[teacher]
    probabilities = predicted.probabilities.T.numpy()
    paint = token_colours(size)[predicted.tokens.T.numpy().astype(np.int64)]
    depth = confidence(probabilities, size)[..., None]
    _over_time(axes, 1.0 - depth * (1.0 - paint), view.output_grid, interpolation="nearest")
    axes.set_yticks(range(0, len(paint), 4))
    axes.set_ylabel("codebook")
    name_axes(axes, f"predicted tokens of {teacher}, pale where unsure")
    bars = _beside(axes, "probability")
    bars.barh(range(len(paint)), probabilities.mean(axis=1), color=_SHADES[1], height=0.8)
    bars.set(xscale="log", xlim=(1 / size, 1))
    _label_ends(bars, (1 / size, 1), (f"1/{size}", "1"))


def confidence(probabilities: np.ndarray, codebook_size: int) -> np.ndarray:
    """Puts probabilities on a scale from 0, that of a guess, to 1, certainty, in equal ratios."""
    return np.clip(1.0 + np.log(probabilities) / np.log(codebook_size), 0.0, 1.0)


def mel_positions(frequencies_hz: np.ndarray, num_mel_bins: int) -> np.ndarray:
    """Returns where frequencies lie among the mel bins, whose centres are whole numbers."""

    def mel(hz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hz / 700.0)

    low, high = mel(np.array(LOW_HZ)), mel(np.array(HIGH_HZ))
    return (mel(frequencies_hz) - low) / (high - low) * (num_mel_bins + 1) - 1


def token_colours(codebook_size: int) -> np.ndarray:
    """Returns (K, 3) float64 colours, all different, those of neighbouring numbers far apart."""
    from matplotlib.colors import hsv_to_rgb

    hue, saturation, value = (np.arange(codebook_size) * _STEPS[:, None]) % 1.0
    hsv = (hue, 0.5 + 0.5 * saturation, 0.45 + 0.5 * value)
    return np.asarray(hsv_to_rgb(np.stack(hsv, axis=1)))


def _log_mel_panel() -> Panel:
    return 2.0, draw_log_mel


def _layers_panel(view: View) -> Panel:
    return max(1.2, _LAYER_IN * len(view.layers)), draw_layers


def _token_panels(view: View) -> list[Panel]:
    return [
        (max(0.8, _CODEBOOK_IN * predicted.tokens.shape[1]), partial(draw_tokens, teacher=teacher))
        for teacher, predicted in view.tokens.items()
    ]


def _draw_panels(panels: Sequence[Panel], view: View) -> "Figure":
    heights = [height for height, _ in panels]
    figure = _figure(10.0, sum(heights) + 0.6 * len(panels) + 0.3)
    _stack(figure, figure.add_gridspec(len(panels), 1, height_ratios=heights), panels, view)
    return figure


def _stack(figure: "Figure", grid: "GridSpecBase", panels: Sequence[Panel], view: View) -> None:
    """Draws panels below each other, with the same axis of time."""
    for row, (_, draw) in enumerate(panels):
        axes = figure.add_subplot(grid[row, 0])
        draw(axes, view)
        axes.set_xlim(view.begin_s, view.end_s)
        if row == len(panels) - 1:
            axes.set_xlabel("time (s)")
        else:
            axes.tick_params(labelbottom=False)


def _over_time(axes: "Axes", rows: np.ndarray, grid: Grid, **colours: Any) -> "AxesImage":
    """Draws values (R, T) or colours (R, T, 3), a row of pixels for each R, the first on top."""
    extent = (*grid.edges(rows.shape[1]), len(rows) - 0.5, -0.5)
    return axes.imshow(rows, extent=extent, aspect="auto", **colours)


def _colour_bar(axes: "Axes", image: "AxesImage", label: str, ticks: Sequence[float]) -> None:
    place = axes.inset_axes((1.03, 0.0, 0.015, 1.0))
    axes.figure.colorbar(image, cax=place, ticks=ticks).set_label(label)


def _beside(axes: "Axes", title: str) -> "Axes":
    """Returns axes on the right whose rows are those of an image."""
    bars = axes.inset_axes((1.03, 0.0, 0.12, 1.0), sharey=axes)
    bars.tick_params(labelleft=False, left=False, labelsize="small")
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title(title, fontsize="small")
    return bars


def _label_ends(axes: "Axes", places: Sequence[float], labels: Sequence[str]) -> None:
    """Labels both ends of an axis inwards, away from the axis of time on the left."""
    axes.set_xticks(places, labels)
    axes.minorticks_off()
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _short_hz(hz: int) -> str:
    return f"{hz // 1000}k" if hz >= 1000 else str(hz)


def _figure(width_in: float, height_in: float) -> "Figure":
    figure = new_figure(width_in, height_in)
    assert figure is not None, "the command makes sure of matplotlib"
    return figure
