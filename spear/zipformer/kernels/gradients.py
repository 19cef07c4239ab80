"""Functions that are the identity forward and change gradients backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from spear.zipformer.schedule import FloatLike, chance


class _ScaleGrad(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.alpha, None


class ScaleGrad(torch.nn.Module):
    """Multiplies the gradient by a constant in training.

    The first convolution sees un-normalised log-mel values (silence is -23), so its gradients are
    the largest of the model; scaled down they fit into half precision (icefall, Conv2dSubsampling).
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Returns x."""
        return _ScaleGrad.apply(x, self.alpha) if self.training else x


class _LimitValue(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = (low, high)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        # A step goes against the gradient: below `low` it must be negative, above `high` positive.
        grad = torch.where(x < low, -grad.abs(), grad)
        return torch.where(x > high, grad.abs(), grad), None, None


def limit_value(x: Tensor, low: FloatLike, high: FloatLike, prob: float = 0.6) -> Tensor:
    """Keeps a parameter mostly within [low, high] by the sign of its gradient.

    Args:
        x: The parameter, any shape.
        low: Below it, the gradient is made negative.
        high: Above it, the gradient is made positive.
        prob: How often this happens, icefall's number: often enough to turn the drift around.
    """
    return _LimitValue.apply(x, float(low), float(high)) if chance(prob) else x
