"""The pre-trained encoder as people use it: 16 kHz audio in, frames of features out.

`SpearEncoder` is plain torch: log-mel features, then the Zipformer. The transformers class in
`spear.hub.hf` wraps it; the state-dict names (`model.encoder_embed.*`, `model.encoder.*`,
`model.mask_emb`) are those of the published checkpoints without their outer `model.`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spear.audio.checks import (
    SAMPLE_RATE_HZ,
    as_recording,
    check_audio,
    check_rate,
    check_samples,
    check_unpadded,
)
from spear.audio.fbank import Fbank, num_fbank_frames
from spear.encoders.audio_stream import AudioStream
from spear.encoders.layers import check_layers
from spear.encoders.windows import Windows, encode_windows
from spear.zipformer.config import ZipformerConfig
from spear.zipformer.model import Zipformer
from spear.zipformer.streaming import can_stream

_PIECE = 30 * SAMPLE_RATE_HZ
"""Samples of a long recording that are looked at at once."""


class EncoderOutput(dict[str, Any]):
    """What the encoder returns: a dictionary whose entries are attributes as well.

    Entries:
        encoder_out: (B, T, D) float, the last output; `last_hidden_state` is the same tensor.
        encoder_out_lens: (B,) int64, valid frames.
        hidden_states: list of (B, T, D_layer) float at 50 Hz, one per layer.
        embeddings: (B, T, D of the first layer) float at 50 Hz, what the first layer is given.
        attention_mask: (B, T) bool, True at valid frames.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


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
        fbank, lens = self.on(audio.device)(audio, audio_lens)
        return fbank, lens

    def on(self, device: torch.device) -> Fbank:
        """Returns the features with their constants on a device."""
        if device not in self._by_device:
            self._by_device[device] = Fbank(num_mel_bins=self.num_mel_bins).to(device)
        return self._by_device[device]


