"""The order in which an epoch visits shards, cut into windows that are read together.

A source of weight 2 has every shard twice in an epoch, one of weight 0.3 has three tenths of the
clips of each shard. The pieces of every source are shuffled and then spread evenly over the epoch,
so that each window holds the sources in the proportions of the whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spear.data.index.clip_table import ClipTable
from spear.system.rng import generator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread most evenly for any number of them."""
_AT_ONCE = 1 << 22


class Piece(NamedTuple):
    """One visit of a shard."""

    shard: int
    """Which one."""
    copy: int
    """How often it was visited in this epoch before."""


class Counts(NamedTuple):
    """What limits of length leave of the clips whose source has a weight."""

    usable: Ints
    """(num_shards,) clips within the limits; 0 where the weight is."""
    num_too_short: int
    """Clips below the limits, whatever their weight."""
    num_too_long: int
    """Clips above them."""
    longest: int
    """Samples of the longest usable clip; 0 without any."""


def count_clips(clips: ClipTable, low: int, high: int) -> Counts:
    """Counts the clips of `low` samples or more and below `high`."""
    usable = np.zeros(clips.num_shards, np.int64)
    num_too_short = num_too_long = longest = 0
    for part in _parts(clips):
        lengths = clips.num_samples[clips.first[part[0]] : clips.first[part[-1] + 1]]
        fits = (lengths >= low) & (lengths < high)
        num_too_short += int((lengths < low).sum())
        num_too_long += int((lengths >= high).sum())
        sums = np.concatenate([[0], np.cumsum(fits)])
        starts = clips.first[part[0] : part[-1] + 2] - clips.first[part[0]]
        has_weight = clips.weights[clips.source[part]] > 0
        usable[part] = np.diff(sums[starts]) * has_weight
        weighted = fits & np.repeat(has_weight, np.diff(starts))
        longest = max(longest, int(lengths.max(initial=0, where=weighted)))
    return Counts(usable, num_too_short, num_too_long, longest)


def windows(
    clips: ClipTable, usable: Ints, seed: int, epoch: int, window_clips: int
) -> Iterator[list[Piece]]:
    """Yields the pieces of each window of an epoch, in order.

    Args:
        clips: The clips.
        usable: (num_shards,) clips of each shard that can be used.
        seed: The run's seed.
        epoch: Which epoch.
        window_clips: Clips of a window, about; windows are of about equal size.
    """
    pieces, sizes = _pieces(clips, usable, seed, epoch)
    ends = np.cumsum(sizes)
    num_windows = max(1, round(ends[-1] / window_clips))
    # A piece belongs to the window in which its middle lies.
    window = ((ends - sizes / 2) / ends[-1] * num_windows).astype(np.int64)
    for number in range(num_windows):
        yield [pieces[i] for i in np.flatnonzero(window == number)]


def pick(
    clips: ClipTable, pieces: list[Piece], limits: tuple[int, ...], seed: int, epoch: int
) -> Ints:
    """Returns the clips of pieces that are within the limits and whose turn it is.

    Args:
        clips: The clips.
        pieces: Visits of shards.
        limits: Least samples of a clip, and the samples that it must be below.
        seed: The run's seed.
        epoch: Which epoch.
    """
    if not pieces:
        return np.zeros(0, np.int64)
    numbers = [np.arange(clips.first[one.shard], clips.first[one.shard + 1]) for one in pieces]
    chosen = np.concatenate(numbers)
    lengths = clips.num_samples[chosen]
    keep = (lengths >= limits[0]) & (lengths < limits[1])
    shards = np.array([one.shard for one in pieces])
    weights = clips.weights[clips.source[shards]]
    if (weights != 1.0).any():
        counts = [len(one) for one in numbers]
        copies = np.repeat([one.copy for one in pieces], counts)
        keep &= copies < repeats(chosen, np.repeat(weights, counts), seed, epoch)
    return chosen[keep]


def repeats(numbers: Ints, weights: Floats, seed: int, epoch: int) -> Ints:
    """Returns how often clips come in an epoch, whole numbers around their weights.

    Clip i comes floor((e + 1) w + u_i) - floor(e w + u_i) times: after any number E of epochs it
    came floor or ceil of E w times, and with the u_i spread evenly every epoch is of nearly the
    same size (systematic sampling). u_i is the fractional part of i times the golden ratio.

    Args:
        numbers: (n,) clip numbers.
        weights: (n,) times per epoch.
        seed: The run's seed.
        epoch: Which epoch.
    """
    offsets = (numbers * GOLDEN + generator(seed, "repeats").random()) % 1.0
    before = np.floor(epoch * weights + offsets)
    after = np.floor((epoch + 1) * weights + offsets)
    return (after - before).astype(np.int64)


def _pieces(
    clips: ClipTable, usable: Ints, seed: int, epoch: int
) -> tuple[list[Piece], NDArray[np.float64]]:
    """Returns an epoch's pieces in their order, and the clips expected of each."""
    keys: list[Floats] = []
    pieces: list[Piece] = []
    sizes: list[Floats] = []
    for source, weight in enumerate(clips.weights.tolist()):
        shards = np.flatnonzero((clips.source == source) & (usable > 0))
        num_copies = int(np.ceil(weight))
        if not len(shards) or not num_copies:
            continue
        rng = generator(seed, "shards", epoch, source)
        visits = [
            Piece(int(shard), copy)
            for copy in range(num_copies)
            for shard in rng.permutation(shards)
        ]
        # The k-th visit falls somewhere into the k-th of equal stretches of the epoch.
        keys.append((np.arange(len(visits)) + rng.random(len(visits))) / len(visits))
        sizes.append(usable[[one.shard for one in visits]] * (weight / num_copies))
        pieces += visits
    order = np.argsort(np.concatenate(keys), kind="stable")
    return [pieces[i] for i in order], np.concatenate(sizes)[order]


def _parts(clips: ClipTable) -> Iterator[Ints]:
    """Yields neighbouring shards of some million clips."""
    shards = np.arange(clips.num_shards)
    parts = clips.first[:-1] // _AT_ONCE
    for part in np.split(shards, np.flatnonzero(np.diff(parts)) + 1):
        if len(part):
            yield part
