"""Class-balanced sampling with quotas: how often the clips of each class come in an epoch.

Half of AudioSet's classes have a thousandth of the clips of the largest. Every class gets a quota
of draws per epoch; its clips share them evenly, and a clip of several classes is drawn for each of
them. Written down as a `ClipTable` in which every class is a source whose weight is quota / clips,
this is the same `BatchPlan` as everywhere: the order stays a pure function of (seed, epoch, step),
each clip comes floor or ceil of its expected number of times, and a resume is a seek.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spear.data.index.clip_table import ClipTable
from spear.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class BalanceConfig:
    """How classes share an epoch."""

    strength: float = 0.0
    """0: every clip once, whatever its classes; 1: every class is drawn equally often; between,
    a class of n clips is drawn as n to the power of 1 - strength."""
    epoch_clips: int = 0
    """Draws of an epoch; 0: as many as there are clips."""
    max_repeats: float = 20.0
    """Most times that a clip comes in an epoch for one class; what a rare class cannot use goes to
    the others."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not 0.0 <= self.strength <= 1.0:
            raise ConfigError(f"balance.strength {self.strength} is not in 0 .. 1")
        if self.epoch_clips < 0:
            raise ConfigError(f"balance.epoch_clips is {self.epoch_clips}, below 0")
        if not self.max_repeats > 0:
            raise ConfigError(f"balance.max_repeats is {self.max_repeats}: it must be above 0")


@dataclass(frozen=True)
class ClassMembers:
    """Which clips have which class.

    Attributes:
        first: (n + 1,) where the classes of each clip begin in `classes`.
        classes: (first[n],) class numbers, clip after clip.
        num_classes: C.
    """

    first: Ints
    classes: Ints
    num_classes: int

    @property
    def counts(self) -> Ints:
        """(C,) clips of each class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    def groups(self) -> list[Ints]:
        """Returns the clips of each class, ascending, and last those that have none."""
        owners = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        by_class = owners[np.argsort(self.classes, kind="stable")]
        ends = np.cumsum(self.counts)
        return [*np.split(by_class, ends)[:-1], np.flatnonzero(np.diff(self.first) == 0)]


def quotas(counts: Ints, total: float, config: BalanceConfig) -> Floats:
    """Shares the draws of an epoch out over classes.

    Args:
        counts: (C,) clips of each class.
        total: Draws to share out.
        config: Strength and limit.

    Returns:
        (C,) draws of each class; their sum is `total`, or less where every class is at its limit.
    """
    limits = counts * config.max_repeats
    wanted = np.where(counts > 0, np.maximum(counts, 1.0) ** (1.0 - config.strength), 0.0)
    found = np.zeros(len(counts))
    is_open = counts > 0
    while is_open.any():
        left = total - found[~is_open].sum()
        found[is_open] = left * wanted[is_open] / wanted[is_open].sum()
        is_over = is_open & (found > limits)
        if not is_over.any():
            break
        found[is_over] = limits[is_over]
        is_open &= ~is_over
    return found


def balanced_table(
    num_samples: NDArray[np.uint32], members: ClassMembers, config: BalanceConfig
) -> tuple[ClipTable, Ints]:
    """Makes the table of which `BatchPlan` draws.

    Args:
        num_samples: (n,) samples of each clip.
        members: Their classes.
        config: How classes share an epoch.

    Returns:
        The table, and (m,) the clip that each of its rows stands for; a clip of several classes has
        a row for each.
    """
    total = float(config.epoch_clips or len(num_samples))
    groups = [np.arange(len(num_samples))]
    weights = np.array([total / len(num_samples)])
    if config.strength > 0:
        groups = [group for group in members.groups() if len(group)]
        counts = np.array([len(group) for group in groups])
        weights = quotas(counts, total, config) / counts
    rows = np.concatenate(groups)
    table = ClipTable(
        num_samples=num_samples[rows],
        first=np.cumsum([0, *map(len, groups)]),
        source=np.arange(len(groups)),
        weights=weights,
    )
    return table, rows
