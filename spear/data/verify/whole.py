"""What only a shard folder as a whole shows.

Which shards are there, which cuts are in two of them, and whether the codebooks of all tokens
together say anything. Every function takes what the shards' findings hold of it and returns the
problems in words; none holds more than eight bytes of a cut.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spear.data.verify.findings import Count, hash_id
from spear.data.verify.shard import read_cuts

MIN_COUNTED_FRAMES = 1000
"""From how many frames on the entropy of a folder's tokens says something."""


def compare_shards(
    here: Collection[int], there: Collection[int]
) -> Iterator[tuple[int, Literal["here", "there"]]]:
    """Yields the shards that only one of two lists has, in order, and which one that is."""
    for shard in sorted(set(here) ^ set(there)):
        yield shard, "here" if shard in here else "there"


def find_doubled(folder: Path, hashes: Mapping[int, NDArray[np.uint64]]) -> Iterator[str]:
    """Yields a problem for each cut that was in an earlier shard already.

    Hashes tell which ids may be there twice; only the cuts of these shards are read again.

    Args:
        folder: The shard folder.
        hashes: (C,) `hash_id` of every cut, by shard.
    """
    values, counts = np.unique(np.concatenate(list(hashes.values())), return_counts=True)
    doubled = values[counts > 1]
    suspects, first = set(doubled.tolist()), dict[str, int]()
    for shard in sorted(hashes) if suspects else ():
        if not np.isin(hashes[shard], doubled).any():
            continue
        for cut in read_cuts(folder, shard, Count("read again")):
            if hash_id(cut.id) not in suspects:
                continue
            if cut.id in first:
                yield f"shard {shard:06d}: cut {cut.id!r} is in shard {first[cut.id]:06d} too"
            first.setdefault(cut.id, shard)


def check_usage(usage: NDArray[np.int64] | None, min_entropy: float) -> list[str]:
    """Returns which codebooks say next to nothing.

    Args:
        usage: (N, K) how often each token occurs, or None where there are none.
        min_entropy: Least entropy, as a share of that of as many frames on as many codes as can be.
    """
    if usage is None or (num_frames := int(usage[0].sum())) < MIN_COUNTED_FRAMES:
        return []
    shares = usage / num_frames
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    entropies = np.abs((shares * logs).sum(axis=1)) / np.log(min(usage.shape[1], num_frames))
    low = [
        f"{number} ({value:.2f})"
        for number, value in enumerate(entropies.tolist())
        if value < min_entropy
    ]
    return [f"entropy below {min_entropy:g} in codebook {', '.join(low)}"] if low else []
