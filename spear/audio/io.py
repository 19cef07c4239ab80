"""Recordings from disk: any format that libsndfile reads, to 16 kHz mono float32, or a clear error.

Everything is decoded and resampled block by block, so that the memory needed is that of the result
alone. A truncated, empty, unreadable or non-finite recording raises `AudioError` with the file and
the cause in one line.
"""

import io
from collections.abc import Iterable
from math import gcd
from pathlib import Path

import numpy as np
import soundfile

from spear.audio.resampling import resample, resample_blocks
from spear.audio.sound_reader import AudioInfo, SoundReader, cause_of
from spear.errors import AudioError

SAMPLE_RATE_HZ = 16000
CONTEXT_S = 0.5
"""Seconds read before and after a part. Resampling agrees then with that of the whole to 2e-7, and
Opus, which takes 0.1 s to settle after a jump, to the bit."""


def read_audio(
    path: str | Path, target_rate_hz: int = SAMPLE_RATE_HZ, channel: int | None = None
) -> np.ndarray:
    """Reads a whole recording as mono at the wanted rate; channels are averaged.

    Args:
        path: File in any format that libsndfile reads.
        target_rate_hz: Samples per second wanted.
        channel: The one channel to take instead of the average, from 0.

    Returns:
        (S,) float32; integer formats are scaled to [-1, 1).

    Raises:
        AudioError: The file is missing, unreadable, truncated, empty, or has samples that are
            not finite.
    """
    with SoundReader(path, channel) as reader:
        blocks = resample_blocks(reader.blocks(), reader.info.rate_hz, target_rate_hz)
        return _join(blocks, str(path), target_rate_hz)


class AudioParts:
    """A recording of which parts are read, each without the rest; a context manager.

    Attributes:
        num_samples: Samples of the whole at the wanted rate, to within one.
    """

    def __init__(
        self,
        path: str | Path,
        target_rate_hz: int = SAMPLE_RATE_HZ,
        channel: int | None = None,
    ) -> None:
        """Opens a recording; arguments and errors are those of `read_audio`."""
        self._reader = SoundReader(path, channel)
        self._rate_hz = target_rate_hz
        info = self._reader.info
        self.num_samples = (info.num_samples * target_rate_hz + info.rate_hz // 2) // info.rate_hz

    def read(self, start: int, end: int) -> np.ndarray:
        """Reads a part, the same whatever was read before.

        Args:
            start: Its first sample at the wanted rate.
            end: The sample after its last.

        Returns:
            (S,) float32 with S = end - start, less where the recording ends earlier:
            `read_audio(path)[start:end]` to 2e-7, and to the bit where nothing is resampled.

        Raises:
            AudioError: The part cannot be decoded, has no samples or some that are not finite.
        """
        info = self._reader.info
        divisor = gcd(info.rate_hz, self._rate_hz)
        native, wanted = info.rate_hz // divisor, self._rate_hz // divisor
        # Whole multiples of the ratio, so that the resampled part lies on the grid of the whole.
        context = -(-round(CONTEXT_S * info.rate_hz) // native)
        first = max(0, start // wanted - context)
        last = -(-end // wanted) + context
        part = self._reader.part(first * native, min(last * native, info.num_samples))
        blocks = resample_blocks(part, info.rate_hz, self._rate_hz)
        offset = start - first * wanted
        audio = _join(blocks, str(self._reader.path), self._rate_hz)[offset:]
        return audio[: end - start]

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def __enter__(self) -> "AudioParts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def decode_audio(data: bytes, name: str, target_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Decodes an encoded recording from memory, e.g. a member of a shard.

    Args:
        data: The bytes of a file in any format that libsndfile reads.
        name: What to call it in an error.
        target_rate_hz: Samples per second wanted.

    Returns:
        (S,) float32 mono, as `read_audio`.

    Raises:
        AudioError: The bytes are no recording, or end too early.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate_hz = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be decoded ({cause_of(error)})") from error
    if len(samples) < max(1, promised):
        raise AudioError(f"{name}: {len(samples)} of {promised} samples are there")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    audio = resample(np.ascontiguousarray(mono), rate_hz, target_rate_hz)
    return _join([audio], name, target_rate_hz)


def check_audio(path: str | Path) -> AudioInfo:
    """Decodes a recording to its end, block by block, and says what it holds.

    Raises:
        AudioError: As `read_audio`.
    """
    with SoundReader(path) as reader:
        num_samples = sum(len(block) for block in reader.blocks())
        return AudioInfo(num_samples, reader.info.rate_hz, reader.info.num_channels)


def _join(blocks: Iterable[np.ndarray], name: str, rate_hz: int) -> np.ndarray:
    pieces = list(blocks)
    audio = pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, np.float32)])
    if audio.size == 0:
        raise AudioError(f"{name}: too short, no samples are left at {rate_hz} Hz")
    return audio
