"""Change of sampling rate by soxr, the one resampler of the project.

Everything that reads audio goes through here, so that a recording gives the same samples whether
it is sharded, fine-tuned on or passed to an exported model.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr


def resample(audio: np.ndarray, rate_hz: int, target_rate_hz: int) -> np.ndarray:
    """Resamples a mono signal with soxr's 20-bit "HQ" filter.

    Args:
        audio: (S,) float32.
        rate_hz: Samples per second of `audio`.
        target_rate_hz: Samples per second wanted.

    Returns:
        (S',) float32 with S' = S * target_rate_hz / rate_hz to within one sample; `audio` itself
        when the rates are equal.

    Raises:
        ValueError: A rate is not positive, or `audio` is not one-dimensional.
    """
    if rate_hz <= 0 or target_rate_hz <= 0:
        raise ValueError(f"rates must be positive, not {rate_hz} and {target_rate_hz} Hz")
    if audio.ndim != 1:
        raise ValueError(f"expected one channel as (S,), got shape {audio.shape}")
    if rate_hz == target_rate_hz:
        return audio
    resampled = soxr.resample(
        np.ascontiguousarray(audio, dtype=np.float32), rate_hz, target_rate_hz, quality="HQ"
    )
    return np.asarray(resampled, dtype=np.float32)


def resample_blocks(
    blocks: Iterable[np.ndarray], rate_hz: int, target_rate_hz: int
) -> Iterator[np.ndarray]:
    """Resamples a mono signal that comes in blocks, to the bit as `resample` does the whole.

    Args:
        blocks: (S,) float32 each.
        rate_hz: Samples per second of the blocks.
        target_rate_hz: Samples per second wanted.

    Yields:
        (S',) float32; `blocks` themselves when the rates are equal.
    """
    if rate_hz == target_rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate_hz, target_rate_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block, dtype=np.float32))
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
