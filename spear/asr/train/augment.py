"""Speed perturbation of the ASR training data.

It works on one utterance at a time, before batching, and draws from the generator that it is given,
so that the same (seed, epoch, step) gives the same data whatever the number of workers. Masks and
warping are in `spear.finetune.spec_augment`.
"""

import numpy as np

from spear.audio import resample
from spear.errors import ConfigError

SAMPLE_RATE_HZ = 16000


def check_speeds(factors: tuple[float, ...]) -> None:
    """Refuses speed factors that cannot be meant.

    Raises:
        ConfigError: There is none, or one is outside 0.5 .. 2.
    """
    if not factors or not all(0.5 <= factor <= 2.0 for factor in factors):
        raise ConfigError(f"speeds {list(factors)}: give factors of 0.5 to 2, e.g. [0.9, 1.0, 1.1]")


def perturb_speed(
    audio: np.ndarray, factors: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
    """Plays a recording at a speed drawn from `factors`; pitch and tempo change together.

    Kaldi's three-way speed perturbation (Ko et al., Interspeech 2015) is (0.9, 1.0, 1.1); there
    each copy is seen once an epoch, here one of them is drawn.

    Args:
        audio: (S,) float32, 16 kHz.
        factors: Speeds to choose from with equal probability; 1.1 is a tenth faster.
        rng: Where the choice comes from.

    Returns:
        (S / factor,) float32.
    """
    factor = factors[int(rng.integers(len(factors)))]
    return resample(audio, round(SAMPLE_RATE_HZ * factor), SAMPLE_RATE_HZ)
