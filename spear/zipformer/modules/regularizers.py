"""Balancer and Whiten: gradient terms that keep activations in a healthy range.

Both are the identity forward. Backward they add to the gradient, with some probability, a term
that pulls the activations towards a constraint; its size follows the gradient that passes through,
so no loss weight has to be tuned (arXiv 2310.11230, section 3.5; icefall, scaling.py). The
derivatives are written out instead of run through autograd: a Balancer costs two reductions and
one elementwise pass, Whiten two matrix products (on a CPU one, where the limit is kept).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from spear.zipformer.schedule import FloatLike, ScheduledFloat, chance

_TINY = 1e-20
_ICEFALL_PROB = 0.25
_PART_ELEMENTS = 1 << 18
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


class BalancerLine(NamedTuple):
    """What a Balancer multiplies the magnitude of a gradient by, and adds: offset + slope x.

    Attributes:
        offset: (C,) float32.
        slope: (C,) float32.
    """

    offset: Tensor
    slope: Tensor


def balancer_line(x: Tensor, limits: BalancerLimits) -> BalancerLine:
    """Returns in which direction a Balancer pulls the values of each channel.

    Per channel, the violation is |m - clamp(m)| + |log(clamp(rms) / rms)| with m = mean / stddev.
    Its derivative with respect to one value is affine in that value, a + b (x - mean), and is
    scaled to an RMS of `grad_scale`. A channel within its bounds gets zero.

    Args:
        x: Activations (F, C) of any float type.
        limits: The bounds.
    """
    wide_parts = [part.float() for part in _parts(x)]
    mean = torch.stack([part.sum(0) for part in wide_parts]).sum(0) / len(x)
    square = torch.stack([part.square().sum(0) for part in wide_parts]).sum(0) / len(x)
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
    return BalancerLine((a - b * mean) * scale, b * scale)


def balanced_gradient(grad: Tensor, x: Tensor, line: BalancerLine) -> Tensor:
    """Returns grad + |grad| (offset + slope x), all (F, C), in the type of `grad`.

    |gradient| is taken as a noisy estimate of what matters at that frame and channel.
    """
    result = torch.empty_like(grad)
    parts = map(_parts, (grad, x, result))
    for grad_part, x_part, result_part in zip(*parts, strict=True):
        factor = torch.addcmul(line.offset, x_part.float(), line.slope)
        wide = grad_part.float()
        result_part.copy_(factor.mul_(wide.abs()).add_(wide))
    return result


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """Splits (F, C): on a CPU so that temporaries stay in its cache and are no fresh memory."""
    rows = _PART_ELEMENTS // x.shape[1] if x.device.type == "cpu" else len(x)
    return x.split(max(1, rows))


class _Balance(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limits: BalancerLimits, channel_dim: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits, ctx.channel_dim = limits, channel_dim
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        last = grad.movedim(ctx.channel_dim, -1)
        flat_x = x.movedim(ctx.channel_dim, -1).flatten(0, -2)
        with torch.autocast(grad.device.type, enabled=False):
            line = balancer_line(flat_x, ctx.limits)
            result = balanced_gradient(last.flatten(0, -2), flat_x, line)
        return result.view(last.shape).movedim(-1, ctx.channel_dim), None, None


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

    def draw(self) -> bool:
        """Tosses whether it acts in this forward pass."""
        return self.training and chance(float(self.prob))

    def act(self, x: Tensor) -> Tensor:
        """Returns x; its gradient will be changed."""
        balanced: Tensor = _Balance.apply(x, self.limits(), self.channel_dim)
        return balanced

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (any shape, any float type)."""
        return self.act(x) if x.requires_grad and self.draw() else x


class Covariance(NamedTuple):
    """The covariances of groups of channels, and what they are the covariances of.

    Attributes:
        centred: (G, F, C / G), the frames without their mean, divided by the root of F.
        matrices: (G, C / G, C / G) float, their products.
    """

    centred: Tensor
    matrices: Tensor

    @classmethod
    def of(cls, x: Tensor, num_groups: int) -> "Covariance":
        """Measures x (..., C); products are in the type of x, which on a GPU makes the speed."""
        grouped = x.reshape(-1, num_groups, x.shape[-1] // num_groups).transpose(0, 1)
        # Two steps, as float64 inputs stay what they are.
        wide = grouped.to(torch.promote_types(x.dtype, torch.float32))
        wide = (wide - wide.mean(dim=1, keepdim=True)) * wide.shape[1] ** -0.5
        centred = wide.to(x.dtype)
        return cls(centred, (centred.transpose(1, 2) @ centred).to(wide.dtype))

    @property
    def num_channels(self) -> int:
        """C."""
        return self.matrices.shape[0] * self.matrices.shape[1]

    def metric(self) -> Tensor:
        """Returns how far from white the channels are, a scalar.

        It is mean(diag(M^2)) / mean(diag(M))^2 over all groups: 1 when all eigenvalues are equal,
        the number of channels of a group when there is only one.
        """
        return self.matrices.square().sum() / self.num_channels / self._below()

    def metric_gradient(self) -> Tensor:
        """Returns the derivative of the metric by x, (F, C), at least float32."""
        # d metric / dM = 2 (M - metric mean_diag I) / (below C), and dM/dx gives 2 x / F.
        identity = torch.eye(self.matrices.shape[1], device=self.matrices.device)
        to_white = self.matrices / self._mean_diag() - self.metric() * identity
        direction = self.centred @ to_white.to(self.centred.dtype)
        scale = 4.0 * self._mean_diag() / (self._below() * self.num_channels)
        scaled = direction.to(scale.dtype) * (scale * self.centred.shape[1] ** -0.5)
        return scaled.transpose(0, 1).flatten(1)

    def _mean_diag(self) -> Tensor:
        return self.matrices.diagonal(dim1=1, dim2=2).mean() + _TINY

    def _below(self) -> Tensor:
        return self._mean_diag().square() + _TINY


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
            covariance = Covariance.of(x, num_groups)
            metric = covariance.metric()
            # Asking for the result of the comparison would stall a GPU; a CPU saves half the work.
            if metric.device.type == "cpu" and not bool(metric >= limit):
                return grad, None, None, None
            penalty = covariance.metric_gradient().view(x.shape)
            size = grad_scale * grad.float().norm() / (penalty.norm() + _TINY)
            size = torch.where(metric >= limit, size, torch.zeros_like(size))
            return torch.addcmul(grad.float(), penalty, size).to(grad.dtype), None, None, None


class Whiten(nn.Module):
    """Pushes the covariance of the channels towards a multiple of the identity.

    icefall looks at a module that is within its limit with probability 0.025, at one above it with
    0.25. That needs a number back from the device in every backward pass and a state that no
    checkpoint holds. Here all are looked at with 0.1, and the penalty is 2.5 times as large: above
    the limit the same push on average, below it none, for 2/5 of the matrix products.

    Args:
        limit: The metric from which on there is a penalty; at least 1.
        grad_scale: Norm of the penalty relative to the gradient's, where it acts with probability
            0.25; with another `prob` it is scaled so that the mean stays.
        num_groups: Groups of channels that are whitened apart.
        prob: How often it acts, per forward pass.
    """

    def __init__(
        self, limit: FloatLike, grad_scale: float, num_groups: int = 1, prob: float = 0.1
    ) -> None:
        super().__init__()
        self.limit = limit
        self.grad_scale = grad_scale * _ICEFALL_PROB / prob
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
