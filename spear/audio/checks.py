"""What an encoder refuses to take for 16 kHz mono audio, and how it says so."""

import torch
from torch import Tensor

from spear.errors import AudioError

SAMPLE_RATE_HZ = 16000
FRAME_HOP = 320
"""Samples between encoder frames at 50 Hz."""
_PADDING_SAMPLES = SAMPLE_RATE_HZ // 10
# Float audio lies in [-1, 1]; beyond this the samples are surely int16 values that were cast.
MAX_AMPLITUDE = 100.0


def check_rate(sampling_rate: int | None) -> None:
    """Refuses audio of another rate, where the rate is told.

    Raises:
        AudioError: It is not 16000.
    """
    if sampling_rate is not None and sampling_rate != SAMPLE_RATE_HZ:
        raise AudioError(
            f"audio has a sampling rate of {sampling_rate} Hz, the model takes {SAMPLE_RATE_HZ}: "
            "resample it first"
        )


def check_audio(audio: Tensor, audio_lens: Tensor) -> None:
    """Refuses what cannot be a padded batch of 16 kHz mono audio.

    Raises:
        AudioError: Wrong shape, an integer type, samples that are NaN, infinite or far outside
            [-1, 1], or lengths that are not 1 to S.
    """
    if audio.ndim != 2:
        raise AudioError(
            f"audio has shape {tuple(audio.shape)}, expected (batch, samples): "
            "average the channels of stereo, add a batch axis to a single recording"
        )
    _check_type(audio)
    if audio_lens.shape != audio.shape[:1]:
        raise AudioError(
            f"audio_lens has shape {tuple(audio_lens.shape)} for {audio.shape[0]} recordings"
        )
    if audio.numel() == 0:
        raise AudioError(f"audio of shape {tuple(audio.shape)} is empty: give at least one sample")
    if not bool(((audio_lens > 0) & (audio_lens <= audio.shape[1])).all()):
        raise AudioError(
            f"audio_lens {audio_lens.tolist()} must lie between 1 and the {audio.shape[1]} samples"
        )
    # Padding may hold anything, so only valid samples are looked at.
    valid = torch.arange(audio.shape[1], device=audio.device) < audio_lens[:, None]
    _check_peak(float(audio.abs().masked_fill(~valid, 0.0).max()))


def check_unpadded(audio: Tensor) -> None:
    """Refuses a batch that looks padded, where nobody said how long its recordings are.

    Padding would be encoded as if it were sound. A recording looks padded if it ends in exact zeros
    of 0.1 s or more, others of its batch do not, and it is not silent as a whole.

    Args:
        audio: (B, S); what else it is is not looked at.

    Raises:
        AudioError: Some recordings look padded.
    """
    if audio.ndim != 2 or audio.shape[0] < 2 or audio.shape[1] < _PADDING_SAMPLES:
        return
    ends_silent = (audio[:, -_PADDING_SAMPLES:] == 0).all(dim=1)
    padded = ends_silent & (audio != 0).any(dim=1)
    if bool(padded.any()) and not bool(ends_silent.all()):
        rows = padded.nonzero().flatten().tolist()
        raise AudioError(
            f"recordings {rows} of the batch end in zeros, as padding does, and nothing tells "
            "their lengths: give audio_lens or attention_mask (full ones, if the zeros are silence)"
        )


def as_recording(audio: Tensor) -> Tensor:
    """Returns one recording as (S,); its samples are not looked at.

    Raises:
        AudioError: It is neither (S,) nor (1, S), or empty.
    """
    if audio.ndim == 2 and audio.shape[0] == 1:
        audio = audio[0]
    check_samples(audio[:0] if audio.ndim == 1 else audio)
    if len(audio) == 0:
        raise AudioError("audio is empty: a recording needs at least one sample")
    return audio


def check_samples(audio: Tensor) -> None:
    """Refuses what cannot be samples (S,) of one recording; there may be none.

    Raises:
        AudioError: Wrong shape, an integer type, or unusable samples.
    """
    if audio.ndim != 1:
        raise AudioError(
            f"audio has shape {tuple(audio.shape)}, expected the (samples,) of one recording: "
            "average the channels of stereo"
        )
    _check_type(audio)
    if len(audio) > 0:
        _check_peak(float(audio.abs().max()))


def _check_type(audio: Tensor) -> None:
    if not audio.is_floating_point():
        raise AudioError(f"audio is {audio.dtype}, expected floats in [-1, 1]: divide by 32768")


def _check_peak(peak: float) -> None:
    if not peak <= MAX_AMPLITUDE:
        hint = ": divide 16-bit samples by 32768" if peak > MAX_AMPLITUDE else ""
        raise AudioError(
            f"audio has a sample of magnitude {peak:g}, expected finite floats in [-1, 1]{hint}"
        )
