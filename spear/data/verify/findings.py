"""What verification found: counts and problems of each part, in one shard or in all of a folder.

Findings can be written down as JSON and read again, so that what one process or job found is put
together with the findings of others.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Findings:
    """What was found in a shard, or in the shards of a folder together."""

    counts: list[Count] = field(default_factory=lambda: [Count("audio")])
    """One for the audio and one for each teacher."""
    duration_s: float = 0.0
    """Seconds of audio."""
    id_hashes: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    """By shard one for each cut, to find ids that are in several shards."""

    def count(self, name: str) -> Count:
        """Returns the count of one part, a new one where there is none of the name."""
        known = [one for one in self.counts if one.name == name]
        if not known:
            known = [Count(name)]
            self.counts += known
        return known[0]

    def absorb(self, other: "Findings") -> None:
        """Adds what was found in other shards."""
        self.duration_s += other.duration_s
        self.id_hashes |= other.id_hashes
        for part in other.counts:
            self.count(part.name).absorb(part)

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each, with shard and cut."""
        return [problem for count in self.counts for problem in count.problems]

    @property
    def num_problems(self) -> int:
        """How much is wrong; more than `problems` where there is very much."""
        return sum(count.num_problems for count in self.counts)

    @property
    def tokens_are_bad(self) -> bool:
        """Whether a problem is one of tokens."""
        return any(count.num_problems for count in self.counts[1:])

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as JSON, for `from_json`."""
        counts = [
            {
                **vars(one),
                "differences": list(one.differences.items()),
                "usage": None if one.usage is None else one.usage.tolist(),
            }
            for one in self.counts
        ]
        hashes = {shard: own.tolist() for shard, own in self.id_hashes.items()}
        return {**vars(self), "id_hashes": hashes, "counts": counts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Findings":
        """Reads what `to_json` gave."""
        counts = [Count(**one) for one in content["counts"]]
        for one in counts:
            one.differences = Counter(dict(one.differences))
            one.usage = None if one.usage is None else np.array(one.usage, np.int64)
        hashes = {int(k): np.array(own, np.uint64) for k, own in content["id_hashes"].items()}
        return cls(counts, content["duration_s"], hashes)
