"""What there is to recognise: cuts of shards, audio files, arrays, each read when it is needed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from spear.audio import SAMPLE_RATE_HZ, AudioParts
from spear.data.index.shard_folder import ShardFolder
from spear.errors import DataError


@dataclass(frozen=True)
class Recording:
    """Something to recognise."""

    id: str
    """Cut id, or path."""
    num_samples: int
    """Samples at 16 kHz."""
    read: Callable[[int, int], np.ndarray]
    """Gives the samples from one number up to another, (S,) float32 at 16 kHz."""
    text: str | None = None
    """What was said, where it is known."""
    speaker: str = ""
    """Who said it, where it is known."""

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return self.num_samples / SAMPLE_RATE_HZ


def from_shards(folder: ShardFolder) -> list[Recording]:
    """Lists the cuts of a shard folder."""
    return [
        Recording(
            i.id,
            round(i.duration_s * SAMPLE_RATE_HZ),
            _Cut(folder, i.index),
            i.text,
            i.speaker or "",
        )
        for i in folder
    ]


def from_file(path: Path, num_samples: int) -> Recording:
    """Takes an audio file of so many samples at 16 kHz."""
    return Recording(str(path), num_samples, _File(path))


def from_array(number: int, audio: np.ndarray | Tensor) -> Recording:
    """Takes (S,) float samples, 16 kHz mono.

    Raises:
        DataError: They are not one-dimensional or not of floats.
    """
    samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise DataError(
            f"recording {number} has shape {samples.shape} and type {samples.dtype}, expected "
            "one channel (S,) of floats in [-1, 1]: divide int16 by 32768, average channels"
        )
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return Recording(str(number), len(samples), _Array(samples))


# Classes, not closures: a worker that is spawned gets its recordings pickled.


@dataclass(frozen=True)
class _Cut:
    folder: ShardFolder
    index: int

    def __call__(self, start: int, end: int) -> np.ndarray:
        return self.folder.audio(self.index)[start:end]


@dataclass(frozen=True)
class _File:
    path: Path

    def __call__(self, start: int, end: int) -> np.ndarray:
        with AudioParts(self.path) as parts:
            return parts.read(start, end)


@dataclass(frozen=True)
class _Array:
    samples: np.ndarray

    def __call__(self, start: int, end: int) -> np.ndarray:
        return self.samples[start:end]
