"""Audio of batches, read and decoded by threads while the device works.

libsndfile lets go of Python's lock, and one thread decodes thousands of times faster than real
time. Processes would decode more, but threads hand over arrays without copying them, raise errors
as they are, and do not fork a process that holds a GPU.
"""

import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.shards import CutInfo
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.pieces import Piece

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class AudioBatch:
    """Pieces with their audio.

    Attributes:
        pieces: All whole clips, or all windows.
        audio: (B, S) float32, padded with zeros.
        audio_lens: (B,) int64, valid samples.
        recordings: Whole recordings (S,) float32 of windows, by the clip's index.
    """

    pieces: list[Piece]
    audio: Tensor
    audio_lens: Tensor
    recordings: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Seconds of audio, without padding."""
        return int(self.audio_lens.sum()) / SAMPLE_RATE_HZ


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
        return AudioBatch(list(pieces), audio, audio_lens, recordings)

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


def map_ahead(
    function: Callable[[A], B], items: Iterable[A], num_workers: int
) -> Generator[tuple[A, B]]:
    """Yields each item with the function's result, in order, while threads work ahead.

    Args:
        function: May be called by several threads.
        items: Taken as they are needed.
        num_workers: Threads; 0 works when asked. At most so many results and two more wait.
    """
    if num_workers == 0:
        for item in items:
            yield item, function(item)
        return
    waiting: deque[tuple[A, Future[B]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="read")
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > num_workers + 1:
                done, result = waiting.popleft()
                yield done, result.result()
        for done, result in waiting:
            yield done, result.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pad_audio(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pads waveforms (S_i,) with zeros to (B, S) float32, and gives their lengths (B,) int64."""
    lens = torch.tensor([len(one) for one in waveforms], dtype=torch.int64)
    audio = torch.zeros(len(waveforms), int(lens.max()))
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return audio, lens
