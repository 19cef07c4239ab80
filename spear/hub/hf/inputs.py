"""Audio under the names that users of transformers and of the published checkpoints give it."""

import torch
from torch import Tensor

from spear.errors import AudioError


def audio_of(
    input_values: Tensor | None,
    attention_mask: Tensor | None,
    audio: Tensor | None,
    audio_lens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Returns the audio (B, S) under either of its names, and lengths (B,) where there are some.

    Raises:
        AudioError: There is no audio, or twice, or a mask does not fit.
    """
    if (input_values is None) == (audio is None):
        raise AudioError("give the audio once, as input_values=(batch, samples) or audio=")
    samples = audio if input_values is None else input_values
    assert samples is not None
    if attention_mask is None or audio_lens is not None:
        return samples, audio_lens
    if attention_mask.ndim == 1:
        return samples, attention_mask
    return samples, _lens_of(attention_mask, samples)


def _lens_of(mask: Tensor, samples: Tensor) -> Tensor:
    """Returns the lengths (B,) that a mask (B, S) tells.

    Raises:
        AudioError: It has another shape, or padding anywhere but at the end.
    """
    if mask.shape != samples.shape:
        raise AudioError(
            f"attention_mask has shape {tuple(mask.shape)} for audio {tuple(samples.shape)}: "
            "it has one entry per sample"
        )
    kept = mask.to(torch.bool)
    if bool((kept[:, 1:] & ~kept[:, :-1]).any()):
        raise AudioError("attention_mask has a 1 behind a 0: pad recordings at their end")
    return kept.sum(dim=1)