class SpearEncoder(nn.Module):
    """Audio to encoder frames.

    Args:
        config: The Zipformer's configuration.

    Attributes:
        config: The same.
        model: The Zipformer; in pre-training its parameter `mask_emb` stood for masked frames.
        sampling_rate: 16000, in Hz.
        frame_rate_hz: Frames per second of `encoder_out`.
        output_dim: Width of `encoder_out`.
        num_layers: Layers, and entries of `hidden_states`.
    """

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Zipformer(config)
        mask_emb = nn.Parameter(torch.empty(config.feature_dim).uniform_(-1, 1))
        self.model.register_parameter("mask_emb", mask_emb)
        self.fbank = DeferredFbank(config.feature_dim)
        self.sampling_rate = SAMPLE_RATE_HZ
        self.frame_rate_hz = self.model.frame_rate_hz
        self.output_dim = self.model.output_dim
        self.num_layers = sum(config.num_encoder_layers)

    def forward(
        self,
        audio: Tensor,
        audio_lens: Tensor | None = None,
        sampling_rate: int | None = None,
    ) -> EncoderOutput:
        """Encodes a batch of recordings; what one gets does not depend on its batch mates.

        Args:
            audio: (B, S) float, 16 kHz mono in [-1, 1], padded at the end with anything.
            audio_lens: (B,) int64, valid samples of each; all S where not given, which is refused
                for a batch that looks padded.
            sampling_rate: Of the audio in Hz, to have it checked.

        Raises:
            AudioError: The batch has another shape, type or rate, or unusable samples or lengths.
        """
        check_rate(sampling_rate)
        if audio_lens is None:
            check_unpadded(audio)
            audio_lens = torch.full((audio.shape[0],), audio.shape[-1], device=audio.device)
        check_audio(audio, audio_lens)
        fbank, fbank_lens = self.fbank(audio, audio_lens)
        return self.encode_fbank(fbank, fbank_lens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames of `encoder_out` a recording of so many samples has."""
        return self.model.num_output_frames(num_fbank_frames(num_samples))

    def encode_fbank(self, fbank: Tensor, fbank_lens: Tensor) -> EncoderOutput:
        """Encodes log-mel features (B, T, M) with valid frames (B,); see `forward`."""
        encoded = self.model(fbank, fbank_lens)
        return _as_output(
            encoded.output, encoded.lens, encoded.hidden_states, embeddings=encoded.embedded
        )

    @torch.no_grad()
    def encode_long(
        self,
        audio: Tensor,
        *,
        window_s: float = 40.0,
        context_s: float = 8.0,
        layers: Sequence[int] = (),
        sampling_rate: int | None = None,
    ) -> EncoderOutput:
        """Encodes one recording of any length in memory that does not grow with it.

        It is cut into windows that see `context_s` beyond their ends, so that the seams are those
        of one pass up to what attention sees further away. A causal model with a left context
        needs no windows, unless layers are asked for: it is run chunk by chunk, to the numbers of
        one pass.

        Args:
            audio: (S,) or (1, S) float, 16 kHz mono in [-1, 1], on any device; windows go to the
                model's, results to the audio's.
            window_s: Seconds of a window that are kept.
            context_s: Seconds on either side of it that are encoded and thrown away.
            layers: Numbers of layers, from 0 for the front end, to return besides.
            sampling_rate: Of the audio in Hz, to have it checked.

        Returns:
            As `forward`, for a batch of one; `hidden_states` are the chosen layers in their order,
            and there are no `embeddings`.

        Raises:
            AudioError: The audio is not one recording, has another rate or unusable samples.
            ConfigError: Windows are too short, or a layer does not exist.
        """
        check_rate(sampling_rate)
        check_layers(layers, self.num_layers)
        audio = as_recording(audio)
        num_fbank = num_fbank_frames(len(audio))
        dims = [self.output_dim, *(self.model.layer_dims[layer] for layer in layers)]
        lens = [self.model.num_output_frames(num_fbank)]
        lens += [self.model.num_layer_frames(num_fbank)] * len(layers)
        results = [
            audio.new_empty(1, length, dim, dtype=torch.float32)
            for length, dim in zip(lens, dims, strict=True)
        ]
        done = [0] * len(results)
        for parts in self._encode_pieces(audio, window_s, context_s, layers):
            for i, part in enumerate(parts):
                results[i][0, done[i] : done[i] + len(part)] = part
                done[i] += len(part)
        assert done == lens, (done, lens)
        return _as_output(results[0], torch.tensor(lens[:1], device=audio.device), results[1:])

    def _encode_pieces(
        self, audio: Tensor, window_s: float, context_s: float, layers: Sequence[int]
    ) -> Iterator[list[Tensor]]:
        """Yields frames (T, D) of the output and of each layer, piece by piece."""

        def pieces() -> Iterator[Tensor]:
            for piece in audio.split(_PIECE):
                check_samples(piece)
                yield piece.float()

        fbank = self.fbank.on(self.device)
        if layers or not can_stream(self.config):
            windows = Windows.of_seconds(window_s, context_s, self.model)
            cut = windows.cut(num_fbank_frames(len(audio)))
            yield from encode_windows(self.model, fbank, pieces(), cut, layers)
            return
        stream = AudioStream(fbank, self.model)
        for piece in pieces():
            yield [stream.push(piece)]
        yield [stream.finish()]

    def stream(self) -> AudioStream:
        """Begins a stream of audio; for causal models with chunks and a left context.

        Raises:
            ConfigError: The model cannot stream; it says why.
        """
        return AudioStream(self.fbank.on(self.device), self.model)


def _as_output(
    output: Tensor, lens: Tensor, hidden_states: list[Tensor], **others: Tensor
) -> EncoderOutput:
    frames = torch.arange(output.shape[1], device=output.device)
    return EncoderOutput(
        encoder_out=output,
        encoder_out_lens=lens,
        hidden_states=hidden_states,
        last_hidden_state=output,
        attention_mask=frames < lens[:, None],
        **others,
    )
