"""Measures reading: what batches cost in processor time, in waiting, and part by part.

`time_pass` runs through a loader's batches and counts the processor time of this process and of its
workers; `time_parts` makes batches in this process and says how long each part of the work takes.
Both run the very code that training runs. Nothing here knows a configuration: see
`spear.pretrain.bench` for the command.
"""

import copy
import gc
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from spear.data.formats.tars import FileReader
from spear.data.index.loader import BatchDataset, Place
from spear.errors import SpearError

READING, DECODING, AUGMENTING = "reading bytes", "decoding", "augmenting"
FEATURES, COLLATING, REST = "features", "collating, masks", "the rest"
PARTS = (READING, DECODING, AUGMENTING, FEATURES, COLLATING, REST)
"""Where the time of a batch goes; augmenting includes the decoding of recorded noise."""


@dataclass
class Pass:
    """What a run through some batches cost."""

    num_batches: int = 0
    """Batches that came."""
    audio_s: float = 0.0
    """Seconds of the clips in them, before augmentation and without padding."""
    cpu_s: float = 0.0
    """Processor seconds of all processes, their start included."""
    wall_s: float = 0.0
    """Seconds from the start of the workers to the last batch."""
    first_s: float = 0.0
    """Seconds from the start of the workers to the first batch."""

    @property
    def per_core(self) -> float:
        """Hours of audio in an hour of one core."""
        return self.audio_s / max(self.cpu_s, 1e-9)

    @property
    def per_hour(self) -> float:
        """Hours of audio in an hour, the start included."""
        return self.audio_s / max(self.wall_s, 1e-9)

    @property
    def batches_per_s(self) -> float:
        """Batches in a second, the start included."""
        return self.num_batches / max(self.wall_s, 1e-9)


class HasAudio(Protocol):
    """What is asked of a batch."""

    audio_s: float
    """Seconds of the clips in it, before augmentation and without padding."""


def time_pass(open_batches: Callable[[], Iterable[HasAudio]]) -> Pass:
    """Reads batches to their end.

    Args:
        open_batches: Makes the loader and returns its batches. Workers have to end before the
            system tells their processor time, so nobody else may hold the loader.

    Raises:
        SpearError: A clip cannot be read.
    """
    found, cpu_s, begin = Pass(), cpu_seconds(), time.perf_counter()
    for batch in open_batches():
        found.wall_s = time.perf_counter() - begin
        found.first_s = found.first_s or found.wall_s
        found.num_batches += 1
        found.audio_s += batch.audio_s
    gc.collect()  # the workers end with the loader
    found.cpu_s = cpu_seconds() - cpu_s
    return found


@dataclass
class PartTimes:
    """What making some batches in one process took, by part of the work."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Seconds by part, waiting included; a part within another does not count in that."""
    num_batches: int = 0
    """Batches that were made."""
    audio_s: float = 0.0
    """Seconds of the clips in them."""
    num_bytes: int = 0
    """Bytes that were read, those of noise included."""
    padding: float = 0.0
    """Padded share of the frames, 0 to 1, after augmentation."""

    def ms_per_batch(self, part: str) -> float:
        """Milliseconds of a part in a batch."""
        return 1e3 * self.seconds[part] / max(self.num_batches, 1)

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def megabytes_per_s(self) -> float:
        """Speed of reading alone, 10^6 bytes a second: of the disk, or of the system's memory."""
        return self.num_bytes / 1e6 / max(self.seconds[READING], 1e-9)

    @property
    def megabytes_per_hour(self) -> float:
        """10^6 bytes read for an hour of audio."""
        return self.num_bytes / 1e6 / max(self.audio_s / 3600, 1e-9)


def time_parts(dataset: BatchDataset, items: Sequence[tuple[Place, list[int]]]) -> PartTimes:
    """Makes batches in this process, with a watch on every part.

    Args:
        dataset: Makes the batches; it stays as it is.
        items: Which batches.

    Raises:
        SpearError: A clip cannot be read.
    """
    times, clock = PartTimes(), _Clock()
    watched = _watch(dataset, clock)
    bytes_before, frames, valid = FileReader.total.num_bytes, 0, 0
    for item in items:
        batch = clock.timed(REST, watched.__getitem__)(item)
        if isinstance(batch, SpearError):
            raise batch
        times.audio_s += batch.audio_s
        frames += batch.fbank.shape[0] * batch.fbank.shape[1]
        valid += int(batch.fbank_lens.sum())
    times.seconds = {**clock.seconds, READING: clock.reading_s}
    times.num_batches = len(items)
    times.num_bytes = FileReader.total.num_bytes - bytes_before
    times.padding = 1.0 - valid / max(frames, 1)
    return times


def _watch(dataset: BatchDataset, clock: "_Clock") -> BatchDataset:
    """Returns a copy of `dataset` whose parts are timed."""
    watched = copy.copy(dataset)
    watched.index = copy.copy(dataset.index)
    watched.collator = copy.copy(dataset.collator)
    clock.watch(watched.index, "example", DECODING)
    clock.watch(watched.collator, "fbank", FEATURES)
    clock.watch(watched, "collator", COLLATING)
    if watched.augmenter is not None:
        clock.watch(watched, "augmenter", AUGMENTING)
    return watched


class _Clock:
    """Adds up time by part; what an inner part or the reading of bytes takes is theirs alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._read_before_s = FileReader.total.seconds

    @property
    def reading_s(self) -> float:
        """Seconds that were spent on reading bytes since this clock began."""
        return FileReader.total.seconds - self._read_before_s

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Times the callable `owner.name` from now on."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` with its time added to a part."""

        def call(*args: Any) -> Any:
            begin, taken_s = time.perf_counter(), self._taken_s()
            try:
                return function(*args)
            finally:
                inner_s = self._taken_s() - taken_s
                self.seconds[part] += time.perf_counter() - begin - inner_s

        return call

    def _taken_s(self) -> float:
        return sum(self.seconds.values()) + self.reading_s


def forget_files(folders: Iterable[Path]) -> int:
    """Asks the system to drop its copies of the tar files in some folders from memory.

    The next pass reads them from disk, unless the file system keeps copies elsewhere. Systems
    other than Linux cannot be asked.

    Returns:
        How many files it was asked to drop.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0
    paths = [path for folder in folders for path in sorted(folder.glob("*.tar"))]
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return len(paths)


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch work with one thread, as it does in data workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
