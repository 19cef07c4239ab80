"""A stack of layers at one frame rate, and its frame around it: down, layers, up, combine."""

from typing import NamedTuple

from torch import Tensor, nn

from spear.zipformer.bypass import Bypass, mix
from spear.zipformer.frames import Frames
from spear.zipformer.layer import LayerShape, ZipformerLayer
from spear.zipformer.positions import RelativePositions
from spear.zipformer.recompute import recomputed
from spear.zipformer.resampling import Downsample, upsample
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
        self, x: Tensor, feature_mask: Tensor | None, rates: dict[int, Frames]
    ) -> StackOutput:
        """Runs the layers at the rate of the input.

        Args:
            x: (B, T, dim).
            feature_mask: (B, 1, dim), what to multiply by before and after every layer, or None.
            rates: The valid frames, by how far below 50 Hz they are.
        """
        return self.run(x, feature_mask, rates[1])

    def run(self, x: Tensor, feature_mask: Tensor | None, frames: Frames) -> StackOutput:
        """Runs the layers, with `frames` at the rate of x (B, T, dim)."""
        positions = self.encoder_pos(x)
        outputs = []
        x = _masked(x, feature_mask)
        for layer in self.layers:
            x = _masked(layer(x, positions, frames), feature_mask)
            outputs.append(x)
        return StackOutput(x, outputs)


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

    def forward(
        self, x: Tensor, feature_mask: Tensor | None, rates: dict[int, Frames]
    ) -> StackOutput:
        """Runs the layers at the lower rate; arguments as for `ZipformerStack.forward`."""
        low = self.downsample(x, rates[1])
        inner = self.encoder.run(low, feature_mask, rates[self.factor])

        def combine(x: Tensor, low: Tensor, scale: Tensor) -> Tensor:
            return mix(x, upsample(low, self.factor, x.shape[1]), scale)

        output = recomputed(combine, x, inner.output, self.out_combiner.draw_scale(x))
        return StackOutput(output, inner.layers)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
