"""Audio of any lhotse cut as 16 kHz mono, through the project's own reading and resampling.

lhotse mixes tracks of one rate only, and resamples with torchaudio; `CutReader` reads plain files
itself (with the checks of `spear.audio`, and of a long one just the window that is wanted), lays
the tracks of a joined cut at their offsets, and leaves to lhotse what has transforms, gains or no
file.
"""

from typing import Any

import numpy as np
from lhotse.cut import Cut, MixedCut, PaddingCut

from spear.audio.io import SAMPLE_RATE_HZ, AudioParts
from spear.audio.resampling import resample
from spear.errors import AudioError


class CutReader:
    """Reads cuts, keeping the last recording open: windows of a long one follow each other."""

    def __init__(self) -> None:
        """Starts with nothing open."""
        self._parts: AudioParts | None = None
        self._key: tuple[str, int | None] | None = None

    def load(self, cut: Cut, number: int = 0, total: int = 1) -> np.ndarray:
        """Returns the audio of a cut, or one of its equal windows.

        Args:
            cut: A lhotse cut with a recording; multi-channel audio is averaged unless the cut
                names one channel.
            number: Which window, from 0.
            total: How many windows the cut has; they meet without overlap.

        Returns:
            (S,) float32 at 16 kHz. Of a plain file no more is read than the window.

        Raises:
            AudioError: A recording cannot be read, the cut lies outside it, or has no samples.
        """
        if isinstance(cut, PaddingCut):
            audio = np.zeros(round(cut.duration * SAMPLE_RATE_HZ), dtype=np.float32)
        elif isinstance(cut, MixedCut) and _is_plain_join(cut):
            audio = self._load_join(cut)
        elif isinstance(cut, MixedCut) or not _is_plain_file(cut):
            audio = _load_by_lhotse(cut)
        else:
            return self._load_file(cut, number, total)
        start, end = window_bounds(len(audio), number, total)
        return _not_empty(cut, audio[start:end])

    def close(self) -> None:
        """Closes the recording that is open."""
        if self._parts is not None:
            self._parts.close()
        self._parts = self._key = None

    def _load_join(self, cut: MixedCut) -> np.ndarray:
        audio = np.zeros(round(cut.duration * SAMPLE_RATE_HZ), dtype=np.float32)
        for track in cut.tracks:
            samples = self.load(track.cut)
            start = round(track.offset * SAMPLE_RATE_HZ)
            end = min(start + len(samples), len(audio))  # rounding may differ by a sample
            audio[start:end] += samples[: end - start]
        return audio

    def _load_file(self, cut: Any, number: int, total: int) -> np.ndarray:
        recording = cut.recording
        single = isinstance(cut.channel, int) and recording.num_channels > 1
        parts = self._open(str(recording.sources[0].source), cut.channel if single else None)
        first = round(cut.start * SAMPLE_RATE_HZ)
        length = round(cut.duration * SAMPLE_RATE_HZ)
        # A manifest's seconds at another rate may be off by a sample here; more is an error.
        if first + length > parts.num_samples + SAMPLE_RATE_HZ // 100:
            raise AudioError(
                f"{recording.sources[0].source}: cut {cut.id!r} ends at {cut.end:.3f} s and the "
                f"recording at {parts.num_samples / SAMPLE_RATE_HZ:.3f} s"
            )
        start, end = window_bounds(length, number, total)
        return _not_empty(cut, parts.read(first + start, first + end))

    def _open(self, path: str, channel: int | None) -> AudioParts:
        if self._parts is None or self._key != (path, channel):
            self.close()
            self._parts, self._key = AudioParts(path, channel=channel), (path, channel)
        return self._parts


def window_bounds(num_samples: int, number: int, total: int) -> tuple[int, int]:
    """Returns the first sample of one of `total` equal windows, and the one after its last."""
    return num_samples * number // total, num_samples * (number + 1) // total


def _not_empty(cut: Cut, audio: np.ndarray) -> np.ndarray:
    if audio.size == 0:
        raise AudioError(f"cut {cut.id!r}: no samples")
    return audio


def _is_plain_join(cut: MixedCut) -> bool:
    return not cut.transforms and all(track.snr is None for track in cut.tracks)


def _is_plain_file(cut: Any) -> bool:
    recording = cut.recording
    sources = recording.sources
    return len(sources) == 1 and sources[0].type == "file" and not recording.transforms


def _load_by_lhotse(cut: Any) -> np.ndarray:
    """Whatever lhotse can load: (C, S) at the cut's rate -> (S,) at 16 kHz."""
    try:
        samples = np.asarray(cut.load_audio(), dtype=np.float32)
    except Exception as error:  # lhotse's backends raise whatever their library does
        cause = str(error).split("\n", maxsplit=1)[0]
        raise AudioError(f"cut {cut.id!r}: cannot be read ({cause})") from error
    if not np.isfinite(samples).all():
        raise AudioError(f"cut {cut.id!r}: has samples that are NaN or infinite")
    return resample(samples.mean(axis=0), cut.sampling_rate, SAMPLE_RATE_HZ)
