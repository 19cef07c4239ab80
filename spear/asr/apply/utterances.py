"""What there is to recognise: cuts of shards, audio files, arrays, each read when it is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from spear.audio import AUDIO_SUFFIXES, SAMPLE_RATE_HZ, check_audio, read_audio
from spear.data.index.shard_folder import ShardFolder
from spear.errors import DataError


@dataclass(frozen=True)
class Recording:
    """Something to recognise."""

    id: str
    """Cut id, or path."""
    duration_s: float
    """Seconds."""
    read: Callable[[], np.ndarray]
    """Gives (S,) float32 at 16 kHz."""
    text: str | None = None
    """What was said, where it is known."""
    speaker: str = ""
    """Who said it, where it is known."""


def find_audio(paths: Sequence[str]) -> list[Path]:
    """Lists audio files: those given, and those anywhere below the folders given.

    Raises:
        DataError: A path does not exist, or a folder holds no audio.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            if not below:
                raise DataError(f"{path}: no audio file in this folder")
            files.extend(below)
        else:
            raise DataError(f"{path}: no such audio file or folder")
    return list(dict.fromkeys(files))


def from_shards(folder: ShardFolder) -> list[Recording]:
    """Lists the cuts of a shard folder."""
    return [
        Recording(i.id, i.duration_s, _Cut(folder, i.index), i.text, i.speaker or "")
        for i in folder
    ]


def from_file(path: Path) -> Recording:
    """Checks an audio file to its end.

    Raises:
        AudioError: It cannot be decoded.
    """
    return Recording(str(path), check_audio(path).duration_s, _File(path))


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
    return Recording(str(number), len(samples) / SAMPLE_RATE_HZ, _Array(samples))


# Classes, not closures: a worker that is spawned gets its recordings pickled.


@dataclass(frozen=True)
class _Cut:
    folder: ShardFolder
    index: int

    def __call__(self) -> np.ndarray:
        return self.folder.audio(self.index)


@dataclass(frozen=True)
class _File:
    path: Path

    def __call__(self) -> np.ndarray:
        return read_audio(self.path)


@dataclass(frozen=True)
class _Array:
    samples: np.ndarray

    def __call__(self) -> np.ndarray:
        return self.samples
