"""The activations SwooshL and SwooshR, and the linear layer that follows them.

swoosh_l(x) = log(1 + exp(x - 4)) - 0.08 x - 0.035
swoosh_r(x) = log(1 + exp(x - 1)) - 0.08 x - 0.313261687
(arXiv 2310.11230, section 3.4). Their slope for very negative inputs is -0.08, not 0, so a channel
never dies. For the backward pass only the input is kept; the output is computed again. In float32
on a CPU loops compiled by numba stand in for the tensor operations, where numba is installed.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from spear.system.numba_functions import is_installed
from spear.zipformer.modules.initialization import scaled_linear
from spear.zipformer.schedule import FloatLike

_SLOPE = 0.08


class SwooshShape(NamedTuple):
    """The two numbers in which the Swoosh functions differ."""

    offset: float
    constant: float


SWOOSH_L = SwooshShape(4.0, 0.035)
SWOOSH_R = SwooshShape(1.0, 0.313261687)


def _swoosh(x: Tensor, shape: SwooshShape) -> Tensor:
    """Returns the activation of x, computed in float32 and returned in the type of x.

    Not to be differentiated by autograd: see `swoosh`.
    """
    if _has_loops(x):
        from spear.zipformer.kernels.swoosh_loops import swoosh as compiled_swoosh

        y: Tensor = compiled_swoosh(x, *shape)
        return y
    wide = x.float()
    return (F.softplus(wide - shape.offset) - _SLOPE * wide - shape.constant).to(x.dtype)


def swoosh_backward(x: Tensor, grad: Tensor, shape: SwooshShape) -> Tensor:
    """Returns the activation of x, and multiplies `grad`, shaped like x, in place by its slope."""
    if _has_loops(x, grad):
        from spear.zipformer.kernels.swoosh_loops import swoosh_backward as compiled_backward

        y: Tensor = compiled_backward(x, grad, *shape)
        return y
    grad.mul_(swoosh_derivative(x, shape))
    return _swoosh(x, shape)


def swoosh_derivative(x: Tensor, shape: SwooshShape) -> Tensor:
    """Returns d swoosh / dx, in the type of x; between -0.08 and 0.92."""
    return (x.float() - shape.offset).sigmoid_().sub_(_SLOPE).to(x.dtype)


def _has_loops(x: Tensor, grad: Tensor | None = None) -> bool:
    """Whether the compiled loops can work on x, and on a gradient that lies in memory as x does."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if grad is not None and (grad.dtype != x.dtype or grad.stride() != x.stride()):
        return False
    return is_installed() and (x.is_contiguous() or _is_channels_last(x))


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


class _Swoosh(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: SwooshShape) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shape = shape
        return _swoosh(x, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if _has_loops(x, grad):
            from spear.zipformer.kernels.swoosh_loops import swoosh_gradient

            return swoosh_gradient(x, grad, ctx.shape.offset), None
        return swoosh_derivative(x, ctx.shape).mul_(grad), None


def swoosh(x: Tensor, shape: SwooshShape) -> Tensor:
    """Returns the activation of x, of any shape and float type, in its type."""
    if torch.compiler.is_compiling():
        return _swoosh(x, shape)
    y: Tensor = _Swoosh.apply(x, shape)
    return y


class Swoosh(nn.Module):
    """SwooshL or SwooshR as a module."""

    def __init__(self, shape: SwooshShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Applies the activation to a tensor of any shape."""
        return swoosh(x, self.shape)


class _SwooshDropoutLinear(Function):
    """linear(mask * swoosh(x)), keeping x but not swoosh(x), which would double the memory."""

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes everything by position)
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        shape: SwooshShape,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.shape = shape
        ctx.bias_dtype = bias.dtype
        y = _swoosh(x, shape)
        return F.linear(y if mask is None else y.mul_(mask), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        # Autocast is off in a backward pass: its type is that of the gradient.
        flat = grad.reshape(-1, weight.shape[0])
        grad_x = (flat @ weight.to(grad.dtype)).view(x.shape)
        y = swoosh_backward(x, grad_x, ctx.shape)
        if mask is not None:
            y.mul_(mask)
            grad_x.mul_(mask)
        grad_weight = flat.t() @ y.reshape(-1, weight.shape[1]).to(grad.dtype)
        return (
            grad_x.to(x.dtype),
            grad_weight.to(weight.dtype),
            flat.sum(0).to(ctx.bias_dtype),
            None,
            None,
        )


def swoosh_linear(
    x: Tensor, linear: tuple[Tensor, Tensor], shape: SwooshShape, mask: Tensor | None = None
) -> Tensor:
    """Returns weight @ (mask * swoosh(x)) + bias.

    Args:
        x: (..., in_channels).
        linear: The weight (out_channels, in_channels) and the bias (out_channels,).
        shape: Which Swoosh.
        mask: Dropout mask that broadcasts to x.
    """
    if torch.compiler.is_compiling():
        y = swoosh(x, shape)
        return F.linear(y if mask is None else y * mask, *linear)
    result: Tensor = _SwooshDropoutLinear.apply(x, *linear, mask, shape)
    return result


class SwooshDropoutLinear(nn.Module):
    """Swoosh, dropout with one mask for all frames of an utterance, then a linear layer.

    Args:
        in_channels: Size of the input's last dimension.
        out_channels: Size of the output's last dimension.
        shape: Which Swoosh.
        initial_scale: Scale of the initial weights.
        dropout: Probability, or its schedule.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: SwooshShape,
        initial_scale: float,
        dropout: FloatLike = 0.0,
    ) -> None:
        super().__init__()
        linear = scaled_linear(in_channels, out_channels, initial_scale)
        self.weight, self.bias = linear.weight, linear.bias
        self.shape = shape
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, in_channels) to (B, T, out_channels)."""
        mask = shared_dropout_mask(x, float(self.dropout)) if self.training else None
        return swoosh_linear(x, (self.weight, self.bias), self.shape, mask)


def shared_dropout_mask(x: Tensor, probability: float) -> Tensor | None:
    """Draws a dropout mask (B, 1, C) for x (B, T, C), with kept entries 1 / (1 - p).

    One mask for all frames makes whole channels vanish: neighbouring frames cannot stand in.
    """
    if probability == 0.0:
        return None
    kept = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) > probability
    return kept.to(x.dtype) / (1.0 - probability)
