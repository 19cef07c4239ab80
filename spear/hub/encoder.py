"""The pre-trained encoder as people use it: 16 kHz audio in, frames of features out.

`SpearEncoder` is plain torch: log-mel features, then the Zipformer. The transformers class in
`spear.hub.hf` wraps it; the state-dict names (`model.encoder_embed.*`, `model.encoder.*`,
`model.mask_emb`) are those of the published checkpoints without their outer `model.`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from spear.audio import Fbank
from spear.errors import AudioError
from spear.zipformer import Zipformer, ZipformerConfig

SAMPLE_RATE_HZ = 16000
FRAME_HOP = 320  # samples between encoder frames at 50 Hz
# Float audio lies in [-1, 1]; beyond this the samples are surely int16 values that were cast.
MAX_AMPLITUDE = 100.0


class EncoderOutput(dict[str, Any]):
    """What the encoder returns: a dictionary whose entries are attributes as well.

    Entries:
        encoder_out: (B, T, D) float, the last output; `last_hidden_state` is the same tensor.
        encoder_out_lens: (B,) int64, valid frames.
        hidden_states: list of (B, T, D_layer) float, one per layer.
        attention_mask: (B, T) bool, True at valid frames.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class MaskableZipformer(Zipformer):
    """A Zipformer with the vector that stands for masked fbank frames during pre-training."""

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__(config)
        self.mask_emb = nn.Parameter(torch.empty(config.feature_dim).uniform_(-1, 1))


class DeferredFbank:
    """Log-mel features whose constants are made on first use, on the device of the audio.

    transformers builds models on the meta device and then fills in saved weights only; constants
    that were made there would be lost.
    """

    def __init__(self, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins
        self._by_device: dict[torch.device, Fbank] = {}

    def __call__(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Computes (B, T, M) features and their (B,) lengths; see `spear.audio.Fbank`."""
        if audio.device not in self._by_device:
            self._by_device[audio.device] = Fbank(num_mel_bins=self.num_mel_bins).to(audio.device)
        fbank, lens = self._by_device[audio.device](audio, audio_lens)
        return fbank, lens


class SpearEncoder(nn.Module):
    """Audio to encoder frames.

    Args:
        config: The Zipformer's configuration.

    Attributes:
        config: The same.
        model: The Zipformer with its mask vector.
        sampling_rate: 16000, in Hz.
        frame_rate_hz: Frames per second of `encoder_out`.
        output_dim: Width of `encoder_out`.
    """

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MaskableZipformer(config)
        self.fbank = DeferredFbank(config.feature_dim)
        self.sampling_rate = SAMPLE_RATE_HZ
        self.frame_rate_hz = SAMPLE_RATE_HZ / FRAME_HOP / config.output_downsampling_factor
        self.output_dim = self.model.output_dim

    def forward(self, audio: Tensor, audio_lens: Tensor | None = None) -> EncoderOutput:
        """Encodes a batch of recordings; what one gets does not depend on its batch mates.

        Args:
            audio: (B, S) float, 16 kHz mono in [-1, 1], padded at the end with anything.
            audio_lens: (B,) int64, valid samples of each; all S where not given.

        Raises:
            AudioError: The batch has another shape or type, or unusable samples or lengths.
        """
        if audio_lens is None:
            audio_lens = torch.full((audio.shape[0],), audio.shape[-1], device=audio.device)
        check_audio(audio, audio_lens)
        fbank, fbank_lens = self.fbank(audio, audio_lens)
        return self.encode_fbank(fbank, fbank_lens)

    def encode_fbank(self, fbank: Tensor, fbank_lens: Tensor) -> EncoderOutput:
        """Encodes log-mel features (B, T, M) with valid frames (B,); see `forward`."""
        encoded = self.model(fbank, fbank_lens)
        frames = torch.arange(encoded.output.shape[1], device=fbank.device)
        return EncoderOutput(
            encoder_out=encoded.output,
            encoder_out_lens=encoded.lens,
            hidden_states=list(encoded.hidden_states),
            last_hidden_state=encoded.output,
            attention_mask=frames < encoded.lens[:, None],
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
    if not audio.is_floating_point():
        raise AudioError(f"audio is {audio.dtype}, expected floats in [-1, 1]: divide by 32768")
    if audio_lens.shape != audio.shape[:1]:
        raise AudioError(
            f"audio_lens has shape {tuple(audio_lens.shape)} for {audio.shape[0]} recordings"
        )
    if audio.numel() == 0 or not bool(((audio_lens > 0) & (audio_lens <= audio.shape[1])).all()):
        raise AudioError(
            f"audio_lens {audio_lens.tolist()} must lie between 1 and the {audio.shape[1]} samples"
        )
    # Padding may hold anything, so only valid samples are looked at.
    valid = torch.arange(audio.shape[1], device=audio.device) < audio_lens[:, None]
    peak = audio.abs().masked_fill(~valid, 0.0).max()
    if not bool(peak <= MAX_AMPLITUDE):
        raise AudioError(
            f"audio has a sample of magnitude {float(peak)}: expected finite floats in [-1, 1]"
        )
