"""All clips of a run under one numbering: several shard folders, each through its index.

Checks at opening that every folder has the tokens that its clips need and that they are of the
teachers, quantisers and shapes that the run asks for; then reads single clips by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.manifests import DOMAINS
from spear.data.formats.tokens import Tokens, TokenSidecar
from spear.data.index.clip_table import ClipTable
from spear.data.index.shard_folder import ShardFolder
from spear.errors import ConfigError, TokenError


@dataclass
class SourceConfig:
    """A shard folder and how often its clips come."""

    path: str
    """Shard folder, with the tokens that the run asks for."""

    weight: float = 1.0
    """Times that each clip comes per epoch, on average: 2 is twice, 0.5 in every other epoch."""


class ClipIndex:
    """All clips of several shard folders under one numbering.

    Args:
        sources: The folders; those without an index get one.
        required: Domain ("speech" or "audio") -> teachers whose tokens a clip of it must have.
            Empty where nobody reads tokens.
        expected: Teacher -> what its sidecars must say, by `TokenSidecar`'s field names.
        num_jobs: Processes that make indexes where these are missing.

    Attributes:
        folders: The folders.
        table: Lengths, shards and weights, as `BatchPlan` takes them.
        is_audio: (n,) bool.

    Raises:
        ConfigError: There is no source.
        DataError: A folder is missing or broken.
        TokenError: Tokens are missing, or of another teacher, quantiser or shape.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        required: Mapping[str, Sequence[str]] = MappingProxyType({}),
        expected: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        num_jobs: int = 1,
    ) -> None:
        if not sources:
            raise ConfigError("no shard folder is given: name at least one source with a path")
        self.required = {domain: tuple(required.get(domain, ())) for domain in DOMAINS}
        self.folders = [ShardFolder(source.path, num_jobs) for source in sources]
        sizes = [len(folder) for folder in self.folders]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self.is_audio = _joined([folder.is_audio for folder in self.folders]).astype(np.bool_)
        self.table = self._table([source.weight for source in sources])
        self._open_tokens(expected, num_jobs)

    def __len__(self) -> int:
        """Returns the number of clips."""
        return int(self._first[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Workers read clips; the plan is made elsewhere.
        return {name: value for name, value in vars(self).items() if name != "table"}

    def place(self, number: int) -> tuple[ShardFolder, int]:
        """Returns the folder of a clip and its number there."""
        position = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.folders[position], number - int(self._first[position])

    def id(self, number: int) -> str:
        """Reads the id of a clip."""
        folder, row = self.place(number)
        return folder.id(row)

    def duration_s(self, numbers: Sequence[int]) -> float:
        """Returns the seconds of clips together."""
        places = map(self.place, numbers)
        return sum(int(folder.num_samples[row]) for folder, row in places) / SAMPLE_RATE_HZ

    def clip(self, number: int) -> tuple[str, NDArray[np.float32]]:
        """Reads the id and the (S,) float32 audio of a clip."""
        folder, row = self.place(number)
        return folder.clip(row)

    def tokens(self, number: int, teacher: str) -> Tokens:
        """Reads the (T', N) tokens of a clip, uint8 or uint16."""
        folder, row = self.place(number)
        return folder.tokens(row, teacher)

    def teachers_of(self, number: int) -> tuple[str, ...]:
        """Returns the teachers whose tokens a clip of this domain must have."""
        return self.required["audio" if self.is_audio[number] else "speech"]

    def with_tokens(self, teacher: str) -> NDArray[np.int64]:
        """Returns the numbers of the clips that come with a teacher's tokens."""
        in_audio, in_speech = (teacher in self.required[name] for name in ("audio", "speech"))
        if in_audio and in_speech:
            return np.arange(len(self))
        return np.flatnonzero(self.is_audio if in_audio else ~self.is_audio & in_speech)

    def shared_with(self, other: "ClipIndex") -> NDArray[np.int64]:
        """Returns the numbers of the clips whose ids `other` has too."""
        theirs = np.unique(np.concatenate([folder.hashes for folder in other.folders]))
        shared = [
            np.flatnonzero(np.isin(folder.hashes, theirs)) + first
            for folder, first in zip(self.folders, self._first[:-1], strict=True)
        ]
        return np.concatenate(shared)

    def _table(self, weights: Sequence[float]) -> ClipTable:
        shards = [folder.first[:-1] for folder in self.folders]
        starts = [own + first for own, first in zip(shards, self._first[:-1], strict=True)]
        return ClipTable(
            num_samples=_joined([folder.num_samples for folder in self.folders]),
            first=np.concatenate([*starts, self._first[-1:]]),
            source=np.repeat(np.arange(len(shards)), [len(one) for one in shards]),
            weights=np.asarray(weights, np.float64),
            fingerprint="/".join(folder.fingerprint for folder in self.folders),
        )

    def _open_tokens(self, expected: Mapping[str, Mapping[str, Any]], num_jobs: int) -> None:
        """Compares every folder's sidecars with what the run expects, and with each other."""
        first: dict[str, tuple[ShardFolder, TokenSidecar]] = {}
        for folder in self.folders:
            domains = {"audio" if kind else "speech" for kind in np.unique(folder.is_audio)}
            teachers = sorted({one for domain in domains for one in self.required[domain]})
            for teacher in teachers:
                sidecar = folder.sidecar(teacher)
                sidecar.check(folder.path, teacher=teacher, **expected.get(teacher, {}))
                other_folder, other = first.setdefault(teacher, (folder, sidecar))
                if differing := sidecar.differences(other):
                    raise TokenError(
                        f"{folder.path}: tokens of {teacher!r} differ from those in "
                        f"{other_folder.path} in {', '.join(differing)}; extract one of them again"
                    )
            folder.open_tokens(teachers, num_jobs)


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One column of several; a single one stays memory-mapped."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns)
