"""Balancer and Whiten: gradient terms that keep activations in a healthy range.

Both are the identity forward. Backward they add to the gradient, with some probability, a term
that pulls the activations towards a constraint; its size follows the gradient that passes through,
so no loss weight has to be tuned (arXiv 2310.11230, section 3.5; icefall, scaling.py). The
derivatives are written out instead of run through autograd: a Balancer costs two reductions and
one elementwise pass, Whiten two matrix products.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from spear.zipformer.schedule import FloatLike, ScheduledFloat, chance

_TINY = 1e-20
_RMS_OVER_MEAN_ABS = 1.25331413732  # sqrt(pi / 2), for normally distributed values


class BalancerLimits(NamedTuple):
    """Bounds per channel.

    Attributes:
        min_mean: Smallest mean, in standard deviations.
        max_mean: Largest mean, in standard deviations.
        min_rms: Smallest root mean square.
        max_rms: Largest root mean square.
        grad_scale: RMS of the added factor; 0.04 changes a gradient by 4% of its magnitude.
    """

    min_mean: float
    max_mean: float
    min_rms: float
    max_rms: float
    grad_scale: float


def normal_mean(proportion_positive: float) -> float:
    """Returns about which mean, in standard deviations, makes values positive that often.

    The inverse error function is approximated by 0.8139535143 atanh(x), which is enough for bounds.
    """
    x, eps = 2.0 * proportion_positive - 1.0, 1e-10
    return 0.8139535143 * 0.5 * (math.log(1.0 + x + eps) - math.log(1.0 - x + eps))


def balancer_factor(x: Tensor, limits: BalancerLimits, channel_dim: int) -> Tensor:
    """Returns what a Balancer multiplies the magnitude of the gradient by, and adds.

    Per channel, the violation is |m - clamp(m)| + |log(clamp(rms) / rms)| with m = mean / stddev.
    Its derivative with respect to one value is affine in that value, a + b (x - mean), and is
    scaled to an RMS of `grad_scale`. A channel within its bounds gets zero.

    Args:
        x: Activations, float32, any shape.
        limits: The bounds.
        channel_dim: Which dimension the channels are.

    Returns:
        A tensor like x.
    """
    others = [dim for dim in range(x.ndim) if dim != channel_dim % x.ndim]
    mean = x.mean(dim=others, keepdim=True)
    square = x.square().mean(dim=others, keepdim=True)
    variance = (square - mean.square()).clamp_min(_TINY)
    stddev, rms = variance.sqrt(), square.clamp_min(_TINY).sqrt()
    m = mean / stddev
    mean_sign = (m - m.clamp(limits.min_mean, limits.max_mean)).sign()
    rms_sign = (rms - rms.clamp(limits.min_rms, limits.max_rms)).sign()
    # dm/dx = 1/stddev - mean (x - mean) / stddev^3 and d log(rms)/dx = x / rms^2, both over the
    # number of values, which the scaling to a fixed RMS takes out again.
    a = mean_sign / stddev + rms_sign * mean / rms.square()
    b = rms_sign / rms.square() - mean_sign * mean / (stddev * variance)
    size = (a.square() + b.square() * variance).sqrt().clamp_min(_TINY)
    scale = limits.grad_scale / size
    return torch.addcmul((a - b * mean) * scale, x, b * scale)


class _Balance(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limits: BalancerLimits, channel_dim: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits, ctx.channel_dim = limits, channel_dim
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            factor = balancer_factor(x.float(), ctx.limits, ctx.channel_dim)
            # |gradient| is taken as a noisy estimate of what matters at that frame and channel.
            return factor.mul_(grad.abs()).add_(grad).to(grad.dtype), None, None


class Balancer(nn.Module):
    """Keeps each channel's share of positive values and its mean magnitude within bounds.

    Args:
        min_positive: Smallest share of positive values.
        max_positive: Largest share of positive values.
        min_abs: Smallest mean absolute value.
        max_abs: Largest mean absolute value.
        grad_scale: Size of the added gradient relative to the gradient.
        prob: How often it acts, per forward pass; None is 0.5 going down to 0.125.
        channel_dim: Which dimension the channels are.
    """

    def __init__(
        self,
        *,
        min_positive: FloatLike = 0.05,
        max_positive: FloatLike = 0.95,
        min_abs: FloatLike = 0.2,
        max_abs: FloatLike = 100.0,
        grad_scale: float = 0.04,
        prob: FloatLike | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        self.min_positive = min_positive
        self.max_positive = max_positive
        self.min_abs = min_abs
        self.max_abs = max_abs
        self.grad_scale = grad_scale
        default = ScheduledFloat((0.0, 0.5), (8000.0, 0.125), default=0.4)
        self.prob = default if prob is None else prob
        self.channel_dim = channel_dim

    def limits(self) -> BalancerLimits:
        """Returns the bounds in the form that the derivative needs."""
        return BalancerLimits(
            min_mean=normal_mean(float(self.min_positive)),
            max_mean=normal_mean(float(self.max_positive)),
            min_rms=_RMS_OVER_MEAN_ABS * float(self.min_abs),
            max_rms=_RMS_OVER_MEAN_ABS * float(self.max_abs),
            grad_scale=self.grad_scale,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (any shape, any float type)."""
        if self.training and x.requires_grad and chance(float(self.prob)):
            return _Balance.apply(x, self.limits(), self.channel_dim)
        return x


