"""Clips into batches: as many as fit, and as many batches as can be shared out."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spear.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def pack(durations: Floats, max_duration_s: float, growth_s: float = 0.0) -> Ints:
    """Cuts a sequence of clips into consecutive batches, each as large as fits.

    A batch of n clips costs n x (its longest clip + growth) seconds; a batch of one has no partner
    to be mixed with and does not grow. A single clip always fits.

    Args:
        durations: (n,) seconds, in the order in which clips are to be batched.
        max_duration_s: Most seconds of a batch, padding included.
        growth_s: Seconds that augmentation may add to the longest clip.

    Returns:
        (num_batches + 1,) positions where batches begin, and n at the end.
    """
    bounds = [0]
    window = 64
    while bounds[-1] < len(durations):
        ahead = durations[bounds[-1] : bounds[-1] + window]
        counts = np.arange(1, len(ahead) + 1)
        costs = (np.maximum.accumulate(ahead) + growth_s) * counts
        costs[0] -= growth_s
        num_fitting = int(np.searchsorted(costs, max_duration_s, side="right"))
        if num_fitting == len(ahead) and bounds[-1] + window < len(durations):
            window *= 2
            continue
        bounds.append(bounds[-1] + max(num_fitting, 1))
        window = max(64, 2 * num_fitting)
    return np.asarray(bounds, dtype=np.int64)


def pack_by_length(durations: Sequence[float], max_duration_s: float) -> list[list[int]]:
    """Groups clips of like length into batches, each as large as fits.

    Args:
        durations: Seconds of each clip.
        max_duration_s: Most seconds of a batch, padding included; a longer clip comes alone.

    Returns:
        Numbers of the clips, batch by batch. The longest come first, so that running out of memory
        shows at once.
    """
    seconds = np.asarray(durations, dtype=np.float64)
    order = np.argsort(-seconds, kind="stable")
    bounds = pack(seconds[order], max_duration_s)
    return [order[begin:end].tolist() for begin, end in itertools.pairwise(bounds)]


def even_out(bounds: Ints, num_shares: int) -> tuple[Ints, int]:
    """Halves the batches with most clips until their number is a multiple of `num_shares`.

    Only where every batch has one clip is that impossible: then the fewest are left out.

    Returns:
        The new bounds and the number of batches left out.

    Raises:
        DataError: There are fewer clips than shares.
    """
    while (len(bounds) - 1) % num_shares:
        sizes = np.diff(bounds)
        largest = int(sizes.argmax())
        if sizes[largest] == 1:
            break
        middle = bounds[largest] + sizes[largest] // 2
        bounds = np.insert(bounds, largest + 1, middle)
    num_left_out = (len(bounds) - 1) % num_shares
    if num_left_out == len(bounds) - 1:
        raise DataError(f"{len(bounds) - 1} clips cannot be shared by {num_shares} processes")
    return bounds[: len(bounds) - num_left_out], num_left_out
