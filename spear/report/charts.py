"""What the charts of the page show; how that looks is up to `templates/charts.js`, in the browser:
plotly's figures, colours for light and dark, smoothing, runs that are hidden.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from spear.training.logs.curves import Curve, Lists, evenly

MAX_POINTS = 600
"""Points of a curve on the page: the lowest and the highest of each of 300 stretches."""
_MAX_COLUMNS = 100  # of a heat map


@dataclass
class Chart:
    """A chart.

    Attributes:
        title: What is shown.
        unit: Of the values.
        kind: "lines", "bars" or "heat".
        x_name: What values are over.
        is_log: Whether the axis should be logarithmic; only where all values are above 0.
        traces: Each with its `role` ("train", "valid", or "reference", what others are compared
            with), `label`, `run` (number, where several are laid over each other), `x` (steps or
            codebooks) and `y` (values; of a heat map, a row of them for each codebook). A trace
            without a label has the chart's title.
        group: Title that it stands below.
        newest: Of values by codebook: all of validation, or of training alone, by run.
    """

    title: str
    unit: str = ""
    kind: str = "lines"
    x_name: str = "step"
    is_log: bool = False
    traces: list[dict[str, Any]] = field(default_factory=list)
    group: str = ""
    newest: dict[int | None, Lists] = field(default_factory=dict)

    @property
    def figure(self) -> dict[str, Any]:
        """What the browser has to know."""
        names = {"title": self.title, "kind": self.kind, "x": self.x_name, "log": self.is_log}
        return {**names, "traces": self.traces}

    @property
    def is_zero(self) -> bool:
        """Whether there is nothing to see: every value is 0."""
        return all(value == 0 for trace in self.traces for value in trace["y"])

    def add(self, role: str, label: str, run: int | None, x: Iterable[float], y: list[Any]) -> None:
        """Adds a trace."""
        names = {"role": role, "label": label, "run": run}
        self.traces.append({**names, "x": list(map(_brief, x)), "y": list(map(_brief, y))})

    def add_curve(self, role: str, label: str, run: int | None, curve: Curve) -> None:
        """Adds a curve, thinned."""
        points = thinned(curve)
        self.add(role, label, run, points, list(points.values()))

    def add_last(self, role: str, label: str, run: int | None, by_step: Lists) -> None:
        """Adds the last values by codebook; training comes before validation."""
        last = by_step[max(by_step)]
        self.add(role, label, run, range(len(last)), last)
        self.newest[run] = by_step

    def heat_maps(self, names: Sequence[str]) -> "Iterator[Chart]":
        """Yields values by codebook and step, of at most 100 steps, for each run by its name."""
        for run, by_step in self.newest.items():
            steps = evenly(sorted(by_step), _MAX_COLUMNS)
            if len(steps) > 1:
                title = f"{self.title} over steps{'' if run is None else f', {names[run]}'}"
                chart = Chart(title, self.unit, "heat", "codebook and step")
                rows = zip_longest(*(by_step[step] for step in steps), fillvalue=math.nan)
                chart.add("valid", "", run, steps, list(map(list, rows)))
                yield chart


def thinned(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """Returns the shape of a curve in at most so many points, and its gaps.

    Each stretch of steps keeps its lowest and its highest value in their order, so no peak is
    lost; a stretch with a value that is not finite keeps one of these as well. The first and the
    last point stay.
    """
    steps = list(curve)
    if len(steps) <= max_points:
        return curve
    num_stretches = max(1, (max_points - 2) // 2)
    kept = {steps[0], steps[-1]}
    for number in range(num_stretches):
        begin, end = (1 + n * (len(steps) - 2) // num_stretches for n in (number, number + 1))
        finite = [step for step in steps[begin:end] if math.isfinite(curve[step])]
        kept.update([step for step in steps[begin:end] if not math.isfinite(curve[step])][:1])
        kept.update(extreme(finite, key=curve.__getitem__) for extreme in (min, max) if finite)
    return {step: curve[step] for step in sorted(kept)}


def _brief(value: Any) -> Any:
    """Returns numbers to five digits, as JSON says them shortest; NaN and infinities are none."""
    if isinstance(value, list):
        return [_brief(one) for one in value]
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.5g}")
