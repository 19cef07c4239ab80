"""Token mixing: two people talk at once, and the targets name both.

A second speech clip is added to the first after a delay. Where both sound, each target (one frame,
one codebook) is the second clip's with the probability beta = g^2 P2 / (P1 + g^2 P2), its share of
the power; before that it is the first's, after it the second's. Codebooks are predicted
independently, so mixed targets are a soft label of both, although no frame encodes to them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from spear.audio import SAMPLE_RATE_HZ
from spear.audio.noise import gain_for, power
from spear.data.formats.tokens import Tokens
from spear.pretrain.collate import Example


def secondary_share(primary_power: float, secondary_power: float, gain: float) -> float:
    """Returns beta = g^2 P2 / (P1 + g^2 P2), the secondary's share of the power."""
    added = gain * gain * secondary_power
    total = primary_power + added
    return added / total if total > 0 else 0.0


def mix_tokens(
    primary: Tokens,
    secondary: Tokens,
    delay: int,
    beta: float,
    rng: np.random.Generator,
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Mixes the targets of two clips.

    Args:
        primary: (T1, N) uint8 or uint16.
        secondary: (T2, N) of the same type.
        delay: Frames before the secondary begins.
        beta: Probability of the secondary's token where both sound.
        rng: Where the choices come from.

    Returns:
        (max(T1, delay + T2), N) of that type, and bool frames with a target: all but a gap between
        a primary that ends early and a secondary that begins late.
    """
    end = delay + len(secondary)
    length = max(len(primary), end)
    mixed = np.zeros((length, primary.shape[1]), dtype=primary.dtype)
    mixed[: len(primary)] = primary
    overlap = max(0, min(len(primary), end) - delay)
    if end > len(primary):
        mixed[delay + overlap : end] = secondary[overlap:]
    choose = rng.random((overlap, primary.shape[1])) < beta
    both = slice(delay, delay + overlap)
    mixed[both] = np.where(choose, secondary[:overlap], primary[both])
    frames = np.arange(length)
    return mixed, (frames < len(primary)) | (frames >= delay)


def quantize_delay(delay_s: float, rates_hz: Mapping[str, float]) -> float:
    """Rounds a delay down to whole token frames of the slowest teacher, in seconds.

    Audio and tokens are then delayed by exactly the same time.
    """
    hop_s = 1.0 / min(rates_hz.values())
    return int(delay_s / hop_s + 1e-9) * hop_s


def mix_examples(
    primary: Example,
    secondary: Example,
    *,
    delay_s: float,
    ratio_db: float,
    rates_hz: Mapping[str, float],
    rng: np.random.Generator,
) -> Example | None:
    """Adds a second speech clip to a first.

    Args:
        primary: The clip that begins.
        secondary: The clip that is added, not truncated.
        delay_s: Seconds before it begins; rounded down to whole token frames.
        ratio_db: Power of the primary over that of the secondary as added, in decibels.
        rates_hz: Token rate of each speech teacher that both clips have.
        rng: Where the choices of targets come from.

    Returns:
        The mixed clip with the primary's id and the speech teachers' tokens only (a teacher of
        general audio says nothing of the mixture), or None where either clip is silent.
    """
    powers = power(primary.audio), power(secondary.audio)
    gain = gain_for(*powers, ratio_db)
    if gain == 0.0:
        return None
    beta = secondary_share(*powers, gain)
    delay_s = quantize_delay(delay_s, rates_hz)
    start = round(delay_s * SAMPLE_RATE_HZ)
    audio = np.zeros(max(len(primary.audio), start + len(secondary.audio)), dtype=np.float32)
    audio[: len(primary.audio)] = primary.audio
    audio[start : start + len(secondary.audio)] += np.float32(gain) * secondary.audio
    tokens, valid = {}, {}
    for teacher, rate_hz in rates_hz.items():
        tokens[teacher], valid[teacher] = mix_tokens(
            primary.tokens[teacher], secondary.tokens[teacher], round(delay_s * rate_hz), beta, rng
        )
    return Example(primary.id, audio, primary.is_audio, tokens, valid)
