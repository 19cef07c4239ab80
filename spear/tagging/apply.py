"""A tagger on recordings of any length: probabilities of its classes for each.

A recording is cut into windows; the frames of all its windows are pooled together, so that what is
said of an hour is said of the hour, and memory does not grow with the square of it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear.audio import SAMPLE_RATE_HZ, Fbank
from spear.tagging.data import compute_fbank
from spear.tagging.model import TaggingModel
from spear.tagging.pooling import pool

Floats = NDArray[np.float32]


class Tagger:
    """Applies a model.

    Args:
        model: In evaluation mode.
        window_s: Seconds of a window.
        batch_s: Seconds of audio that are encoded at once, padding counted.
    """

    def __init__(
        self, model: TaggingModel, *, window_s: float = 10.0, batch_s: float = 100.0
    ) -> None:
        self.model = model
        self.fbank = Fbank(num_mel_bins=model.encoder.config.feature_dim)
        self.device = next(model.parameters()).device
        self._window = max(1, round(window_s * SAMPLE_RATE_HZ))
        self._windows_at_once = max(1, int(batch_s / window_s))

    def probabilities(self, recordings: Iterable[Floats]) -> Iterator[Floats]:
        """Tags recordings.

        Args:
            recordings: Each (S,) float32 at 16 kHz.

        Yields:
            (C,) float32, for each recording in order.
        """
        for group in self._groups(recordings):
            windows = [self._cut(audio) for audio in group]
            frames = iter(self._frames([one for own in windows for one in own]))
            for own in windows:
                yield self._pool([next(frames) for _ in own])

    def windows(self, audio: Floats) -> list[tuple[float, float, Floats]]:
        """Tags every window of a recording by itself.

        Returns:
            Begin and end in seconds, and (C,) float32 probabilities.
        """
        cut = self._cut(audio)
        ends = np.cumsum([len(one) for one in cut]) / SAMPLE_RATE_HZ
        begins = [0.0, *ends[:-1].tolist()]
        found = [self._pool([frames]) for frames in self._frames(cut)]
        return list(zip(begins, ends.tolist(), found, strict=True))

    def _groups(self, recordings: Iterable[Floats]) -> Iterator[list[Floats]]:
        """Puts recordings together until a batch's windows are full."""
        group: list[Floats] = []
        num_windows = 0
        for audio in recordings:
            group.append(audio)
            num_windows += len(self._cut(audio))
            if num_windows >= self._windows_at_once:
                yield group
                group, num_windows = [], 0
        if group:
            yield group

    def _cut(self, audio: Floats) -> list[Floats]:
        starts = range(0, max(len(audio), 1), self._window)
        return [audio[start : start + self._window] for start in starts]

    @torch.no_grad()
    def _frames(self, windows: Sequence[Floats]) -> list[Tensor]:
        """Returns (T, C) logits of the frames of every window."""
        found: list[Tensor] = []
        for start in range(0, len(windows), self._windows_at_once):
            fbank, lens = compute_fbank(self.fbank, windows[start : start + self._windows_at_once])
            logits, num_frames = self.model.frame_logits(
                fbank.to(self.device), lens.to(self.device)
            )
            found += [x[:n] for x, n in zip(logits, num_frames.tolist(), strict=True)]
        return found

    def _pool(self, frames: Sequence[Tensor]) -> Floats:
        logits = torch.cat(list(frames)).unsqueeze(0)
        lens = torch.tensor([logits.size(1)], device=logits.device)
        pooled = pool(logits, lens, self.model.pooling)[0]
        return pooled.sigmoid().cpu().numpy()
