"""Noise under a clip: the student hears it, the targets stay those of the clean clip.

Noise comes from recordings (general audio of the run, or a folder of noise) or is made: white to
brown, by a power spectrum 1 / f^a. It is scaled to a signal-to-noise ratio over the whole clip.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MIN_POWER = 1e-10
"""Mean square below which a clip counts as silent (-100 dB): no ratio to it makes sense."""


class NoiseSource(Protocol):
    """Where noise comes from."""

    def __call__(self, num_samples: int, exclude: str, rng: np.random.Generator) -> Floats:
        """Returns (num_samples,) float32 noise that is not the recording with id `exclude`."""


class SyntheticNoise:
    """Coloured noise: power falls as 1 / f^a, a ~ U(0, 2) (0 is white, 1 pink, 2 brown)."""

    def __call__(self, num_samples: int, exclude: str, rng: np.random.Generator) -> Floats:
        """See `NoiseSource`; `exclude` does not matter."""
        del exclude
        exponent = np.float32(rng.uniform(0.0, 2.0))
        length = fast_length(num_samples)
        white = rng.standard_normal(num_samples, dtype=np.float32)
        spectrum = np.fft.rfft(white, n=length)
        # Frequency 0 takes the factor of frequency 1: a constant is not heard.
        frequencies = np.maximum(np.arange(len(spectrum), dtype=np.float32), 1)
        spectrum *= frequencies ** (-exponent / 2)
        return np.fft.irfft(spectrum, n=length)[:num_samples].astype(np.float32, copy=False)


def fast_length(num_samples: int) -> int:
    """Returns a length from `num_samples` on, an eighth more at most, that has small factors.

    It is 8 to 16 times a power of two. A Fourier transform takes 20 times as long where the length
    is a prime.
    """
    block = 1 << max(0, num_samples.bit_length() - 4)
    return -(-num_samples // block) * block


class RecordedNoise:
    """Pieces of recordings; one that is too short is repeated.

    Args:
        numbers: (n,) numbers of the recordings, at least one.
        read: Gives id and (S,) float32 audio of a recording by its number.
    """

    def __init__(
        self, numbers: NDArray[np.integer], read: Callable[[int], tuple[str, Floats]]
    ) -> None:
        if not len(numbers):
            raise ValueError("no recordings to take noise from")
        self.numbers = numbers
        self.read = read

    def __call__(self, num_samples: int, exclude: str, rng: np.random.Generator) -> Floats:
        """See `NoiseSource`. With no recording but the excluded one, the noise is silence."""
        place = int(rng.integers(len(self.numbers)))
        name, audio = self.read(int(self.numbers[place]))
        if name == exclude:
            # The next one: every other recording stays possible, and one draw is enough.
            name, audio = self.read(int(self.numbers[(place + 1) % len(self.numbers)]))
        if name == exclude:
            return np.zeros(num_samples, dtype=np.float32)
        if len(audio) < num_samples:
            offset = int(rng.integers(max(len(audio), 1)))
            return np.resize(np.roll(audio, -offset), num_samples)
        offset = int(rng.integers(len(audio) - num_samples + 1))
        return audio[offset : offset + num_samples]


def power(audio: Floats) -> float:
    """Returns the mean square of a waveform (0 for an empty one)."""
    return float(np.mean(np.square(audio, dtype=np.float64))) if len(audio) else 0.0


def gain_for(signal_power: float, added_power: float, ratio_db: float) -> float:
    """Returns g such that signal_power / (g^2 added_power) is `ratio_db` decibels.

    Where either is silent there is no such g; 0 is returned, so that nothing is added.
    """
    if min(signal_power, added_power) < MIN_POWER:
        return 0.0
    return float(np.sqrt(signal_power / (added_power * 10.0 ** (ratio_db / 10.0))))


def add_noise(audio: Floats, noise: Floats, snr_db: float) -> Floats:
    """Adds noise at a signal-to-noise ratio.

    Args:
        audio: (S,) float32 clip.
        noise: (S,) float32, any scale.
        snr_db: Power of the clip over the power of the noise as added, in decibels.

    Returns:
        (S,) float32; the clip itself where clip or noise is silent.
    """
    gain = gain_for(power(audio), power(noise), snr_db)
    return audio + np.float32(gain) * noise
