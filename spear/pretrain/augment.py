"""Which clips of a batch are augmented, and how: noise for most, token mixing for the others.

Takes clean examples, gives examples of the same order. Secondary speakers are taken from the clean
clips of the same batch, so nothing is decoded twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spear.audio.noise import NoiseSource, add_noise
from spear.errors import ConfigError
from spear.pretrain.collate import Example
from spear.pretrain.token_mixing import mix_examples


@dataclass
class AugmentConfig:
    """Noise and token mixing of training clips."""

    prob: float = 0.5
    """Fraction of the clips that are augmented."""

    mixing_share: float = 0.2
    """Fraction of the augmented clips that get a second speaker instead of noise. Clips of general
    audio, and speech without a partner in its batch, get noise in any case."""

    noise_source: Literal["auto", "synthetic", "audio", "folder"] = "auto"
    """Where noise comes from: synthetic (white to brown), the run's own clips of general audio, or
    the shard folder noise_folder. auto is audio where the run has such clips, else synthetic."""

    noise_folder: str | None = None
    """Shard folder with recordings of noise, for noise_source folder."""

    noise_snr_db: tuple[float, float] = (10.0, 20.0)
    """Range of the signal-to-noise ratio, in decibels."""

    noise_on_audio: bool = True
    """Whether clips of general audio get noise too."""

    mixing_ratio_db: tuple[float, float] = (-5.0, 5.0)
    """Range of the first speaker's power over the second's, in decibels."""

    mixing_max_delay_s: float = 2.0
    """The second speaker begins after 0 to this many seconds."""

    def __post_init__(self) -> None:
        for name in ("prob", "mixing_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"augment.{name} is {getattr(self, name)}: give a fraction, 0 to 1"
                )
        for name in ("noise_snr_db", "mixing_ratio_db"):
            if len(getattr(self, name)) != 2 or getattr(self, name)[0] > getattr(self, name)[1]:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: give (low, high)")
        if self.mixing_max_delay_s < 0:
            raise ConfigError("augment.mixing_max_delay_s must be 0 or more")
        if (self.noise_source == "folder") != (self.noise_folder is not None):
            raise ConfigError("augment.noise_source: folder and augment.noise_folder go together")

    @property
    def growth_s(self) -> float:
        """Seconds by which a batch's longest clip may grow."""
        return self.mixing_max_delay_s if self.prob * self.mixing_share > 0 else 0.0


class Augmenter:
    """Augments the clips of a batch.

    Args:
        config: Probabilities and ranges.
        speech_rates_hz: Token rate of each speech teacher; their tokens can be mixed.
        noise: Where noise comes from.
    """

    def __init__(
        self, config: AugmentConfig, speech_rates_hz: Mapping[str, float], noise: NoiseSource
    ) -> None:
        self.config = config
        self.speech_rates_hz = dict(speech_rates_hz)
        self.noise = noise

    def __call__(self, examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
        """Augments a batch.

        Args:
            examples: B clean clips.
            rng: Generator of this batch's augmentation.

        Returns:
            B clips; those not chosen are the same objects.
        """
        chosen = rng.random(len(examples)) < self.config.prob
        mixed = rng.random(len(examples)) < self.config.mixing_share
        return [
            self._augment(position, examples, bool(mixed[position]), rng)
            if chosen[position]
            else example
            for position, example in enumerate(examples)
        ]

    def _augment(
        self, position: int, examples: Sequence[Example], mix: bool, rng: np.random.Generator
    ) -> Example:
        example = examples[position]
        if mix and self._can_be_mixed(example):
            result = self._mix(position, examples, rng)
            if result is not None:
                return result
        if example.is_audio and not self.config.noise_on_audio:
            return example
        noise = self.noise(len(example.audio), example.id, rng)
        audio = add_noise(example.audio, noise, rng.uniform(*self.config.noise_snr_db))
        return Example(example.id, audio, example.is_audio, example.tokens, example.valid)

    def _mix(
        self, position: int, examples: Sequence[Example], rng: np.random.Generator
    ) -> Example | None:
        """Returns the clip with a second speaker; None where the batch has none to offer."""
        partners = [
            other
            for place, other in enumerate(examples)
            if place != position and self._can_be_mixed(other)
        ]
        if not partners:
            return None
        return mix_examples(
            examples[position],
            partners[int(rng.integers(len(partners)))],
            delay_s=rng.uniform(0.0, self.config.mixing_max_delay_s),
            ratio_db=rng.uniform(*self.config.mixing_ratio_db),
            rates_hz=self.speech_rates_hz,
            rng=rng,
        )

    def _can_be_mixed(self, example: Example) -> bool:
        """Speech with the tokens of every speech teacher."""
        has_tokens = all(teacher in example.tokens for teacher in self.speech_rates_hz)
        return bool(self.speech_rates_hz) and not example.is_audio and has_tokens
