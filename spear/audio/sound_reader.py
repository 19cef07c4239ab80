"""An open sound file, checked, and read in blocks: three hours cost no more memory than a minute.

`SoundReader` opens any file that libsndfile reads, refuses what is no recording (a pipe, a device,
a folder, a file cut short), and yields the samples of any part in blocks, averaged to mono. Parts
that follow each other are decoded once, without going back.
"""

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from spear.audio.whole_files import check_container, check_num_samples
from spear.errors import AudioError

BLOCK_SAMPLES = 1 << 20
"""Most values decoded at once, all channels together: 4 MiB of float32."""
RATES_HZ = (1000, 1_000_000)
"""Rates outside are a broken header: a second at 1 Hz would become 16,000 samples."""
AUDIO_SUFFIXES = (
    {f".{name.lower()}" for name in soundfile.available_formats()}
    | {".oga", ".opus", ".aif", ".aifc", ".aiff", ".snd", ".sph", ".wave"}
) - {".raw", ".txt"}
"""What names of recordings end in; headerless samples are none, since nothing says their rate."""
_HELD_S = 2.0
_KINDS = (
    (stat.S_ISDIR, "a folder, not a recording"),
    (stat.S_ISFIFO, "a pipe, not a recording"),
    (stat.S_ISSOCK, "a socket, not a recording"),
)


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


class SoundReader:
    """A recording on disk, open for reading; a context manager.

    Attributes:
        path: The file.
        info: What its header says of it.
    """

    def __init__(self, path: str | Path, channel: int | None = None) -> None:
        """Opens a recording.

        Args:
            path: File in any format that libsndfile reads.
            channel: The one channel to take instead of the average, from 0.

        Raises:
            AudioError: There is no such file or channel, it is no regular file, it cannot be
                opened or is no recording, or it ends before what its header promises.
        """
        self.path = Path(path)
        self._channel = channel
        check_regular(self.path)
        self._file = self._open()
        file = self._file
        self.info = AudioInfo(file.frames, file.samplerate, file.channels)
        self._held: np.ndarray = np.zeros(0, dtype=np.float32)
        self._position = 0
        try:
            check_container(self.path, file.extra_info)
            self._check_facts()
        except BaseException:
            self.close()
            raise

    def blocks(self) -> Iterator[np.ndarray]:
        """Decodes the recording to its end.

        Yields:
            (F,) float32, mono, at the rate of the file.

        Raises:
            AudioError: After the last block: fewer samples than promised, or some that are not
                finite; on the way: what cannot be decoded.
        """
        found = num_bad = 0
        self._forget()
        self._go_to(0)
        while len(samples := self._decode(self._block_frames())):
            num_bad += int(np.count_nonzero(~np.isfinite(samples)))
            found += len(samples)
            yield self._to_mono(samples)
        check_num_samples(self.path, self.info.num_samples, found)
        self._refuse_bad(num_bad, found * self.info.num_channels)

    def part(self, start: int, end: int) -> Iterator[np.ndarray]:
        """Decodes samples `start` to `end`, fewer where the recording ends earlier.

        Yields:
            (F,) float32, mono, at the rate of the file.

        Raises:
            AudioError: They cannot be decoded, or some are not finite.
        """
        held = self._go_to(start)[: max(0, end - start)]
        if len(held):
            yield held
        while self._position < end:
            samples = self._decode(min(end - self._position, self._block_frames()))
            if not len(samples):
                return
            mono = self._to_mono(samples)
            self._hold(mono)
            self._refuse_bad(int(np.count_nonzero(~np.isfinite(samples))), samples.size)
            yield mono

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(os.fsencode(self.path))
        except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
            raise AudioError(f"{self.path}: cannot be read ({cause_of(error)})") from error

    def _check_facts(self) -> None:
        lowest, highest = RATES_HZ
        if not lowest <= self.info.rate_hz <= highest:
            raise AudioError(
                f"{self.path}: a rate of {self.info.rate_hz} Hz is no recording's, the header is "
                "broken"
            )
        if self._channel is not None and self._channel >= self.info.num_channels:
            raise AudioError(
                f"{self.path}: no channel {self._channel}, there are {self.info.num_channels}"
            )

    def _block_frames(self) -> int:
        return max(1, BLOCK_SAMPLES // self.info.num_channels)

    def _decode(self, num_frames: int) -> np.ndarray:
        """Returns the next (F, C) float32 samples; fewer than asked for at the end."""
        try:
            samples = self._file.read(num_frames, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
            self._forget()
            self._position = sys.maxsize  # wherever it is now: the next part begins with a jump
            raise AudioError(f"{self.path}: cannot be read ({cause_of(error)})") from error
        self._position += len(samples)
        return np.asarray(samples)

    def _to_mono(self, samples: np.ndarray) -> np.ndarray:
        if self._channel is not None:
            return np.ascontiguousarray(samples[:, self._channel])
        return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)

    def _go_to(self, start: int) -> np.ndarray:
        """Makes `start` the next sample, but for those that are returned: decoded before."""
        held_from = self._position - len(self._held)
        if held_from <= start <= self._position:
            return self._held[start - held_from :]
        self._forget()
        try:
            if self._file.seekable():
                self._position = self._file.seek(start)
                return self._held
        except (soundfile.SoundFileError, ValueError) as error:
            raise AudioError(f"{self.path}: cannot be read ({cause_of(error)})") from error
        return self._skip_to(start)

    def _skip_to(self, start: int) -> np.ndarray:
        """Decodes up to `start`, in formats (GSM, G.721) that have no way to go anywhere."""
        if start < self._position:
            self._file.close()
            self._file, self._position = self._open(), 0
        while self._position < start:
            if not len(self._decode(min(start - self._position, self._block_frames()))):
                break
        return self._held

    def _hold(self, samples: np.ndarray) -> None:
        """Keeps the last samples, since the next part may begin a little before this one's end."""
        length = round(_HELD_S * self.info.rate_hz)
        self._held = np.concatenate([self._held, samples])[-length:]

    def _forget(self) -> None:
        self._held = np.zeros(0, dtype=np.float32)

    def _refuse_bad(self, num_bad: int, total: int) -> None:
        if num_bad:
            raise AudioError(f"{self.path}: {num_bad} of {total} samples are NaN or infinite")


def check_regular(path: Path) -> None:
    """Refuses what reading might wait on for ever or never end: pipes, devices, loops of links.

    Raises:
        AudioError: Says what is there instead of a file with content.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        broken = path.is_symlink()
        missing = f"no such file ({os.readlink(path)})" if broken else "no such file"
        raise AudioError(f"{path}: {'a link to ' if broken else ''}{missing}") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read ({cause_of(error)})") from error
    for is_kind, what in _KINDS:
        if is_kind(status.st_mode):
            raise AudioError(f"{path}: {what}")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: a device, not a recording")
    if status.st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")
    try:
        open(path, "rb").close()
    except OSError as error:  # libsndfile says no more than "System error"
        raise AudioError(f"{path}: cannot be read ({cause_of(error)})") from error


def cause_of(error: Exception) -> str:
    """One line of an error's text, without the path, which the message has already."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join((text or type(error).__name__).split()).rstrip(".")
