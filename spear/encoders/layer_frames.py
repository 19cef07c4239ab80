"""Frames of one layer, or of the output, for recordings of any length: how many, how wide, when."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear.audio.checks import SAMPLE_RATE_HZ, check_audio
from spear.audio.fbank import FRAME_SHIFT, num_fbank_frames
from spear.encoders.encoder import EncoderOutput, SpearEncoder
from spear.encoders.frame_grid import HOP_MS, layer_centre_ms, output_centre_ms
from spear.encoders.layers import check_layers

ONE_PASS_S = 40
"""Longer batches are encoded recording by recording, in windows of this length."""


class LayerFrames:
    """Reads one layer's frames from recordings of any length, in evaluation mode.

    Args:
        encoder: The encoder.
        layer: Number of a layer, from 0 for the front end; None for the encoder's output.

    Attributes:
        dim: D, width of a frame.
        hop_ms: Milliseconds between frames: 20, or 40 for the output of a model at 25 Hz.
        first_ms: The middle of frame 0 in milliseconds from the recording's start.

    Raises:
        ConfigError: The layer does not exist.
    """

    def __init__(self, encoder: SpearEncoder, layer: int | None = None) -> None:
        check_layers([] if layer is None else [layer], encoder.num_layers)
        self._encoder = encoder
        self._layer = layer
        self.dim = encoder.output_dim if layer is None else encoder.model.layer_dims[layer]
        config = encoder.config
        self.hop_ms = HOP_MS * (config.output_downsampling_factor if layer is None else 1)
        self.first_ms = output_centre_ms(config) if layer is None else layer_centre_ms(config)

    @torch.no_grad()
    def __call__(self, audio: Tensor, audio_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes a batch; what a recording gets does not depend on its batch mates.

        A batch of more than 40 s is encoded recording by recording in bounded memory.

        Args:
            audio: (B, S) float, 16 kHz mono in [-1, 1], on any device.
            audio_lens: (B,) int64, valid samples of each; all S where not given.

        Returns:
            (B, T, D) float32 on the device of the audio, padding holds anything; and (B,) int64
            valid frames. There is at least one: shorter recordings are lengthened by silence.

        Raises:
            AudioError: The batch has another shape or type, or unusable samples or lengths.
        """
        lens = full_lens(audio) if audio_lens is None else audio_lens
        check_audio(audio, lens)
        audio, lens = lengthen_short(self._encoder, audio, lens)
        self._encoder.eval()
        if audio.shape[1] <= ONE_PASS_S * SAMPLE_RATE_HZ:
            device = self._encoder.device
            output = self._encoder(audio.to(device), lens.to(device))
            frames = self.pick(output).to(audio.device)
        else:
            rows = zip(audio, lens.tolist(), strict=True)
            frames = pad_sequence([self._recording(row[:end]) for row, end in rows], True)
        counts = [self.num_frames(length) for length in lens.tolist()]
        return frames.float(), torch.tensor(counts, device=audio.device)

    def _recording(self, audio: Tensor) -> Tensor:
        """Encodes (S,) audio in windows, to (T, D)."""
        layers = [] if self._layer is None else [self._layer]
        output = self._encoder.encode_long(audio, window_s=ONE_PASS_S, layers=layers)
        frames: Tensor = (output["hidden_states"] or [output["encoder_out"]])[0]
        return frames[0]

    def pick(self, output: EncoderOutput) -> Tensor:
        """Returns the frames (B, T, D) among what the encoder returned."""
        if self._layer is None:
            return output["encoder_out"]
        return (output["embeddings"], *output["hidden_states"])[self._layer]

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames a recording of so many samples has."""
        if self._layer is None:
            return self._encoder.num_frames(num_samples)
        return self._encoder.model.num_layer_frames(num_fbank_frames(num_samples))


def lengthen_short(encoder: SpearEncoder, audio: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """Puts silence behind recordings that are too short for a single frame.

    Args:
        encoder: Whose frames.
        audio: (B, S) float, padded with anything.
        lens: (B,) int64, valid samples, all above 0.

    Returns:
        Audio and lengths; the same where nothing is too short.
    """
    num_fbank = next(n for n in range(1, 100) if encoder.model.num_output_frames(n) > 0)
    least = num_fbank * FRAME_SHIFT - FRAME_SHIFT // 2
    if int(lens.min()) >= least:
        return audio, lens
    audio = F.pad(audio, (0, max(least - audio.shape[1], 0)))
    padding = torch.arange(audio.shape[1], device=audio.device) >= lens.to(audio.device)[:, None]
    return audio.masked_fill(padding, 0.0), lens.clamp(min=least)


def full_lens(audio: Tensor) -> Tensor:
    """Returns lengths (B,) of a batch (B, S) without padding."""
    return torch.full(audio.shape[:1], audio.shape[-1], device=audio.device)
