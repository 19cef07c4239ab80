"""Streaming: a causal Zipformer chunk by chunk, equal to its pass over the whole.

A chunk of c frames at 50 Hz needs 2 c fbank frames, and 13 more for the windows of the front end:
7 for its strided convolutions, 6 for the three frames that its 7 x 7 convolution looks ahead. Of
the past every layer keeps the keys and values of its left context and half a kernel of its
convolutions: constant memory, however long the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.errors import ConfigError, DataError
from spear.zipformer.config import ZipformerConfig
from spear.zipformer.frames import StreamFrames
from spear.zipformer.layer import ZipformerLayer
from spear.zipformer.memory import LayerMemory
from spear.zipformer.model import Zipformer
from spear.zipformer.stack import DownsampledStack, ZipformerStack
from spear.zipformer.subsampling import LOG_EPS, PAD_LEFT, PAD_RIGHT, num_subsampled

_LOOK = 3  # frames at 50 Hz that the front end's last convolution sees on either side
_WINDOW = 7  # fbank frames beyond two per frame that its first three see


@dataclass
class StreamState:
    """What has to be kept of streams between two chunks.

    Attributes:
        num_processed: (B,) int64, frames at 50 Hz that were encoded.
        convolved: (B, 3, F', C) float, the last frames within the front end.
        layers: One dictionary of (B, L, C) tensors per layer.
    """

    num_processed: Tensor
    convolved: Tensor
    layers: list[dict[str, Tensor]]

    @classmethod
    def join(cls, states: Sequence["StreamState"]) -> "StreamState":
        """Makes one batch of the streams of several; they need not have begun together."""
        return cls(
            torch.cat([state.num_processed for state in states]),
            torch.cat([state.convolved for state in states]),
            [
                {name: torch.cat([layer[name] for layer in layers]) for name in layers[0]}
                for layers in zip(*(state.layers for state in states), strict=True)
            ],
        )

    def split(self) -> list["StreamState"]:
        """Returns every stream of the batch by itself."""
        return [
            StreamState(
                self.num_processed[i : i + 1],
                self.convolved[i : i + 1],
                [{name: x[i : i + 1] for name, x in layer.items()} for layer in self.layers],
            )
            for i in range(len(self.num_processed))
        ]


def can_stream(config: ZipformerConfig) -> bool:
    """Tells whether a model of this configuration can be run chunk by chunk."""
    return config.causal and config.chunk_size[-1] > 0 and config.left_context_frames[-1] > 0


class StreamingZipformer:
    """Runs a causal Zipformer on chunks of any number of streams at once.

    The chunk size and the left context are the last of the configuration's, as in evaluation.

    Args:
        model: In evaluation mode.

    Attributes:
        chunk_size: c, frames at 50 Hz of a chunk.
        num_input_frames: Fbank frames that a step sees.
        input_shift: Fbank frames between the inputs of two steps.

    Raises:
        ConfigError: The model is not causal, or its chunks or left context have no end.
    """

    def __init__(self, model: Zipformer) -> None:
        config = model.config
        self.chunk_size, left_context = config.chunk_size[-1], config.left_context_frames[-1]
        if not can_stream(config):
            raise ConfigError(
                f"this Zipformer cannot stream: causal {config.causal}, chunk_size "
                f"{config.chunk_size}, left_context_frames {config.left_context_frames}; it needs "
                "causal true and a last chunk size and left context above 0"
            )
        self.model = model
        self.left_context = max(left_context // self.chunk_size, 1) * self.chunk_size
        self.input_shift = 2 * self.chunk_size
        self.num_input_frames = self.input_shift + 2 * _LOOK + _WINDOW

    def initial_state(self, batch_size: int = 1) -> StreamState:
        """Returns the state of streams that have not begun."""
        embed, config = self.model.encoder_embed, self.model.config
        shape = (batch_size, _LOOK, embed.num_bands, config.embed_channels[2])
        layers: list[dict[str, Tensor]] = []
        for stack, factor in zip(
            self.model.encoder.encoders, config.downsampling_factor, strict=True
        ):
            assert isinstance(stack, ZipformerStack | DownsampledStack)
            num_remembered = self.left_context // factor
            for layer in stack.layers:
                assert isinstance(layer, ZipformerLayer)
                layers.append(layer.empty_memory(batch_size, num_remembered))
        weight = embed.out.weight
        processed = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return StreamState(processed, weight.new_zeros(shape), layers)

    @torch.no_grad()
    def step(
        self, fbank: Tensor, num_ahead: Tensor, state: StreamState
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Encodes the next chunk of every stream.

        Args:
            fbank: (B, `num_input_frames`, M) float. Step k of a stream sees the frames from
                k * `input_shift` on, of features that begin with the front end's padding where it
                has one. What lies behind the end may hold anything.
            num_ahead: (B,) int64, frames at 50 Hz that the stream still has from here to its end;
                any number from `chunk_size` + 3 on where the end is not in sight.
            state: From the step before, or `initial_state`. It is not changed.

        Returns:
            output: (B, chunk_size / output_downsampling_factor, D) float.
            lens: (B,) int64, valid frames of it.
            state: For the next step.

        Raises:
            DataError: The input has another shape.
        """
        expected = (len(state.num_processed), self.num_input_frames, self.model.config.feature_dim)
        if tuple(fbank.shape) != expected:
            raise DataError(f"fbank has shape {tuple(fbank.shape)}, a step takes {expected}")
        x, convolved = self._embed(fbank, num_ahead, state)
        frames = StreamFrames(
            num_ahead.clamp(0, self.chunk_size),
            self.chunk_size,
            self.chunk_size,
            num_processed=state.num_processed,
            num_before=self.left_context,
        )
        memories = [LayerMemory(layer) for layer in state.layers]
        encoded = self.model.encoder.run(x, frames, memories)
        following = StreamState(
            state.num_processed + frames.lens, convolved, [memory.updated for memory in memories]
        )
        return encoded.output, encoded.lens, following

    def _embed(self, fbank: Tensor, num_ahead: Tensor, state: StreamState) -> tuple[Tensor, Tensor]:
        """Returns (B, c, dim) and what the front end has to keep."""
        embed = self.model.encoder_embed
        joined = torch.cat((state.convolved, embed.convolve(fbank)), dim=1)
        place = torch.arange(joined.shape[1], device=fbank.device) - _LOOK
        before = place < -state.num_processed.unsqueeze(1)
        behind = place >= num_ahead.unsqueeze(1)
        x = embed.embed(joined, (before | behind)[:, :, None, None])
        own = slice(_LOOK, _LOOK + self.chunk_size)
        return x[:, own], joined[:, self.chunk_size : self.chunk_size + _LOOK]


class ZipformerStream:
    """One stream of fbank frames that come as they like; what is ready comes out.

    Args:
        model: A causal Zipformer in evaluation mode.
    """

    def __init__(self, model: Zipformer) -> None:
        self._streaming = StreamingZipformer(model)
        self._state = self._streaming.initial_state()
        config = model.config
        self._pads = (PAD_LEFT, PAD_RIGHT) if config.frontend_pad else (0, 0)
        self._waiting = self._padding(self._pads[0], model.encoder_embed.out.weight)
        self._has_ended = False

    def push(self, fbank: Tensor) -> Tensor:
        """Takes the next frames (T, M) float; returns (T', D), the frames that they complete.

        Raises:
            DataError: The frames have another shape, or the stream has ended.
        """
        self._require_open()
        num_bins = self._waiting.shape[1]
        if fbank.ndim != 2 or fbank.shape[1] != num_bins:
            raise DataError(f"fbank has shape {tuple(fbank.shape)}, expected (frames, {num_bins})")
        self._waiting = torch.cat((self._waiting, fbank))
        outputs = []
        while len(self._waiting) >= self._streaming.num_input_frames:
            outputs.append(self._step(self._streaming.chunk_size + _LOOK))
        return self._join(outputs)

    def finish(self) -> Tensor:
        """Ends the stream; returns the frames (T', D) that were waiting for more.

        Raises:
            DataError: It has ended before.
        """
        self._require_open()
        self._has_ended = True
        pad = self._padding(self._pads[1], self._waiting)
        self._waiting = torch.cat((self._waiting, pad))
        num_ahead = num_subsampled(len(self._waiting), frontend_pad=False)
        outputs = []
        for left in range(num_ahead, 0, -self._streaming.chunk_size):
            outputs.append(self._step(left))
        return self._join(outputs)

    def _require_open(self) -> None:
        if self._has_ended:
            raise DataError("this stream has ended: begin another for the next recording")

    def _step(self, num_ahead: int) -> Tensor:
        streaming = self._streaming
        seen = self._waiting[: streaming.num_input_frames]
        seen = F.pad(seen, (0, 0, 0, streaming.num_input_frames - len(seen)), value=LOG_EPS)
        ahead = torch.tensor([num_ahead], device=seen.device)
        output, lens, self._state = streaming.step(seen.unsqueeze(0), ahead, self._state)
        self._waiting = self._waiting[streaming.input_shift :]
        return output[0, : int(lens)]

    def _join(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat([self._waiting.new_zeros(0, self._streaming.model.output_dim), *outputs])

    def _padding(self, num_frames: int, like: Tensor) -> Tensor:
        return like.new_full((num_frames, self._streaming.model.config.feature_dim), LOG_EPS)
