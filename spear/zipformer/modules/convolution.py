"""The convolution module of a Zipformer layer."""

from torch import Tensor, nn

from spear.zipformer.frames import Frames
from spear.zipformer.kernels.depthwise import depthwise_conv
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.memory import Remember, no_memory
from spear.zipformer.modules.activations import SWOOSH_R, SwooshDropoutLinear
from spear.zipformer.modules.causal_convolution import ChunkCausalDepthwiseConv1d
from spear.zipformer.modules.regularizers import Balancer, Whiten, whitening_schedule
from spear.zipformer.schedule import ScheduledFloat


class DepthwiseConv1d(nn.Conv1d):
    """Convolution over time, each channel by itself, of the same length as its input.

    Args:
        num_channels: Channels in and out.
        kernel_size: Odd.
    """

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__(num_channels, num_channels, kernel_size, groups=num_channels)

    def forward(  # type: ignore[override]
        self, x: Tensor, frames: Frames, remember: Remember = no_memory
    ) -> Tensor:
        """Maps (B, T, C) with zeros as padding to (B, T, C)."""
        assert self.bias is not None
        # As a picture of height one: on CPU torch's kernels for pictures are several times faster.
        return depthwise_conv(x.unsqueeze(1), self.weight.unsqueeze(2), self.bias).squeeze(1)


class ConvolutionModule(nn.Module):
    """Gated linear unit, depthwise convolution, SwooshR, linear.

    Args:
        dim: Channels in and out.
        kernel_size: Kernel of the depthwise convolution in frames; odd.
        causal: Whether the convolution is chunk-causal.
    """

    def __init__(self, dim: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        # Keeps what goes into the sigmoid of the gate in a range where it can learn.
        self.balancer1 = Balancer(
            min_positive=ScheduledFloat((0.0, 0.05), (8000.0, 0.025), default=0.05),
            max_positive=1.0,
            min_abs=1.5,
            max_abs=ScheduledFloat((0.0, 5.0), (8000.0, 10.0), default=5.0),
        )
        self.depthwise_conv: DepthwiseConv1d | ChunkCausalDepthwiseConv1d = (
            ChunkCausalDepthwiseConv1d(dim, kernel_size)
            if causal
            else DepthwiseConv1d(dim, kernel_size)
        )
        self.balancer2 = Balancer(
            min_positive=ScheduledFloat((0.0, 0.1), (8000.0, 0.05), default=0.1),
            max_positive=1.0,
            min_abs=ScheduledFloat((0.0, 0.2), (20000.0, 0.5), default=0.2),
            max_abs=10.0,
        )
        self.whiten = Whiten(whitening_schedule(7.5), grad_scale=0.01)
        self.out_proj = SwooshDropoutLinear(dim, dim, SWOOSH_R, initial_scale=0.05)

    def forward(self, x: Tensor, frames: Frames, remember: Remember = no_memory) -> Tensor:
        """Maps (B, T, dim) to (B, T, dim); padding is seen as zeros."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)

        def convolve(x: Tensor, gate: Tensor) -> Tensor:
            gated = frames.zero_padding(x * gate.sigmoid())
            convolved: Tensor = self.depthwise_conv(gated, frames, remember)
            return convolved

        x = recomputed(convolve, x, self.balancer1(gate))
        return self.out_proj(self.whiten(self.balancer2(x)))
