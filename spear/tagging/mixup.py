"""MixUp on waveforms (Zhang et al., ICLR 2018; on sounds as Gong et al., Interspeech 2021).

A clip becomes w x clip + (1 - w) x another clip of the batch, its labels the same mean of both,
with w ~ Beta(10, 10): near one half. The shorter of the two is followed by silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spear.errors import ConfigError

Floats = NDArray[np.float32]


@dataclass
class MixupConfig:
    """How often clips are mixed, and how evenly."""

    probability: float = 0.5
    """Probability that a clip is mixed with another of its batch; 0 turns MixUp off."""
    beta: float = 10.0
    """Both parameters of the Beta distribution of the weight: large values mix half and half."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not 0.0 <= self.probability <= 1.0:
            raise ConfigError(f"mixup.probability {self.probability} is not in 0 .. 1")
        if not self.beta > 0:
            raise ConfigError(f"mixup.beta is {self.beta}: it must be above 0")


def mixup(
    audio: Sequence[Floats], targets: Floats, config: MixupConfig, rng: np.random.Generator
) -> tuple[list[Floats], Floats]:
    """Mixes the clips of a batch.

    Args:
        audio: B clips, each (S,) float32, of any lengths.
        targets: (B, C) float32 labels, 0 to 1.
        config: How often, how evenly.
        rng: Where every random number comes from.

    Returns:
        B clips, none longer than the longest before, and (B, C) labels. A batch of one is not
        mixed.
    """
    mixed, labels = list(audio), targets.copy()
    if len(audio) < 2 or config.probability == 0:
        return mixed, labels
    for row, clip in enumerate(audio):
        if rng.random() >= config.probability:
            continue
        other = (row + int(rng.integers(1, len(audio)))) % len(audio)
        weight = np.float32(rng.beta(config.beta, config.beta))
        mixed[row] = _add(clip * weight, audio[other] * (1 - weight))
        labels[row] = weight * targets[row] + (1 - weight) * targets[other]
    return mixed, labels


def _add(one: Floats, other: Floats) -> Floats:
    """Adds clips from their beginnings on; the shorter ends in silence."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
