"""Bypass: a learned mix of a module's input and output; and dropping branches in training."""

import torch
from torch import Tensor, nn

from spear.zipformer.kernels.gradients import limit_value
from spear.zipformer.schedule import ScheduledFloat


class Bypass(nn.Module):
    """Returns input + scale * (output - input) with one learned scale per channel.

    In training the scale is held above a minimum (0.9 going down to 0.2 over 20,000 counts, so
    that modules have to learn something first) and below 1.

    Args:
        num_channels: Size of the last dimension.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((num_channels,), 0.5))
        self.min_scale = ScheduledFloat((0.0, 0.9), (20000.0, 0.2), default=0.0)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Mixes the input and the output (B, T, C) of a module."""
        return mix(before, after, self.draw_scale())

    def draw_scale(self) -> Tensor:
        """Returns the scale (C,) for this pass, which may limit its gradient."""
        if not self.training:
            return self.bypass_scale
        return limit_value(self.bypass_scale, self.min_scale, 1.0)


def mix(before: Tensor, after: Tensor, scale: Tensor) -> Tensor:
    """Returns before + scale * (after - before)."""
    return torch.addcmul(before, after - before, scale)


def add_branch(x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    """Returns x + branch, (B, T, ...), without the branch where `kept` (B, 1, ...) is 0."""
    return x + branch if kept is None else torch.addcmul(x, branch, kept)


def draw_kept(x: Tensor, rate: float, training: bool) -> Tensor | None:
    """Draws which utterances of x (B, T, ...) keep a branch.

    Returns:
        (B, 1, ...) of 1 or, with probability `rate`, 0; None where all do. There is no rescaling.
    """
    if not training or rate == 0.0:
        return None
    shape = (x.shape[0], *[1] * (x.ndim - 1))
    return (torch.rand(shape, device=x.device) > rate).to(x.dtype)
