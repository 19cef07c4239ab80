"""Recordings of any length: windows with context, whose frames together are a recording's.

Memory grows with the square of what is encoded at once, so a long recording is encoded in windows
that see some seconds beyond their ends. Only frames in their middle are kept; all frames of a
recording are searched at once, so that words, language model and phrases go over the seams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spear.asr.apply.utterances import Recording
from spear.audio import Fbank, num_fbank_frames
from spear.audio.fbank import FRAME_SHIFT
from spear.encoders.windows import Windows
from spear.errors import ConfigError
from spear.zipformer import Zipformer


@dataclass
class WindowConfig:
    """How long recordings are cut."""

    length_s: float = 30.0
    """Seconds of a window; shorter recordings are encoded whole."""
    overlap_s: float = 6.0
    """Seconds that a window shares with the next: of the first half one keeps the frames, of the
    second half the other."""

    def __post_init__(self) -> None:
        """Refuses windows that do not get on."""
        if not 0 < self.overlap_s <= self.length_s / 2:
            raise ConfigError(
                f"windows.overlap_s is {self.overlap_s}: above 0, and at most half of "
                f"windows.length_s {self.length_s}"
            )

    def for_encoder(self, encoder: Zipformer) -> Windows:
        """Returns the windows in frames of an encoder.

        Raises:
            ConfigError: They are shorter than the steps of its slowest layers.
        """
        core_s = self.length_s - self.overlap_s
        return Windows.of_seconds(core_s, self.overlap_s / 2, encoder)


@dataclass(frozen=True)
class Window:
    """Fbank frames of a recording.

    Attributes:
        number: Which recording.
        seen: What is encoded.
        core: What is kept of it, counted from its first frame; open at the recording's end.
    """

    number: int
    seen: slice
    core: slice

    @property
    def num_frames(self) -> int:
        """Length of what is encoded."""
        return int(self.seen.stop - self.seen.start)

    @property
    def is_last(self) -> bool:
        """Whether the recording ends with it."""
        return self.core.stop is None

    def fbank(self, recording: Recording, fbank: Fbank) -> Tensor:
        """Reads its part of the recording and computes the features (T, M), those of the whole."""
        # A frame sees a little more than its own samples: a neighbour on either side is left out.
        first = max(self.seen.start - 1, 0)
        last = recording.num_samples if self.is_last else (self.seen.stop + 1) * FRAME_SHIFT
        audio = torch.from_numpy(recording.read(first * FRAME_SHIFT, last)).unsqueeze(0)
        features, _ = fbank(audio, torch.tensor([audio.size(1)]))
        start = self.seen.start - first
        part: Tensor = features[0, start : start + self.num_frames]
        return part


def cut_windows(
    recordings: Sequence[Recording], order: Sequence[int], windows: Windows | None
) -> Iterator[Window]:
    """Yields the windows of recordings, one recording after the other; None leaves them whole."""
    for number in order:
        num_frames = num_fbank_frames(recordings[number].num_samples)
        if windows is None:
            yield Window(number, slice(0, num_frames), slice(0, None))
        else:
            yield from (Window(number, *parts) for parts in windows.cut(num_frames))
