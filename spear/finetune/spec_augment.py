"""SpecAugment on one clip's log-mel features, before batching.

It draws from the generator that it is given, so that the same (seed, epoch, step) gives the same
data whatever the number of workers. SpecAugment is Park et al. (Interspeech 2019) with icefall's
numbers and caps: time masks together never cover more than a fixed fraction of a clip, which keeps
short ones readable.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spear.audio import LOG_EPS
from spear.errors import ConfigError

REFERENCE_MEL_BINS = 80


@dataclass
class SpecAugmentConfig:
    """Time warping, time masks and mel masks on log-mel features of 10 ms frames."""

    probability: float = 0.9
    """Probability that an utterance is augmented at all; 0 turns SpecAugment off."""
    num_time_masks: int = 10
    """Time masks per utterance, at most; fewer where they would not fit `max_time_fraction`."""
    time_mask_frames: int = 100
    """Longest time mask, in fbank frames (10 ms)."""
    max_time_fraction: float = 0.15
    """Largest share of an utterance's frames that all time masks may cover."""
    num_mel_masks: int = 2
    """Mel masks per utterance."""
    mel_mask_bins: int = 27
    """Widest mel mask in bins of an 80-bin filter bank; scaled for other numbers of bins."""
    time_warp_frames: int = 80
    """Largest shift of the warped point, in fbank frames; 0 turns warping off."""
    mask_value: Literal["mean", "floor"] = "mean"
    """What masked values become: the utterance's "mean", or the "floor", log(1e-10)."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        for name in ("probability", "max_time_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"specaugment.{name} {getattr(self, name)} is not in 0 .. 1")
        counts = ("num_time_masks", "time_mask_frames", "num_mel_masks", "mel_mask_bins")
        for name in (*counts, "time_warp_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"specaugment.{name} {getattr(self, name)} is negative")


class SpecAugment:
    """Applies SpecAugment to one utterance.

    Args:
        config: What to apply.
    """

    def __init__(self, config: SpecAugmentConfig) -> None:
        self.config = config

    def __call__(self, fbank: Tensor, rng: np.random.Generator) -> Tensor:
        """Returns an augmented copy.

        Args:
            fbank: (T, M) float32 log-mel, without padding.
            rng: Where every random number comes from.
        """
        return self.copies(fbank, 1, rng)[0]

    def copies(self, fbank: Tensor, num_copies: int, rng: np.random.Generator) -> list[Tensor]:
        """Returns copies that are warped alike and masked each for itself.

        Args:
            fbank: (T, M) float32 log-mel, without padding.
            num_copies: How many; all of them are augmented or none is.
            rng: Where every random number comes from.
        """
        if fbank.size(0) == 0 or rng.random() >= self.config.probability:
            return [fbank] * num_copies
        warped = self._warp(fbank, rng)
        return [self._mask(warped.clone(), rng) for _ in range(num_copies)]

    def _mask(self, fbank: Tensor, rng: np.random.Generator) -> Tensor:
        """Masks (T, M) in place."""
        value = float(fbank.mean()) if self.config.mask_value == "mean" else LOG_EPS
        for start, length in self._time_masks(fbank.size(0), rng):
            fbank[start : start + length] = value
        for start, length in self._mel_masks(fbank.size(1), rng):
            fbank[:, start : start + length] = value
        return fbank

    def _time_masks(self, num_frames: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draws masks as (first frame, length); together at most the fraction of the utterance.

        The budget is shared out evenly over the masks that it takes at full length, so that a
        short utterance has one short mask, not ten of nothing.
        """
        config = self.config
        budget = int(config.max_time_fraction * num_frames)
        if min(budget, config.num_time_masks, config.time_mask_frames) == 0:
            return []
        num_masks = min(config.num_time_masks, math.ceil(budget / config.time_mask_frames))
        return _draw_masks(
            num_frames, num_masks, min(config.time_mask_frames, budget // num_masks), rng
        )

    def _mel_masks(self, num_bins: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        widest = round(self.config.mel_mask_bins * num_bins / REFERENCE_MEL_BINS)
        return _draw_masks(num_bins, self.config.num_mel_masks, min(widest, num_bins), rng)

    def _warp(self, fbank: Tensor, rng: np.random.Generator) -> Tensor:
        """Moves a random frame by up to `time_warp_frames`; stretches one side, squeezes the other.

        Utterances too short for a whole warp on both sides stay as they are.
        """
        reach, num_frames = self.config.time_warp_frames, fbank.size(0)
        if reach == 0 or num_frames <= 2 * (reach + 1):
            return fbank
        center = int(rng.integers(reach + 1, num_frames - reach))
        moved = center + int(rng.integers(-reach, reach + 1))
        left = _stretch(fbank[:center], moved)
        return torch.cat((left, _stretch(fbank[center:], num_frames - moved)))


def _draw_masks(
    size: int, num_masks: int, longest: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draws lengths from 0 .. longest and places that keep the mask inside 0 .. size."""
    lengths = rng.integers(0, longest + 1, size=num_masks)
    return [(int(rng.integers(0, size - length + 1)), int(length)) for length in lengths]


def _stretch(fbank: Tensor, num_frames: int) -> Tensor:
    """(T, M) -> (num_frames, M) by linear interpolation along time."""
    if num_frames == fbank.size(0):
        return fbank
    channels = fbank.T.unsqueeze(0)
    return F.interpolate(channels, size=num_frames, mode="linear", align_corners=False)[0].T
