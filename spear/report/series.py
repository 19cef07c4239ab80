"""The curves of a run: `metrics.jsonl` as one series a tag, thinned to what a screen can show."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

MAX_POINTS = 600
"""Points of a curve on the page: the lowest and the highest of each of 300 stretches."""
_TAG = re.compile(r"^(?:(?P<part>[^/]*)/)?(?P<name>.*?)(?:\((?P<unit>[^()]*)\))?$", re.DOTALL)


@dataclass(frozen=True)
class Tag:
    """The parts of a metric's tag: `memory/max_reserved(GiB)`."""

    part: str
    """What it is about, e.g. "memory"; "train" and "valid" are the same value on different data."""
    name: str
    """What is measured, e.g. "max_reserved"."""
    unit: str
    """In what, e.g. "GiB"; empty for pure numbers."""

    @classmethod
    def parse(cls, tag: str) -> "Tag":
        """Takes a tag apart; every text is a tag."""
        found = _TAG.match(tag)
        assert found is not None  # the pattern takes any text
        return cls(found["part"] or "", found["name"], found["unit"] or "")


@dataclass
class Series:
    """One value over the steps of a run."""

    steps: list[float] = field(default_factory=list)
    """Steps, ascending."""
    values: list[float] = field(default_factory=list)
    """A value for each step; NaN and infinities are kept."""

    def thinned(self, max_points: int = MAX_POINTS) -> "Series":
        """Returns the shape of the curve in at most so many points (and its gaps).

        Each stretch of steps keeps its lowest and its highest value in their order, so no peak is
        lost; a stretch with a value that is not finite keeps one of these as well. The first and
        the last point stay.
        """
        count = len(self.steps)
        if count <= max_points:
            return self
        num_stretches = max(1, (max_points - 2) // 2)
        kept = {0, count - 1}
        for stretch in range(num_stretches):
            begin = 1 + stretch * (count - 2) // num_stretches
            end = 1 + (stretch + 1) * (count - 2) // num_stretches
            kept |= _extremes(self.values, range(begin, end))
        order = sorted(kept)
        return Series([self.steps[i] for i in order], [self.values[i] for i in order])


def collect(
    records: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Series], dict[str, dict[float, list[float]]]]:
    """Turns lines of metrics into curves.

    Args:
        records: Objects with a `step`; a value is a number, or a list of numbers by codebook.

    Returns:
        Numbers by tag, and lists by tag and step. What is neither is passed over, as are lines
        without a step and the facts of a line (`epoch`, `elapsed_s`), whose names have no "/".
    """
    numbers: dict[str, Series] = {}
    lists: dict[str, dict[float, list[float]]] = {}
    for record in records:
        step = record.get("step")
        if not is_number(step):
            continue
        for tag, value in record.items():
            if "/" not in tag:
                continue
            if is_number(value):
                series = numbers.setdefault(tag, Series())
                series.steps.append(float(step))
                series.values.append(float(value))
            elif isinstance(value, list) and value and all(map(is_number, value)):
                lists.setdefault(tag, {})[float(step)] = [float(one) for one in value]
    return numbers, lists


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from JSON is a number, be it NaN; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _extremes(values: Sequence[float], stretch: range) -> set[int]:
    """Returns where the lowest and the highest value are, and the first that is not finite."""
    finite = [i for i in stretch if math.isfinite(values[i])]
    gap = next((i for i in stretch if not math.isfinite(values[i])), None)
    kept = {gap} if gap is not None else set()
    if finite:
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return kept
