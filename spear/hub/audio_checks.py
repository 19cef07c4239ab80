"""What an encoder refuses to take for 16 kHz mono audio, and how it says so."""

import torch
from torch import Tensor

from spear.errors import AudioError

SAMPLE_RATE_HZ = 16000
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


def as_recording(audio: Tensor) -> Tensor:
    """Returns one recording as (S,); its samples are not looked at.

    Raises:
        AudioError: It is neither (S,) nor (1, S), or empty.
    """
    if audio.ndim == 2 and audio.shape[0] == 1:
        audio = audio[0]
    check_samples(audio[:0])
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
