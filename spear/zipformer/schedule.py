"""Numbers that change in the course of training, and the coin tosses that use them.

A `ScheduledFloat` is a piecewise linear function of a count (of batches, or of seconds of audio in
units of 600 s) with a current value. `set_schedule` moves every one below a module. The value is a
pure function of the count: a run that resumes at the same count continues with the same values, and
nothing of it is in the state dict.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

TRAINED = 1e9
"""A count at which every schedule is at its end."""


class ScheduledFloat:
    """A float that follows straight lines between given points; outside them it is constant.

    Args:
        *points: (count, value) pairs with increasing counts.
        default: The value before `set_schedule` is called for the first time. Like icefall's, the
            defaults of the modules here skip and drop nothing, so that a model which is used
            without any schedule is not regularised by accident.

    Attributes:
        value: The current value.
    """

    def __init__(self, *points: tuple[float, float], default: float = 0.0) -> None:
        self.points = [(float(count), float(value)) for count, value in points]
        self._counts = [count for count, _ in self.points]
        assert points and all(a < b for a, b in pairwise(self._counts)), points
        self.value = float(default)

    def at(self, count: float) -> float:
        """Returns the value at a count."""
        index = bisect_right(self._counts, count)
        if index == 0:
            return self.points[0][1]
        if index == len(self.points):
            return self.points[-1][1]
        (begin, from_value), (end, to_value) = self.points[index - 1 : index + 1]
        return from_value + (to_value - from_value) * (count - begin) / (end - begin)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"ScheduledFloat({', '.join(map(str, self.points))}; now {self.value:g})"


FloatLike = float | ScheduledFloat


def scheduled_floats(module: nn.Module) -> Iterator[ScheduledFloat]:
    """Yields every scheduled float below `module`; one that is shared comes once per owner."""
    for child in module.modules():
        for attribute in vars(child).values():
            if isinstance(attribute, ScheduledFloat):
                yield attribute


def set_schedule(module: nn.Module, count: float) -> None:
    """Moves every scheduled float below `module` to position `count`.

    Args:
        module: A Zipformer, or anything that contains one.
        count: Position in training, 0 at its start; the method counts batches of 600 s of audio
            (batch seconds x ranks / 600).
    """
    for scheduled in scheduled_floats(module):
        scheduled.value = scheduled.at(count)


def chance(probability: float) -> bool:
    """Tosses a coin with torch's CPU generator: part of the run's seed, no wait for a GPU."""
    if probability <= 0.0:
        return False
    return probability >= 1.0 or torch.rand(()).item() < probability
