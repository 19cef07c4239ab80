"""What only a shard folder as a whole shows.

Which shards are there, which cuts are in two of them, and whether the codebooks of all tokens
together say anything. Every function takes what the shards' findings hold of it and returns the
problems in words; none holds more than eight bytes of a cut.
"""

import math
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spear.mvq.usage import entropies

MIN_COUNTED_FRAMES = 1000
"""From how many frames on the entropy of a folder's tokens says something."""


def compare_shards(
    here: Collection[int], there: Collection[int]
) -> Iterator[tuple[int, Literal["here", "there"]]]:
    """Yields the shards that only one of two lists has, in order, and which one that is."""
    for shard in sorted(set(here) ^ set(there)):
        yield shard, "here" if shard in here else "there"


def check_usage(usage: NDArray[np.int64] | None, min_entropy: float) -> list[str]:
    """Returns which codebooks say next to nothing.

    Args:
        usage: (N, K) how often each token occurs, or None where there are none.
        min_entropy: Least entropy, as a share of that of as many frames on as many codes as can be.
    """
    if usage is None or (num_frames := int(usage[0].sum())) < MIN_COUNTED_FRAMES:
        return []
    shares = entropies(torch.from_numpy(usage)) / math.log(min(usage.shape[1], num_frames))
    low = [
        f"{number} ({value:.2f})"
        for number, value in enumerate(shares.tolist())
        if value < min_entropy
    ]
    return [f"entropy below {min_entropy:g} in codebook {', '.join(low)}"] if low else []
