"""The labelled clips of several shard folders under one numbering.

Shards hold no labels: they are joined here with `utt2labels` files by the hash of the cut id that
the folders' indexes keep. Nothing is a Python object per clip, so the two million clips of AudioSet
open in seconds.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spear.data.formats.kaldi_text import read_ids
from spear.data.formats.shards import id_hash
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.errors import ConfigError, DataError
from spear.system.progress import get_logger
from spear.tagging.balance import ClassMembers
from spear.tagging.labels import Classes, Labels

logger = get_logger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class LabelledClips:
    """Clips with their classes.

    Args:
        folders: Paths of shard folders; those without an index get one.
        labels: Labels by cut id.
        classes: What the labels mean.
        ids: File of the cut ids that are used; none: all.
        skip_unlabelled: Whether cuts without a line of labels are left out instead of an error.
        purpose: What they are for, for messages: "train" or "valid".

    Attributes:
        classes: As given.
        members: Which clip has which classes.
        num_samples: (n,) uint32, samples of every clip at 16 kHz.

    Raises:
        DataError: A folder is missing or broken, a cut has no labels, an id no cut, a label no
            class, or nothing is left.
    """

    def __init__(
        self,
        folders: Sequence[str],
        labels: Labels,
        classes: Classes,
        *,
        ids: str | None = None,
        skip_unlabelled: bool = False,
        purpose: str = "train",
    ) -> None:
        if not folders:
            raise ConfigError(f"no {purpose} data: name shard folders in data.{purpose}")
        where = ", ".join(map(str, folders))
        index = ClipIndex([SourceConfig(path) for path in folders])
        hashes = np.concatenate([folder.hashes for folder in index.folders])
        chosen = np.arange(len(hashes)) if ids is None else _listed(ids, hashes)
        rows = _places_of(hashes[chosen], labels)
        missing = chosen[rows < 0]
        if len(missing) and not skip_unlabelled:
            raise DataError(
                f"{where}: {len(missing)} of {len(chosen)} cuts have no labels, e.g. "
                f"{index.id(int(missing[0]))!r}; add lines for them, or set skip_unlabelled"
            )
        if len(missing):
            logger.warning("left out %d %s cuts without labels", len(missing), purpose)
        self.classes = classes
        self._index = index
        self._numbers = chosen[rows >= 0]
        if not len(self._numbers):
            raise DataError(f"{where}: no {purpose} cut with labels")
        self.num_samples = index.table.num_samples[self._numbers]
        self.members = _members(classes.numbers(labels, "labels"), rows[rows >= 0], len(classes))

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self._numbers)

    def read(self, number: int) -> tuple[str, Floats]:
        """Reads a clip: its cut id and (S,) float32 audio at 16 kHz."""
        return self._index.clip(int(self._numbers[number]))

    def targets(self, numbers: Sequence[int] | Ints) -> Floats:
        """Returns (n, C) float32: 1 where a clip has a class, else 0."""
        targets = np.zeros((len(numbers), len(self.classes)), np.float32)
        first = self.members.first
        for row, number in enumerate(numbers):
            targets[row, self.members.classes[first[number] : first[number + 1]]] = 1.0
        return targets

    @property
    def fingerprint(self) -> str:
        """Text that differs where clips or labels differ."""
        parts = [folder.fingerprint.encode() for folder in self._index.folders]
        parts += [repr(self.classes.labels).encode(), self._numbers.tobytes()]
        parts += [self.members.first.tobytes(), self.members.classes.tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter((id_hash(one) for one in ids), np.uint64)


def _listed(path: str, hashes: NDArray[np.uint64]) -> Ints:
    """Returns the numbers of the cuts that a file lists.

    Raises:
        DataError: It lists an id that no cut has.
    """
    ids = sorted(read_ids(path))
    wanted = _hashes(ids)
    unknown = np.flatnonzero(~np.isin(wanted, hashes))
    if len(unknown):
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} ids are of no cut in the shards, e.g. "
            f"{ids[unknown[0]]!r}"
        )
    return np.flatnonzero(np.isin(hashes, wanted))


def _places_of(hashes: NDArray[np.uint64], labels: Labels) -> Ints:
    """Returns where in `labels` each cut stands, -1 where it does not."""
    known = _hashes(labels)
    order = np.argsort(known)
    places = np.searchsorted(known[order], hashes).clip(max=len(known) - 1)
    rows = order[places]
    return np.where(known[rows] == hashes, rows, -1)


def _members(classes: Sequence[list[int]], rows: Ints, num_classes: int) -> ClassMembers:
    own = [classes[row] for row in rows]
    flat = np.array([number for numbers in own for number in numbers], np.int64)
    return ClassMembers(np.cumsum([0, *map(len, own)]), flat, num_classes)
