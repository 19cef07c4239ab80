"""A stack of layers at one frame rate, and its frame around it: down, layers, up, combine."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spear.zipformer.frames import Frames
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.layer import LayerShape, ZipformerLayer
from spear.zipformer.memory import LayerMemory
from spear.zipformer.modules.bypass import Bypass, mix
from spear.zipformer.modules.positions import RelativePositions
from spear.zipformer.modules.resampling import Downsample, upsample
from spear.zipformer.schedule import FloatLike, ScheduledFloat

_INITIAL_LAYER_SKIP = 0.5


class StackOutput(NamedTuple):
    """What a stack returns.

    Attributes:
        output: (B, T, dim) at the rate of the stack's input.
        layers: The output of every layer, at the rate of the layers.
    """

    output: Tensor
    layers: list[Tensor]


class ZipformerStack(nn.Module):
    """Layers one after the other at one frame rate.

    Args:
        shape: Sizes of every layer.
        num_layers: How many.
        dropout: Probability in the feed-forward modules, or its schedule.
        warmup: Counts between which the layers, one after the other, come to be used: from a skip
            probability of 0.5 each falls to `final_layer_skip` in its share of this interval.
        final_layer_skip: Probability to skip a layer after that.

    Attributes:
        checkpointing: Whether layers are run again in the backward pass instead of kept.
    """

    def __init__(
        self,
        shape: LayerShape,
        num_layers: int,
        dropout: FloatLike,
        warmup: tuple[float, float],
        final_layer_skip: float,
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.encoder_pos = RelativePositions(shape.pos_dim)
        begin, share = warmup[0], (warmup[1] - warmup[0]) / num_layers
        skip_rates = [
            ScheduledFloat(
                (begin + i * share, _INITIAL_LAYER_SKIP),
                (begin + (i + 1) * share, final_layer_skip),
            )
            for i in range(num_layers)
        ]
        self.layers = nn.ModuleList(ZipformerLayer(shape, dropout, rate) for rate in skip_rates)

    def forward(
        self,
        x: Tensor,
        feature_mask: Tensor | None,
        rates: dict[int, Frames],
        memories: Sequence[LayerMemory] = (),
    ) -> StackOutput:
        """Runs the layers at the rate of the input.

        Args:
            x: (B, T, dim).
            feature_mask: (B, 1, dim), what to multiply by before and after every layer, or None.
            rates: The valid frames, by how far below 50 Hz they are.
            memories: Of streams: one for every layer.
        """
        return self.run(x, feature_mask, rates[1], memories)

    def run(
        self,
        x: Tensor,
        feature_mask: Tensor | None,
        frames: Frames,
        memories: Sequence[LayerMemory] = (),
    ) -> StackOutput:
        """Runs the layers, with `frames` at the rate of x (B, T, dim)."""
        positions = self.encoder_pos(x, frames.num_remembered)
        outputs = []
        x = _masked(x, feature_mask)
        for layer, memory in zip_longest(self.layers, memories):
            x = _masked(self._run_layer(layer, x, positions, frames, memory), feature_mask)
            outputs.append(x)
        return StackOutput(x, outputs)

    def _run_layer(self, layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        if not self.checkpointing or not torch.is_grad_enabled():
            output: Tensor = layer(x, *rest)
        else:
            output = checkpoint(layer, x, *rest, use_reentrant=False)
        return output


class DownsampledStack(nn.Module):
    """A stack at a lower frame rate, whose upsampled output is combined with its input.

    Args:
        stack: The layers.
        dim: Channels.
        factor: How much lower the rate is.
    """

    def __init__(self, stack: ZipformerStack, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.downsample = Downsample(factor)
        self.encoder = stack
        self.out_combiner = Bypass(dim)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""
        return self.encoder.layers

    def forward(
        self,
        x: Tensor,
        feature_mask: Tensor | None,
        rates: dict[int, Frames],
        memories: Sequence[LayerMemory] = (),
    ) -> StackOutput:
        """Runs the layers at the lower rate; arguments as for `ZipformerStack.forward`."""
        low = self.downsample(x, rates[1])
        inner = self.encoder.run(low, feature_mask, rates[self.factor], memories)

        def combine(x: Tensor, low: Tensor, scale: Tensor) -> Tensor:
            return mix(x, upsample(low, self.factor, x.shape[1]), scale)

        output = recomputed(combine, x, inner.output, self.out_combiner.draw_scale())
        return StackOutput(output, inner.layers)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
