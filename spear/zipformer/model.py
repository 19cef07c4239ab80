"""The student encoder: the front end, the stacks, and what they return."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from spear.errors import DataError
from spear.zipformer.config import ZipformerConfig
from spear.zipformer.frames import Frames
from spear.zipformer.layer import LayerShape
from spear.zipformer.memory import LayerMemory
from spear.zipformer.modules.resampling import Downsample, match_channels, upsample, widest
from spear.zipformer.schedule import FloatLike, ScheduledFloat
from spear.zipformer.stack import DownsampledStack, ZipformerStack
from spear.zipformer.subsampling import Conv2dSubsampling, num_subsampled

_LAYER_RATE_HZ = 50.0
_FEATURE_DROP_PROB = 0.125
_FINAL_LAYER_SKIP = 0.035


@dataclass
class ZipformerOutput:
    """What the encoder returns.

    Attributes:
        output: (B, T', D) float, the encoder's output; padding holds anything.
        lens: (B,) int64, valid frames of it.
        embedded: (B, T, D of the first stack) float at 50 Hz, what the front end made.
        layers: (output, factor) of every layer, as computed at 50 Hz / factor.
        num_frames: Frames of the batch at 50 Hz.
    """

    output: Tensor
    lens: Tensor
    embedded: Tensor
    layers: list[tuple[Tensor, int]]
    num_frames: int

    @cached_property
    def hidden_states(self) -> list[Tensor]:
        """The output (B, T, D of its stack) of every layer, repeated to 50 Hz when asked for."""
        return [self.layer(number) for number in range(1, len(self.layers) + 1)]

    def layer(self, number: int) -> Tensor:
        """Returns (B, T, D) of a layer, counted from 1, at 50 Hz; 0 is the front end."""
        if number == 0:
            return self.embedded
        x, factor = self.layers[number - 1]
        return upsample(x, factor, self.num_frames)


class ZipformerEncoder(nn.Module):
    """The stacks: vectors at 50 Hz to the encoder's output.

    Args:
        config: The architecture.
        dropout: Probability in the feed-forward modules, or its schedule.
    """

    def __init__(self, config: ZipformerConfig, dropout: FloatLike) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(
            build_stack(config, index, dropout) for index in range(config.num_stacks)
        )
        # At 50 Hz there is nothing to downsample, and the published checkpoints have no weight.
        self.downsample_output = (
            Downsample(config.output_downsampling_factor)
            if config.output_downsampling_factor > 1
            else None
        )

    def forward(self, x: Tensor, lens: Tensor) -> ZipformerOutput:
        """Runs all stacks on x (B, T, encoder_dim[0]) with valid frames lens (B,)."""
        return self.run(x, Frames(lens, x.shape[1], *self._draw_chunks()))

    def run(
        self, x: Tensor, frames: Frames, memories: Sequence[LayerMemory] = ()
    ) -> ZipformerOutput:
        """Runs all stacks on x (B, T, encoder_dim[0]).

        Args:
            x: Vectors at 50 Hz.
            frames: Which of them are there.
            memories: Of streams: one for every layer of every stack.
        """
        rates = {factor: frames.downsampled(factor) for factor in self.config.downsampling_factor}
        rates[1] = frames
        embedded, outputs = x, list[Tensor]()
        layers: list[tuple[Tensor, int]] = []
        for stack, dim, factor, num_layers, mask in zip(
            self.encoders,
            self.config.encoder_dim,
            self.config.downsampling_factor,
            self.config.num_encoder_layers,
            self._feature_masks(x),
            strict=True,
        ):
            own = memories[len(layers) :][:num_layers]
            x, inner = stack(match_channels(x, dim), mask, rates, own)
            outputs.append(x)
            layers += [(output, factor) for output in inner]
        full, out_frames = widest(outputs), frames
        if self.downsample_output is not None:
            full = self.downsample_output(full, frames)
            out_frames = frames.downsampled(self.config.output_downsampling_factor)
        return ZipformerOutput(full, out_frames.lens, embedded, layers, frames.num_frames)

    def _feature_masks(self, x: Tensor) -> Sequence[Tensor | None]:
        """Draws per utterance which of the higher channels (B, 1, C) each stack may use.

        With probability 0.125 an utterance has to do with `encoder_unmasked_dim` channels, with
        about as much again it loses the upper half of the others; the same in all stacks.
        """
        if not self.training:
            return [None] * self.config.num_stacks
        kept = torch.rand(2, x.shape[0], 1, 1, device=x.device) > _FEATURE_DROP_PROB
        lower = kept[0].to(x.dtype)
        upper = lower * kept[1]
        masks = []
        for dim, unmasked in zip(
            self.config.encoder_dim, self.config.encoder_unmasked_dim, strict=True
        ):
            half = (dim - unmasked) // 2
            ones = torch.ones_like(lower).expand(-1, -1, unmasked)
            pieces = [ones, lower.expand(-1, -1, half), upper.expand(-1, -1, dim - unmasked - half)]
            masks.append(torch.cat(pieces, dim=2))
        return masks

    def _draw_chunks(self) -> tuple[int, int]:
        """Returns chunk size and left context in chunks: drawn in training, the last otherwise."""
        if not self.config.causal:
            return -1, -1
        chunk_size = self._draw(self.config.chunk_size)
        left_context = self._draw(self.config.left_context_frames)
        if chunk_size == -1 or left_context == -1:
            return chunk_size, -1
        return chunk_size, max(left_context // chunk_size, 1)

    def _draw(self, choices: tuple[int, ...]) -> int:
        return choices[int(torch.randint(len(choices), ()))] if self.training else choices[-1]


def build_stack(
    config: ZipformerConfig, index: int, dropout: FloatLike
) -> ZipformerStack | DownsampledStack:
    """Builds one stack of a configuration.

    The stacks come to be used one after the other over `warmup_batches`, beginning after the time
    that the front end needs to learn something first.
    """
    shape = LayerShape(
        dim=config.encoder_dim[index],
        pos_dim=config.pos_dim,
        num_heads=config.num_heads[index],
        query_head_dim=config.query_head_dim[index],
        pos_head_dim=config.pos_head_dim[index],
        value_head_dim=config.value_head_dim[index],
        feedforward_dim=config.feedforward_dim[index],
        kernel_size=config.cnn_module_kernel[index],
        causal=config.causal,
    )
    factor = config.downsampling_factor[index]
    share = config.warmup_batches / (config.num_stacks + 1)
    stack = ZipformerStack(
        shape,
        config.num_encoder_layers[index],
        dropout,
        warmup=((index + 1) * share, (index + 2) * share),
        final_layer_skip=_FINAL_LAYER_SKIP * factor**0.5,
    )
    return stack if factor == 1 else DownsampledStack(stack, shape.dim, factor)


class Zipformer(nn.Module):
    """The student: log-mel features in, one vector per 20 ms (or 40 ms) out.

    In evaluation the output for an utterance does not depend on its batch mates. Parameter names
    are icefall's (`encoder_embed.*`, `encoder.*`). Before and in training, call `set_schedule`.

    Args:
        config: The architecture.

    Attributes:
        config: The same.
        output_dim: Channels of the output.
        frame_rate_hz: Frames of the output in a second.
        layer_dims: Channels of the front end's output and of each layer's.
    """

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self.frame_rate_hz = _LAYER_RATE_HZ / config.output_downsampling_factor
        stacks = zip(config.encoder_dim, config.num_encoder_layers, strict=True)
        layers = (dim for dim, num_layers in stacks for _ in range(num_layers))
        self.layer_dims = (config.encoder_dim[0], *layers)
        dropout: FloatLike = ScheduledFloat((0.0, 0.3), (20000.0, 0.1))
        if config.dropout is not None:
            dropout = config.dropout
        self.encoder_embed = Conv2dSubsampling(config, dropout)
        self.encoder = ZipformerEncoder(config, dropout)

    def forward(self, fbank: Tensor, lens: Tensor) -> ZipformerOutput:
        """Encodes a batch.

        Args:
            fbank: (B, T, feature_dim) float, log-mel features at 100 Hz; padding may hold anything.
            lens: (B,) int64, valid frames. An utterance too short for one output frame gets none.

        Raises:
            DataError: The shapes do not fit each other or the model.
        """
        self._check(fbank, lens)
        if num_subsampled(fbank.shape[1], self.config.frontend_pad) == 0:
            return self._empty(fbank, lens)
        x, lens = self.encoder_embed(fbank, lens)
        output: ZipformerOutput = self.encoder(x, lens)
        return output

    def set_checkpointing(self, on: bool) -> None:
        """Chooses whether the backward pass runs every layer again instead of keeping its inside.

        It takes about a third longer, and of each layer only the input is kept.
        """
        for module in self.modules():
            if isinstance(module, ZipformerStack):
                module.checkpointing = on

    def num_output_frames(self, num_fbank_frames: int) -> int:
        """Returns how many frames come out for an utterance of so many fbank frames."""
        frames = self.num_layer_frames(num_fbank_frames)
        return -(-frames // self.config.output_downsampling_factor)

    def num_layer_frames(self, num_fbank_frames: int) -> int:
        """Returns how many frames the layers have for an utterance of so many fbank frames."""
        return num_subsampled(num_fbank_frames, self.config.frontend_pad)

    def _check(self, fbank: Tensor, lens: Tensor) -> None:
        if fbank.ndim != 3 or fbank.shape[2] != self.config.feature_dim:
            raise DataError(
                f"fbank has shape {tuple(fbank.shape)}, expected (batch, frames, "
                f"{self.config.feature_dim}): extract features with that many mel bins"
            )
        if lens.shape != fbank.shape[:1]:
            raise DataError(f"lens has shape {tuple(lens.shape)} for {fbank.shape[0]} utterances")
        # On a GPU looking at the values would wait for it, and a graph has none.
        if lens.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if bool((lens > fbank.shape[1]).any()):
            raise DataError(f"lens {lens.tolist()} are above the {fbank.shape[1]} frames of fbank")

    def _empty(self, fbank: Tensor, lens: Tensor) -> ZipformerOutput:
        embedded, *layers = (fbank.new_zeros(fbank.shape[0], 0, dim) for dim in self.layer_dims)
        output = fbank.new_zeros(fbank.shape[0], 0, self.output_dim)
        return ZipformerOutput(
            output, torch.zeros_like(lens), embedded, [(layer, 1) for layer in layers], 0
        )
