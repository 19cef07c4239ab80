"""The convolutional front end: fbank frames at 100 Hz to vectors at 50 Hz."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer.config import ZipformerConfig
from spear.zipformer.frames import Frames
from spear.zipformer.kernels.depthwise import depthwise_conv
from spear.zipformer.kernels.gradients import ScaleGrad
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.modules.activations import (
    SWOOSH_L,
    SWOOSH_R,
    Swoosh,
    shared_dropout_mask,
    swoosh_linear,
)
from spear.zipformer.modules.bypass import add_branch, draw_kept
from spear.zipformer.modules.initialization import scale_initial
from spear.zipformer.modules.norm import BiasNorm
from spear.zipformer.modules.regularizers import Balancer, Whiten
from spear.zipformer.schedule import FloatLike, ScheduledFloat

LOG_EPS = math.log(1e-10)  # the value of silence in fbank, and of its padding
PAD_LEFT, PAD_RIGHT = 3, 4  # fbank frames
_CONTEXT = 7  # fbank frames that one output frame sees
_Count = TypeVar("_Count", Tensor, int)


def num_subsampled(num_frames: _Count, frontend_pad: bool) -> _Count:
    """Returns how many frames of 20 ms the front end makes of fbank frames of 10 ms."""
    if frontend_pad:
        return num_frames // 2
    left = (num_frames - _CONTEXT) // 2
    return left.clamp_min(0) if isinstance(left, Tensor) else max(left, 0)


class ConvNeXt(nn.Module):
    """SwooshR, then a residual block: a 7 x 7 depthwise and two pointwise convolutions.

    See arXiv 2206.14747.

    Args:
        num_channels: Channels in and out.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        hidden = 3 * num_channels
        self.activation = Swoosh(SWOOSH_R)
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

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Activates and maps (B, T, F, C) to (B, T, F, C); `padding` (B, T, 1, 1) is no frame."""

        def activate(x: Tensor) -> Tensor:
            activated: Tensor = self.activation(x)
            return activated if padding is None else activated.masked_fill(padding, 0.0)

        def convolve(x: Tensor) -> Tensor:
            conv = self.depthwise_conv
            assert conv.bias is not None
            return depthwise_conv(activate(x), conv.weight, conv.bias)

        # Activated twice, so that nothing of it is kept.
        y = self._pointwise(recomputed(convolve, x))
        x = activate(x)
        kept = draw_kept(x, float(self.skip_rate), self.training)
        return self.out_whiten(self.out_balancer(add_branch(x, y, kept)))

    def _pointwise(self, x: Tensor) -> Tensor:
        """Runs the two pointwise convolutions on x (B, T, F, C), a part at a time.

        The hidden tensor, three times as large as x, would be the largest of the model: only a part
        of it is ever there, and it is computed again in the backward pass.
        """
        if self.hidden_balancer.draw():  # wants the statistics of the whole
            return self._shrink(self.hidden_balancer.act(self._widen(x)))
        if torch.compiler.is_compiling():  # a graph has no number of parts
            return self._shrink(self._widen(x))
        parts = x.flatten(0, 2).split(_part_rows(x.device, self.pointwise_conv1.out_channels))
        mapped = [recomputed(lambda part: self._shrink(self._widen(part)), part) for part in parts]
        return torch.cat(mapped).view(x.shape)

    # A pointwise convolution is a linear layer over the channels, which are last in memory.
    def _widen(self, x: Tensor) -> Tensor:
        return F.linear(x, *_as_linear(self.pointwise_conv1))

    def _shrink(self, hidden: Tensor) -> Tensor:
        return swoosh_linear(hidden, _as_linear(self.pointwise_conv2), SWOOSH_L)


def _part_rows(device: torch.device, num_channels: int) -> int:
    """Rows of `num_channels` that are worked on at a time: 4 MB on a CPU, 0.5 GB elsewhere."""
    return max(1, (1 << (20 if device.type == "cpu" else 27)) // num_channels)


def _as_linear(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight.flatten(1), conv.bias


class Conv2dSubsampling(nn.Module):
    """Three convolutions, a ConvNeXt block, a linear layer and a norm.

    Works in channels-last memory order, in which the convolutions are faster.

    Args:
        config: Which feature dimension, channels and padding.
        dropout: Probability, or its schedule.

    Attributes:
        num_bands: F, what is left of the mel bins after the convolutions.
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
        )
        self.convnext = ConvNeXt(third)
        self.num_bands = ((config.feature_dim - 1) // 2 - 1) // 2
        self.out = nn.Linear(self.num_bands * third, config.encoder_dim[0])
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
        x = self.convolve(x)
        out_lens = num_subsampled(lens, self.frontend_pad)
        frames = Frames(out_lens, x.shape[1])
        x = self.embed(x, frames.padding.unsqueeze(3) if frames.may_have_padding else None)
        mask = shared_dropout_mask(x, float(self.dropout)) if self.training else None
        return (x if mask is None else x * mask), out_lens

    def convolve(self, x: Tensor) -> Tensor:
        """Maps fbank (B, T, M) to (B, (T - 7) // 2, F, C), before its activation."""
        conv1, gradient, balancer1, swoosh1, conv2, balancer2, swoosh2, conv3, balancer3 = self.conv
        # The order of one channel is ambiguous: channels come last from here on.
        x = balancer1(gradient(conv1(x.unsqueeze(1)).contiguous(memory_format=torch.channels_last)))
        # Activations are computed again rather than kept for the convolutions behind them.
        x = balancer2(recomputed(lambda x: conv2(swoosh1(x)), x))
        x = balancer3(recomputed(lambda x: conv3(swoosh2(x)), x))
        return x.permute(0, 2, 3, 1)

    def embed(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Maps what `convolve` gives to (B, T, dim); `padding` (B, T, 1, 1) marks no frames."""
        x = self.convnext(x, padding)
        # icefall's weight has the channel before the mel bin. Turning it is cheaper than turning x.
        weight = self.out.weight.unflatten(1, (x.shape[3], x.shape[2])).transpose(1, 2)
        x = F.linear(x.flatten(2), weight.flatten(1), self.out.bias)
        return self.out_norm(self.out_whiten(x))
