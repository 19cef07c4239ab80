"""Lowering and raising the frame rate around a stack, and matching channels between stacks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer.frames import Frames
from spear.zipformer.kernels.recompute import recomputed


class Downsample(nn.Module):
    """Weighted mean of `factor` neighbouring frames, with learned weights that sum to one.

    The last group of an utterance is filled up by repeating its last frame.

    Args:
        factor: Frames that become one.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """Maps (B, T, C), whose valid frames `frames` knows, to (B, ceil(T / factor), C)."""
        num_groups = (x.shape[1] + self.factor - 1) // self.factor  # as -(-a // b), ONNX rounds up

        def average(x: Tensor, weights: Tensor) -> Tensor:
            filled = frames.repeat_last(x, num_groups * self.factor)
            groups = filled.unflatten(1, (num_groups, self.factor))
            return (groups * weights.unsqueeze(1)).sum(dim=2)

        return recomputed(average, x, self.bias.softmax(dim=0))


def upsample(x: Tensor, factor: int, num_frames: int) -> Tensor:
    """Repeats every frame of x (B, T, C) `factor` times, cut to `num_frames`."""
    if factor == 1:
        return x
    repeated = x.unsqueeze(2).expand(-1, -1, factor, -1)
    return repeated.flatten(1, 2)[:, :num_frames]


def match_channels(x: Tensor, num_channels: int) -> Tensor:
    """Drops the last channels of x (..., C), or adds zeros, so that there are `num_channels`."""
    missing = num_channels - x.shape[-1]
    return x[..., :num_channels] if missing <= 0 else F.pad(x, (0, missing))


def widest(outputs: Sequence[Tensor]) -> Tensor:
    """Joins the outputs of stacks of different widths into one as wide as the widest.

    Every channel comes from the last stack that has it.

    Args:
        outputs: One (B, T, C) per stack, in order.
    """
    pieces, num_channels = [outputs[-1]], outputs[-1].shape[-1]
    for output in reversed(outputs[:-1]):
        if output.shape[-1] > num_channels:
            pieces.append(output[..., num_channels:])
            num_channels = output.shape[-1]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
