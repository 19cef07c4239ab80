"""Recordings to the padded batches that SPEAR models take, as a transformers feature extractor.

The log-mel features themselves are computed in the model, on its device. In a folder that was
exported this file is `feature_extraction_spear.py` and needs no `spear`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from spear.audio.checks import SAMPLE_RATE_HZ, check_rate, check_samples
from spear.errors import AudioError


class SpearFeatureExtractor(SequenceFeatureExtractor):
    """Pads recordings and makes their mask.

    Args:
        feature_size: 1, samples have one value.
        sampling_rate: 16000, in Hz.
        padding_value: What is put behind shorter recordings; the model does not look at it.
        **kwargs: See transformers.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 (as transformers has it)

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = SAMPLE_RATE_HZ,
        padding_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("return_attention_mask", True)
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Makes a batch.

        Args:
            raw_speech: One recording (S,) or several, as arrays, tensors or lists of floats in
                [-1, 1].
            sampling_rate: Theirs in Hz. Give it: it is checked.
            padding: As of transformers' `pad`; by default to the longest.
            return_tensors: "pt" or "np".
            **kwargs: `max_length`, `truncation`, `pad_to_multiple_of`, `return_attention_mask` of
                `pad`.

        Returns:
            `input_values` (B, S) float32 and `attention_mask` (B, S) int.

        Raises:
            AudioError: Another rate, stereo, integers, or unusable samples.
        """
        check_rate(sampling_rate)
        recordings = [_samples(recording) for recording in _as_list(raw_speech)]
        batch = BatchFeature({"input_values": recordings})
        return self.pad(batch, padding=padding, return_tensors=return_tensors, **kwargs)


def _as_list(raw_speech: Any) -> Sequence[Any]:
    """Returns recordings as a list of them, whether one was given or several."""
    if isinstance(raw_speech, np.ndarray | torch.Tensor):
        return [raw_speech] if raw_speech.ndim < 2 else list(raw_speech)
    if len(raw_speech) == 0 or np.ndim(raw_speech[0]) == 0:
        return [raw_speech]
    return list(raw_speech)


def _samples(recording: Any) -> Any:
    """Returns one recording as float32 (S,).

    Raises:
        AudioError: It is empty, no mono recording, or has unusable samples.
    """
    samples = torch.as_tensor(np.asarray(recording))
    check_samples(samples)
    if len(samples) == 0:
        raise AudioError("audio is empty: a recording needs at least one sample")
    return samples.to(torch.float32).numpy()
