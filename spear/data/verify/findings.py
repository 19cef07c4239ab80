"""What verification found: counts and problems of a part, and of one shard.

`Count` is added up over shards; `ShardFindings` can be written down as JSON and read again, so
that what one process or job found is put together with the findings of others.
"""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_KEPT = 1000
"""Problems of one part of one shard that are kept in words; all are counted."""


@dataclass
class Count:
    """What one part (the audio, or one teacher's tokens) of a shard or a folder holds."""

    name: str
    """What was counted, e.g. "audio" or "wavlm tokens"."""
    num_shards: int = 0
    """Shards."""
    num_cuts: int = 0
    """Cuts."""
    num_frames: int = 0
    """Token frames; 0 for audio."""
    num_problems: int = 0
    """Problems found."""
    problems: list[str] = field(default_factory=list)
    """One line each, with shard and cut; the first ones where there are very many."""
    differences: Counter[int] = field(default_factory=Counter)
    """Token arrays by tenths of a frame that they have more than duration x rate."""
    usage: NDArray[np.int64] | None = None
    """(N, K) how often each token occurs."""

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self.num_problems += 1
        if len(self.problems) < MAX_KEPT:
            self.problems.append(problem)

    def absorb(self, other: "Count") -> None:
        """Adds what was counted elsewhere."""
        self.num_shards += other.num_shards
        self.num_cuts += other.num_cuts
        self.num_frames += other.num_frames
        self.num_problems += other.num_problems
        self.problems += other.problems
        self.differences.update(other.differences)
        if self.usage is None:
            self.usage = other.usage
        elif other.usage is not None:
            self.usage = self.usage + other.usage


@dataclass
class ShardFindings:
    """What was found in one shard."""

    shard: int
    """Its number."""
    duration_s: float = 0.0
    """Seconds of audio."""
    id_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """One for each cut, to find ids that are in several shards."""
    counts: list[Count] = field(default_factory=list)
    """One for the audio and one for each teacher."""

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as JSON, for `from_json`."""
        counts = [
            {**asdict(one), "differences": list(one.differences.items())} for one in self.counts
        ]
        for one in counts:
            one["usage"] = None if one["usage"] is None else one["usage"].tolist()
        hashes = base64.b64encode(self.id_hashes.tobytes()).decode("ascii")
        return {**asdict(self), "id_hashes": hashes, "counts": counts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ShardFindings":
        """Reads what `to_json` gave."""
        counts = [
            Count(
                **{
                    **one,
                    "differences": Counter(dict(one["differences"])),
                    "usage": None if one["usage"] is None else np.array(one["usage"], np.int64),
                }
            )
            for one in content["counts"]
        ]
        hashes = np.frombuffer(base64.b64decode(content["id_hashes"]), np.uint64)
        return cls(content["shard"], content["duration_s"], hashes, counts)
