"""Depthwise convolutions, for which torch's backward pass on a CPU is far from the machine's speed.

Channels are last in memory everywhere here: (B, H, W, C).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from spear.system.numba_functions import is_installed


class _DepthwiseConv(Function):
    """As `torch.conv2d` with a group for every channel; the kernel's gradient by numba."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        from spear.zipformer.kernels.depthwise_loops import kernel_gradient

        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows, columns = weight.shape[2] // 2, weight.shape[3] // 2
        padded = F.pad(x, (0, 0, columns, columns, rows, rows))
        grad_weight = kernel_gradient(padded.contiguous(), grad).permute(2, 0, 1).unsqueeze(1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # The kernel is odd and the padding half of it: backward is forward, mirrored.
            grad_x = _convolve(grad, weight.flip(2, 3), None)
        return grad_x, grad_weight, grad.sum(dim=(0, 1, 2))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves every channel by itself; the output is as large as the input.

    Args:
        x: (B, H, W, C), contiguous for speed.
        weight: (C, 1, kh, kw), both odd.
        bias: (C,).
    """
    if torch.is_grad_enabled() and _can_use_loops(x, weight):
        y: Tensor = _DepthwiseConv.apply(x, weight, bias)
        return y
    return _convolve(x, weight, bias)


def _can_use_loops(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and is_installed()
