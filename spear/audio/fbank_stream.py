"""Log-mel features of audio that comes piece by piece, equal to those of the whole.

A frame is ready when the last of its 400 samples is there. Only the samples that frames to come
will look at are kept.
"""

import torch
from torch import Tensor

from spear.audio.fbank import FRAME_LENGTH, FRAME_SHIFT, Fbank, num_fbank_frames

_BEHIND = FRAME_LENGTH - (FRAME_LENGTH - FRAME_SHIFT) // 2
"""Samples from the beginning of a frame's shift to the end of its window."""


class FbankStream:
    """One stream of 16 kHz audio.

    Args:
        fbank: The features; on the device of the audio.
    """

    def __init__(self, fbank: Fbank) -> None:
        self._fbank = fbank
        self._num_before = 0  # frames at the beginning of `_audio` that were given out
        self._audio = fbank.window.new_zeros(0)

    def push(self, audio: Tensor) -> Tensor:
        """Takes the next samples (S,) float; returns the frames (T, M) float32 that are ready."""
        self._audio = torch.cat((self._audio, audio.to(self._audio)))
        ready = (len(self._audio) - _BEHIND) // FRAME_SHIFT + 1
        if ready <= self._num_before:
            return self._fbank.window.new_zeros(0, self._fbank.num_mel_bins)
        frames = self._frames()[self._num_before : ready]
        # The first frame of what is kept has mirrored samples before it: it must be an old one.
        self._audio = self._audio[(ready - 1) * FRAME_SHIFT :]
        self._num_before = 1
        return frames

    def finish(self) -> Tensor:
        """Ends the stream; returns the frames (T, M) that look beyond its end."""
        if num_fbank_frames(len(self._audio)) <= self._num_before:
            return self._fbank.window.new_zeros(0, self._fbank.num_mel_bins)
        return self._frames()[self._num_before :]

    def _frames(self) -> Tensor:
        lens = torch.tensor([len(self._audio)], device=self._audio.device)
        frames: Tensor = self._fbank(self._audio.unsqueeze(0), lens)[0]
        return frames[0]
