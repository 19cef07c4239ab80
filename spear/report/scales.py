"""Axes: from values to places on the paper, and the round numbers that are written beside them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A range of values along an axis.

    Attributes:
        low: Value at the beginning.
        high: Value at the end, above `low`.
        is_log: Whether equal ratios, not equal differences, are equally far apart.
    """

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], is_log: bool = False, zero: bool = False) -> "Scale":
        """Returns a scale on which all finite values have room.

        Args:
            values: What will be shown; where all are the same, or none is finite, there is still
                room around.
            is_log: Ignored unless all values are above 0.
            zero: Whether a linear axis of values of one sign begins at 0.
        """
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if is_log and low > 0:
            margin = (high / low) ** 0.04 if high > low else 1.2
            return cls(low / margin, high * margin, is_log=True)
        margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        beside_zero = zero and low >= 0
        return cls(0.0 if beside_zero else low - margin, high + margin)

    def place(self, value: float) -> float:
        """Returns where a value lies: 0 at `low`, 1 at `high`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        """Returns round values within the range, some `about` of them."""
        if self.is_log and self.high / self.low > 8.0:
            return self._log_ticks(about)
        step = _round_up((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _log_ticks(self, about: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1.0, 2.0, 5.0) if last - first <= about / 2 else (1.0,)
        every = max(1, round((last - first) / about))
        found = [f * 10.0**power for power in range(first, last + 1, every) for f in factors]
        return [value for value in found if self.low <= value <= self.high]


def short(value: float) -> str:
    """Returns a number in few characters: 400k, 1.5M, 0.045, 2e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and (size > 1e3 or abs(value) >= 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in _ROUND if factor * power >= step * (1 - 1e-9))
