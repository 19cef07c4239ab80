"""What a teacher gets at once: clips or windows of clips in batches, and their audio.

Which pieces form a batch is a function of the clips and the settings alone, so that jobs, restarts
and other teachers change nothing. Threads call `BatchReader` while the device works: libsndfile
lets go of Python's lock, and one thread decodes thousands of times faster than real time.
"""

import itertools
import pickle
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.shards import CutInfo
from spear.data.index.packing import pack, pack_by_length
from spear.data.index.shard_folder import ShardFolder
from spear.teachers import Teacher, Window, Windowing


@dataclass(frozen=True)
class Piece:
    """What a teacher gets of a clip at once: all of it, or one window.

    Attributes:
        info: The clip.
        window: The window; None is the whole clip.
    """

    info: CutInfo
    window: Window | None = None

    @property
    def first_frame(self) -> int:
        """Number in the clip of the piece's first frame."""
        return 0 if self.window is None else self.window.first_frame

    @property
    def num_samples(self) -> int:
        """Samples at 16 kHz."""
        if self.window is None:
            return num_samples(self.info)
        stop = self.window.stop or num_samples(self.info)
        return stop - self.window.start


def num_samples(info: CutInfo) -> int:
    """Returns the samples of a clip at 16 kHz."""
    return round(info.duration_s * SAMPLE_RATE_HZ)


def batch_clips(infos: Sequence[CutInfo], batch_s: float) -> list[list[Piece]]:
    """Groups whole clips of like length.

    Args:
        infos: The clips.
        batch_s: Most seconds in a batch, padding counted; a longer clip is a batch of its own.
    """
    groups = pack_by_length([info.duration_s for info in infos], batch_s)
    return [[Piece(infos[number]) for number in group] for group in groups]


def batch_windows(pieces: Sequence[Piece], batch_s: float) -> list[list[Piece]]:
    """Groups windows in their order, so that every recording is read once and then let go."""
    bounds = pack(np.array([piece.num_samples / SAMPLE_RATE_HZ for piece in pieces]), batch_s)
    return [list(pieces[begin:end]) for begin, end in itertools.pairwise(bounds)]


def split_long(
    teacher: Teacher, infos: Iterable[CutInfo], windowing: Windowing
) -> tuple[list[CutInfo], list[Piece]]:
    """Returns the clips that are one pass of the teacher, and the windows of the others."""
    short: list[CutInfo] = []
    pieces: list[Piece] = []
    for info in infos:
        windows = teacher.windows(num_samples(info), windowing)
        pieces += [Piece(info, window) for window in windows]
        if not windows:
            short.append(info)
    return short, pieces


def plan_batches(
    teacher: Teacher, infos: Iterable[CutInfo], batch_s: float, windowing: Windowing
) -> list[list[Piece]]:
    """Returns the batches of clips for one teacher; they depend on nothing else."""
    short, windows = split_long(teacher, infos, windowing)
    return batch_clips(short, batch_s) + batch_windows(windows, batch_s)


@dataclass
class AudioBatch:
    """Pieces with their audio.

    Attributes:
        pieces: All whole clips, or all windows.
        audio: (B, S) float32, padded with zeros.
        audio_lens: (B,) int64, valid samples.
        recordings: Whole recordings (S,) float32 of windows, by the clip's index.
    """

    pieces: Sequence[Piece]
    audio: Tensor
    audio_lens: Tensor
    recordings: dict[int, np.ndarray] = field(default_factory=dict)


class BatchReader:
    """Reads and decodes the audio of batches; may be called by several threads at once.

    The recording that windows were last cut from is kept, 230 MB for an hour of it.
    """

    def __init__(self, folder: ShardFolder, pin_memory: bool = False) -> None:
        """Reads from `folder`; pinned memory goes to a GPU while that is working."""
        self._folder = pickle.dumps(folder)
        self._pin_memory = pin_memory
        self._local = threading.local()
        self._lock = threading.Lock()
        self._long: tuple[int, np.ndarray] | None = None

    def __call__(self, pieces: Sequence[Piece]) -> AudioBatch:
        """Reads a batch.

        Raises:
            DataError: A shard's tar is broken.
            AudioError: A recording cannot be decoded.
        """
        recordings: dict[int, np.ndarray] = {}
        waveforms: list[np.ndarray] = []
        for piece in pieces:
            if piece.window is None:
                waveforms.append(self._own_folder().audio(piece.info))
                continue
            if piece.info.index not in recordings:
                recordings[piece.info.index] = self._whole(piece.info)
            whole = recordings[piece.info.index]
            waveforms.append(whole[piece.window.start : piece.window.stop])
        audio, audio_lens = pad_audio(waveforms)
        if self._pin_memory:
            audio = audio.pin_memory()
        return AudioBatch(pieces, audio, audio_lens, recordings)

    def _own_folder(self) -> ShardFolder:
        """Returns this thread's copy of the folder: open files are not to be shared."""
        if not hasattr(self._local, "folder"):
            self._local.folder = pickle.loads(self._folder)
        return self._local.folder

    def _whole(self, info: CutInfo) -> np.ndarray:
        with self._lock:
            if self._long is None or self._long[0] != info.index:
                self._long = None  # before the next one is there
                self._long = (info.index, self._own_folder().audio(info))
            return self._long[1]


def pad_audio(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pads waveforms (S_i,) with zeros to (B, S) float32, and gives their lengths (B,) int64."""
    lens = torch.tensor([len(one) for one in waveforms], dtype=torch.int64)
    audio = torch.zeros(len(waveforms), int(lens.max()) if waveforms else 0)
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return audio, lens