def whitening_metric(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Measures how far the channels of x are from white, and in which direction to go.

    The metric is mean(diag(C^2)) / mean(diag(C))^2 over the covariances C of all groups: 1 when all
    eigenvalues are equal, the number of channels of a group when there is only one.

    Args:
        x: (..., C) float32.
        num_groups: Groups of channels whose covariances are looked at apart.

    Returns:
        metric: Scalar.
        grad: d metric / dx, shaped like x.
    """
    num_channels = x.shape[-1]
    grouped = x.reshape(-1, num_groups, num_channels // num_groups).transpose(0, 1)
    grouped = grouped - grouped.mean(dim=1, keepdim=True)
    covariance = grouped.transpose(1, 2) @ grouped
    mean_diag = covariance.diagonal(dim1=1, dim2=2).mean()
    mean_square = covariance.square().sum() / num_channels
    below = mean_diag.square() + _TINY
    metric = mean_square / below
    # d metric / dC = 2 (C - metric mean_diag I) / (below num_channels), and dC/dx gives 2 x.
    direction = grouped @ covariance - metric * mean_diag * grouped
    grad = (4.0 / (below * num_channels)) * direction
    return metric, grad.transpose(0, 1).reshape(x.shape)


class _WhitenGrad(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_groups: int, limit: float, grad_scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.constants = (num_groups, limit, grad_scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        num_groups, limit, grad_scale = ctx.constants
        with torch.autocast(grad.device.type, enabled=False):
            metric, penalty = whitening_metric(x.float(), num_groups)
            size = grad_scale * grad.float().norm() / (penalty.norm() + _TINY)
            # A comparison on the device: asking for its result here would stall a GPU.
            size = torch.where(metric >= limit, size, torch.zeros_like(size))
            return (grad + size * penalty).to(grad.dtype), None, None, None


class Whiten(nn.Module):
    """Pushes the covariance of the channels towards a multiple of the identity.

    icefall looks at a module that is within its limit less often (probability 0.025) than at one
    above it (0.25). That needs a number back from the device in every backward pass and a state
    that no checkpoint holds, so here all are looked at with 0.25: above the limit the same thing
    happens, below it nothing, and a resumed run does what an uninterrupted one would.

    Args:
        limit: The metric from which on there is a penalty; at least 1.
        grad_scale: Norm of the penalty relative to the gradient's.
        num_groups: Groups of channels that are whitened apart.
        prob: How often it acts, per forward pass.
    """

    def __init__(
        self, limit: FloatLike, grad_scale: float, num_groups: int = 1, prob: float = 0.25
    ) -> None:
        super().__init__()
        self.limit = limit
        self.grad_scale = grad_scale
        self.num_groups = num_groups
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (..., C) of any float type."""
        if self.training and x.requires_grad and chance(self.prob):
            return _WhitenGrad.apply(x, self.num_groups, float(self.limit), self.grad_scale)
        return x


def whitening_schedule(limit: float, ratio: float = 2.0) -> ScheduledFloat:
    """Returns a limit that rises to `ratio` times itself over 20,000 counts."""
    return ScheduledFloat((0.0, limit), (20000.0, ratio * limit), default=limit)
