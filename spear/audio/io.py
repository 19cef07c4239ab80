"""Recordings from disk: any format that libsndfile reads, to 16 kHz mono float32, or a clear error.

libsndfile gives the samples that it finds and says nothing when a file was cut short, so this
module compares what the header promises with what the file holds. A truncated, empty, unreadable
or non-finite recording raises `AudioError` with the file and the cause in one line.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from spear.audio.resampling import resample
from spear.errors import AudioError

SAMPLE_RATE_HZ = 16000

# What libsndfile's parsers log of the chunk that holds the samples: WAV, AIFF, AU, W64, CAF; and
# of RF64, whose data chunk has its size elsewhere. "(should be N)" is the size that is there.
_DATA_CHUNK = re.compile(
    r"^\s*(?:data|SSND|Data [Ss]ize)\s*:\s*(\d+)(?: \(should be (\d+)\))?", re.MULTILINE
)
_FILE_LENGTH = re.compile(r"^Length : (\d+)", re.MULTILINE)
# Programs that write to a pipe do not know the length and leave the largest one (ffmpeg, sox).
_UNKNOWN_LENGTH_BYTES = 0x7FFF0000
_LONGEST_OGG_PAGE = 65307


@dataclass(frozen=True)
class AudioInfo:
    """What a recording holds on disk, before any conversion."""

    num_samples: int
    """Samples per channel."""
    rate_hz: int
    """Samples per second."""
    num_channels: int
    """Channels."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.rate_hz


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
    samples, rate_hz = _decode(Path(path))
    if channel is not None:
        if channel >= samples.shape[1]:
            raise AudioError(f"{path}: no channel {channel}, there are {samples.shape[1]}")
        samples = samples[:, channel : channel + 1]
    return _to_mono(samples, rate_hz, target_rate_hz, str(path))


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
        raise AudioError(f"{name}: cannot be decoded ({_cause(error)})") from error
    if len(samples) < max(1, promised):
        raise AudioError(f"{name}: {len(samples)} of {promised} samples are there")
    return _to_mono(samples, rate_hz, target_rate_hz, name)


def _to_mono(samples: np.ndarray, rate_hz: int, target_rate_hz: int, name: str) -> np.ndarray:
    """(S, C) samples -> (S',) at the wanted rate."""
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    audio = resample(np.ascontiguousarray(mono), rate_hz, target_rate_hz)
    if audio.size == 0:
        raise AudioError(f"{name}: too short, no samples are left at {target_rate_hz} Hz")
    return audio


def check_audio(path: str | Path) -> AudioInfo:
    """Decodes a recording to its end and says what it holds.

    Raises:
        AudioError: As `read_audio`.
    """
    samples, rate_hz = _decode(Path(path))
    return AudioInfo(len(samples), rate_hz, samples.shape[1])


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Returns every sample (S, C) float32 and the rate in Hz, or raises `AudioError`."""
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")
    try:
        with soundfile.SoundFile(path) as file:
            promised, rate_hz, log = file.frames, file.samplerate, file.extra_info
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        raise AudioError(f"{path}: cannot be read ({_cause(error)})") from error
    _check_length(path, promised, len(samples), log)
    if not np.isfinite(samples).all():
        num_bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise AudioError(f"{path}: {num_bad} of {samples.size} samples are NaN or infinite")
    return samples, rate_hz


def _check_length(path: Path, promised: int, found: int, log: str) -> None:
    """Raises `AudioError` where a file ends before the samples that its header promises."""
    length = _FILE_LENGTH.search(log)
    for match in _DATA_CHUNK.finditer(log):
        promised_bytes = int(match[1])
        limits = [int(limit) for limit in (match[2], length and length[1]) if limit is not None]
        there = min(limits, default=promised_bytes)
        if there < promised_bytes < _UNKNOWN_LENGTH_BYTES:
            raise AudioError(
                f"{path}: truncated, the header promises {promised_bytes} bytes of samples "
                f"and the file holds {there}"
            )
    if not _ogg_is_whole(path):
        raise AudioError(f"{path}: truncated, the Ogg stream has no end ({found} samples)")
    if found == 0:
        raise AudioError(f"{path}: no samples")
    if found < promised:
        raise AudioError(f"{path}: truncated, {found} of the {promised} promised samples are there")


def _ogg_is_whole(path: Path) -> bool:
    """Whether a file's last Ogg page is complete and marked as the last (RFC 3533, section 6).

    libsndfile gives what the whole pages hold, or nothing, without an error. Files that are not
    Ogg are whole here.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"OggS":
            return True
        stream.seek(max(0, path.stat().st_size - 2 * _LONGEST_OGG_PAGE))
        tail = stream.read()
    start = tail.rfind(b"OggS\0")
    page = tail[start:]
    if start < 0 or len(page) < 27 + page[26:27].ljust(1, b"\xff")[0]:
        return False
    segments = page[27 : 27 + page[26]]
    is_last = bool(page[5] & 4)
    return is_last and len(page) >= 27 + len(segments) + sum(segments)


def _cause(error: Exception) -> str:
    """One line of an error's text, without the path, which the message has already."""
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
