"""Audio of any lhotse cut as 16 kHz mono, through the project's own reading and resampling.

lhotse mixes tracks of one rate only, and resamples with torchaudio; `load_cut` reads plain files
itself (with the checks of `spear.audio`), lays the tracks of a joined cut at their offsets, and
leaves to lhotse what has transforms, gains or no file.
"""

from typing import Any

import numpy as np
from lhotse.cut import Cut, MixedCut, PaddingCut

from spear.audio.io import SAMPLE_RATE_HZ, read_audio
from spear.audio.resampling import resample
from spear.errors import AudioError


class CutReader:
    """Reads cuts, keeping the last recording: windows of a long one follow each other."""

    def __init__(self) -> None:
        """Starts with nothing kept."""
        self._kept: tuple[tuple[str, int | None], np.ndarray] | None = None

    def load(self, cut: Cut) -> np.ndarray:
        """Returns the audio of a cut.

        Args:
            cut: A lhotse cut with a recording; multi-channel audio is averaged unless the cut
                names one channel.

        Returns:
            (S,) float32 at 16 kHz.

        Raises:
            AudioError: A recording cannot be read, or the cut lies outside it.
        """
        if isinstance(cut, PaddingCut):
            return np.zeros(round(cut.duration * SAMPLE_RATE_HZ), dtype=np.float32)
        if isinstance(cut, MixedCut) and _is_plain_join(cut):
            return self._load_join(cut)
        if isinstance(cut, MixedCut) or not _is_plain_file(cut):
            return _load_by_lhotse(cut)
        return self._load_file(cut)

    def _load_join(self, cut: MixedCut) -> np.ndarray:
        audio = np.zeros(round(cut.duration * SAMPLE_RATE_HZ), dtype=np.float32)
        for track in cut.tracks:
            samples = self.load(track.cut)
            start = round(track.offset * SAMPLE_RATE_HZ)
            end = min(start + len(samples), len(audio))  # rounding may differ by a sample
            audio[start:end] += samples[: end - start]
        return audio

    def _load_file(self, cut: Any) -> np.ndarray:
        recording = cut.recording
        single = isinstance(cut.channel, int) and recording.num_channels > 1
        key = (str(recording.sources[0].source), cut.channel if single else None)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, read_audio(key[0], channel=key[1]))
        audio = self._kept[1]
        start = round(cut.start * SAMPLE_RATE_HZ)
        end = start + round(cut.duration * SAMPLE_RATE_HZ)
        # A manifest's seconds at another rate may be off by a sample here; more is an error.
        if end > len(audio) + SAMPLE_RATE_HZ // 100:
            raise AudioError(
                f"{key[0]}: cut {cut.id!r} ends at {cut.end:.3f} s and the recording at "
                f"{len(audio) / SAMPLE_RATE_HZ:.3f} s"
            )
        return audio[start:end]


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
