"""Recordings of any length: overlapping windows, recognised like short recordings, then stitched.

Memory grows with the square of what is encoded at once, so a long recording is cut into windows
that overlap. In an overlap both transcripts are there; where they have the same token at the same
time, one ends and the other begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from spear.asr.apply.subtitles import join_tokens
from spear.asr.apply.utterances import Recording
from spear.asr.model import Transcript
from spear.asr.tokenizer import WORD_BEGIN
from spear.audio import SAMPLE_RATE_HZ
from spear.audio.io import AudioParts
from spear.errors import ConfigError

SAME_TIME_S = 0.1
"""Within this two windows may see the same token begin: a few frames."""


@dataclass
class WindowConfig:
    """How long recordings are cut."""

    length_s: float = 30.0
    """Seconds of a window; shorter recordings are recognised whole."""
    overlap_s: float = 6.0
    """Seconds that a window shares with the next."""

    def __post_init__(self) -> None:
        """Refuses windows that do not get on."""
        if not 0 < self.overlap_s <= self.length_s / 2:
            raise ConfigError(
                f"windows.overlap_s is {self.overlap_s}: above 0, and at most half of "
                f"windows.length_s {self.length_s}"
            )


@dataclass(frozen=True)
class Window:
    """A part of a recording on disk."""

    path: Path
    """The recording."""
    start: int
    """First sample at 16 kHz."""
    end: int
    """The sample after the last."""

    def __call__(self) -> np.ndarray:
        """Reads (S,) float32 at 16 kHz, without the rest of the recording."""
        with AudioParts(self.path) as parts:
            return parts.read(self.start, self.end)

    @property
    def start_s(self) -> float:
        """Where it begins, in seconds."""
        return self.start / SAMPLE_RATE_HZ

    def recording(self) -> Recording:
        """Returns the window as something to recognise."""
        return Recording(str(self.path), (self.end - self.start) / SAMPLE_RATE_HZ, self)


def cut_windows(path: Path, num_samples: int, config: WindowConfig) -> list[Window]:
    """Cuts a recording of so many samples at 16 kHz into windows; together they hold all of it."""
    length = round(config.length_s * SAMPLE_RATE_HZ)
    step = length - round(config.overlap_s * SAMPLE_RATE_HZ)
    starts = range(0, max(num_samples - length, 0) + step, step)
    windows = [Window(path, start, min(start + length, num_samples)) for start in starts]
    # The last one has less than `length`; where it lies within the one before it is not needed.
    return [w for w in windows if w.start == 0 or w.end - w.start > length - step]


def stitch(windows: Sequence[Window], transcripts: Sequence[Transcript]) -> Transcript:
    """Joins the transcripts of a recording's windows, whose times count from their own starts.

    Args:
        windows: Of one recording, in order; at least one.
        transcripts: What was recognised in each.

    Returns:
        One transcript with times from the recording's start. Its score is the sum of theirs.
    """
    if len(windows) == 1:
        return transcripts[0]
    parts = [_shifted(*pair) for pair in zip(windows, transcripts, strict=True)]
    joined = parts[0]
    for (left, right), part in zip(pairwise(windows), parts[1:], strict=True):
        joined = _join(joined, part, right.start_s, left.end / SAMPLE_RATE_HZ)
    tokens = [token for token, _ in joined]
    score = sum(one.score for one in transcripts)
    return Transcript(join_tokens(tokens), tokens, [time for _, time in joined], score)


Timed = list[tuple[str, float]]
"""Tokens with the seconds at which they begin."""


def _shifted(window: Window, transcript: Transcript) -> Timed:
    times = (round(time + window.start_s, 4) for time in transcript.times_s)
    return list(zip(transcript.tokens, times, strict=True))


def _join(left: Timed, right: Timed, start_s: float, end_s: float) -> Timed:
    """Joins what two windows heard that share the seconds from `start_s` to `end_s`."""
    middle = (start_s + end_s) / 2
    shared = [
        (abs(time - middle), i, j)
        for i, (token, time) in enumerate(left)
        if time >= start_s - SAME_TIME_S
        for j, (other, other_time) in enumerate(right)
        if token == other and abs(time - other_time) <= SAME_TIME_S
    ]
    if shared:
        _, i, j = min(shared)
        return left[:i] + right[j:]
    return _join_at(left, right, middle)


def _join_at(left: Timed, right: Timed, middle: float) -> Timed:
    """Joins at a time, or at the next beginning of a word where the right side has one."""
    begins = [time for token, time in right if time >= middle and token.startswith(WORD_BEGIN)]
    seam = begins[0] if begins else middle
    return [pair for pair in left if pair[1] < seam] + [pair for pair in right if pair[1] >= seam]
