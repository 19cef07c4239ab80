"""Noise under the ASR training data, MUSAN-style: recorded noise, music or babble from shards.

The recordings come from shard folders of their own, made by `spear prepare` and `spear shard` from
MUSAN or any folder of noise. A clip is chosen with a probability and gets a random piece of a
random recording at a random signal-to-noise ratio.
"""

from dataclasses import dataclass, field

import numpy as np

from spear.audio.noise import Floats, RecordedNoise, add_noise
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.errors import ConfigError


@dataclass
class NoiseConfig:
    """Recorded noise under training clips."""

    shards: list[str] = field(default_factory=list)
    """Shard folders of noise; none: no noise is added."""
    probability: float = 0.5
    """Share of the training clips that get noise."""
    snr_db: tuple[float, float] = (10.0, 20.0)
    """Range of the signal-to-noise ratio, in decibels."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not 0.0 <= self.probability <= 1.0:
            raise ConfigError(f"noise.probability {self.probability} is not in 0 .. 1")
        if len(self.snr_db) != 2 or self.snr_db[0] > self.snr_db[1]:
            raise ConfigError(f"noise.snr_db is {list(self.snr_db)}: give [low, high]")


class NoiseAdder:
    """Adds noise to some clips.

    Args:
        config: How often and how loud; it names at least one shard folder.

    Raises:
        DataError: A shard folder is missing or broken.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        index = ClipIndex([SourceConfig(path) for path in config.shards])
        self._noise = RecordedNoise(np.arange(len(index)), index.clip)

    def __call__(self, audio: Floats, name: str, rng: np.random.Generator) -> Floats:
        """Returns the clip, with noise or as it is.

        Args:
            audio: (S,) float32, 16 kHz.
            name: Its id: a recording is no noise to itself.
            rng: Where every random number comes from.
        """
        if rng.random() >= self.config.probability:
            return audio
        noise = self._noise(len(audio), name, rng)
        return add_noise(audio, noise, rng.uniform(*self.config.snr_db))


def open_noise(config: NoiseConfig) -> NoiseAdder | None:
    """Opens the noise that a configuration asks for; None where it asks for none."""
    return NoiseAdder(config) if config.shards and config.probability > 0 else None
