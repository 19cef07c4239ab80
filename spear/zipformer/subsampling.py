"""The convolutional front end: fbank frames at 100 Hz to vectors at 50 Hz."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer.activations import (
    SWOOSH_L,
    SWOOSH_R,
    Swoosh,
    shared_dropout_mask,
    swoosh_linear,
)
from spear.zipformer.config import ZipformerConfig
from spear.zipformer.frames import Frames
from spear.zipformer.gradients import ScaleGrad
from spear.zipformer.initialization import scale_initial
from spear.zipformer.norm import BiasNorm
from spear.zipformer.regularizers import Balancer, Whiten
from spear.zipformer.schedule import FloatLike, ScheduledFloat

LOG_EPS = math.log(1e-10)  # the value of silence in fbank, and of its padding
PAD_LEFT, PAD_RIGHT = 3, 4  # fbank frames
_CONTEXT = 7  # fbank frames that one output frame sees


def num_subsampled(num_frames: Tensor | int, frontend_pad: bool) -> Tensor | int:
    """Returns how many frames of 20 ms the front end makes of fbank frames of 10 ms."""
    if frontend_pad:
        return num_frames // 2
    left = (num_frames - _CONTEXT) // 2
    return max(left, 0) if isinstance(left, int) else left.clamp_min(0)


class ConvNeXt(nn.Module):
    """A residual block: 7 x 7 depthwise convolution, then two pointwise ones (arXiv 2206.14747).

    Args:
        num_channels: Channels in and out.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        hidden = 3 * num_channels
        self.depthwise_conv = nn.Conv2d(
            num_channels, num_channels, 7, padding=3, groups=num_channels
        )
        self.pointwise_conv1 = nn.Conv2d(num_channels, hidden, 1)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.pointwise_conv2 = nn.Conv2d(hidden, num_channels, 1)
        scale_initial(self.pointwise_conv2, 0.01)
        self.out_balancer = Balancer(min_positive=0.4, max_positive=0.6, min_abs=1.0, max_abs=6.0)
        self.out_whiten = Whiten(5.0, grad_scale=0.01)
        self.skip_rate = ScheduledFloat((0.0, 0.2), (20000.0, 0.015))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, F), with zeros as padding, to (B, T, F, C)."""
        y = self.depthwise_conv(x).permute(0, 2, 3, 1)
        x = x.permute(0, 2, 3, 1)
        # A pointwise convolution is a linear layer over the channels, which are last in memory.
        y = self.hidden_balancer(F.linear(y, *_as_linear(self.pointwise_conv1)))
        y = swoosh_linear(y, _as_linear(self.pointwise_conv2), SWOOSH_L, self.training)
        skip_rate = float(self.skip_rate)
        if self.training and skip_rate != 0.0:
            y = y * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) > skip_rate)
        return self.out_whiten(self.out_balancer(x + y))


def _as_linear(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight.flatten(1), conv.bias


class Conv2dSubsampling(nn.Module):
    """Three convolutions, a ConvNeXt block, a linear layer and a norm.

    Works in channels-last memory order, in which the convolutions are faster.

    Args:
        config: Which feature dimension, channels and padding.
        dropout: Probability, or its schedule.
    """

    def __init__(self, config: ZipformerConfig, dropout: FloatLike) -> None:
        super().__init__()
        first, second, third = config.embed_channels
        self.frontend_pad = config.frontend_pad
        self.conv = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=(0, 1)),  # (time, mel)
            ScaleGrad(0.2),
            Balancer(max_abs=1.0, channel_dim=1),
            Swoosh(SWOOSH_R),
            nn.Conv2d(first, second, 3, stride=2),
            Balancer(max_abs=4.0, channel_dim=1),
            Swoosh(SWOOSH_R),
            nn.Conv2d(second, third, 3, stride=(1, 2)),
            Balancer(max_abs=4.0, channel_dim=1),
            Swoosh(SWOOSH_R),
        )
        self.convnext = ConvNeXt(third)
        width = ((config.feature_dim - 1) // 2 - 1) // 2
        self.out = nn.Linear(width * third, config.encoder_dim[0])
        limit = ScheduledFloat((0.0, 4.0), (20000.0, 8.0), default=4.0)
        # There is only one such module, so its gradient may be larger than those of the layers.
        self.out_whiten = Whiten(limit, grad_scale=0.02)
        self.out_norm = BiasNorm(config.encoder_dim[0])
        self.dropout = dropout

    def forward(self, fbank: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Halves the frame rate.

        Args:
            fbank: (B, T, M) float, at least enough frames for one output frame.
            lens: (B,) int64, valid frames.

        Returns:
            (B, T', D) float32 with T' = `num_subsampled(T)`, and the valid frames (B,) of it.
        """
        padding = Frames(lens, fbank.shape[1]).padding
        x = fbank.masked_fill(padding, LOG_EPS)
        if self.frontend_pad:
            x = F.pad(x, (0, 0, PAD_LEFT, PAD_RIGHT), value=LOG_EPS)
        # The order of one channel is ambiguous: channels come last from here on.
        x = self.conv[0](x.unsqueeze(1)).contiguous(memory_format=torch.channels_last)
        x = self.conv[1:](x)
        out_lens = num_subsampled(lens, self.frontend_pad)
        assert isinstance(out_lens, Tensor)
        # The convolutions above stay within their input; the next one looks behind its end.
        padding = Frames(out_lens, x.shape[2]).padding.unsqueeze(3)
        x = x.permute(0, 2, 3, 1).masked_fill(padding, 0.0)  # it gives what is last in memory so
        x = self.convnext(x.permute(0, 3, 1, 2))
        x = self.out(x.transpose(2, 3).flatten(2))  # channel before mel bin, as icefall has it
        x = self.out_norm(self.out_whiten(x))
        mask = shared_dropout_mask(x, float(self.dropout)) if self.training else None
        return (x if mask is None else x * mask), out_lens
