"""What the plan of an epoch needs to know of all clips: lengths, shards and weights, as columns.

Clips are numbered through all sources, shard by shard. At sixty million clips the table takes a
quarter of a gigabyte and may be memory-mapped; nothing in it is a Python object per clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ
from spear.errors import ConfigError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClipTable:
    """The clips of a run.

    Attributes:
        num_samples: (n,) uint32, samples of every clip at 16 kHz.
        first: (num_shards + 1,) ascending numbers of the shards' first clips, and n.
        source: (num_shards,) which source a shard belongs to.
        weights: (num_sources,) how often each clip of a source comes per epoch, on average.
        fingerprint: Text that differs where any of these differ; empty: unknown, so that plans
            are not kept on disk.
    """

    num_samples: NDArray[np.uint32]
    first: Ints
    source: Ints
    weights: NDArray[np.float64]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if len(self.weights) and self.weights.min() < 0:
            raise ConfigError(
                f"a source's weight is negative: {self.weights.min():g}; use 0 or more"
            )

    @classmethod
    def of(
        cls, *durations_s: Sequence[float], weights: Sequence[float] | None = None
    ) -> "ClipTable":
        """Makes a table of sources that are one shard each.

        Args:
            *durations_s: For every source, the seconds of its clips.
            weights: One for every source; None means 1.
        """
        counts = [len(one) for one in durations_s]
        seconds = np.concatenate([np.asarray(one, np.float64) for one in durations_s])
        return cls(
            num_samples=to_samples(seconds),
            first=np.concatenate([[0], np.cumsum(counts)]),
            source=np.arange(len(counts)),
            weights=np.asarray(weights if weights is not None else [1.0] * len(counts), np.float64),
        )

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.num_samples)

    @property
    def num_shards(self) -> int:
        """Number of shards of all sources."""
        return len(self.source)

    def durations_s(self, clips: NDArray[np.integer]) -> NDArray[np.float64]:
        """Returns the seconds of clips, of the shape of their numbers."""
        return self.num_samples[clips] / float(SAMPLE_RATE_HZ)


def to_samples(durations_s: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Returns seconds as samples at 16 kHz, the nearest number; up to 74 hours."""
    return np.rint(durations_s * SAMPLE_RATE_HZ).astype(np.uint32)
