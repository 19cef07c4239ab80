"""BiasNorm: the Zipformer's replacement of layer norm (arXiv 2310.11230, section 3.3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from spear.zipformer.kernels.gradients import limit_value

_LOG_SCALE_LIMITS = (-1.5, 1.5)
_MIN_MEAN_SQUARE = 1e-20


def _scales(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """Returns exp(log_scale) / RMS(x - bias), (..., 1)."""
    mean_square = (x - bias).square().mean(dim=-1, keepdim=True).clamp_min(_MIN_MEAN_SQUARE)
    return mean_square.rsqrt() * log_scale.exp()


class _BiasNorm(Function):
    """Keeps x and one number per frame for the backward pass instead of three full tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
        scales = _scales(x, bias, log_scale)
        ctx.save_for_backward(x, bias, log_scale, scales)
        return x * scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, bias, log_scale, scales = ctx.saved_tensors
        # With v the mean square, s = v^-1/2 exp(l) and r = sum(grad x):
        #   d/dx = grad s - k (x - b), d/db = sum_frames k (x - b), d/dl = sum_frames r s
        # where k = r s / (v C).
        along = (grad * x).sum(dim=-1, keepdim=True) * scales
        k = along * (scales / log_scale.exp()).square() / x.shape[-1]
        grad_x = torch.addcmul(grad * scales, k, x - bias, value=-1.0)
        flat_k = k.reshape(1, -1)
        grad_bias = (flat_k @ x.reshape(-1, x.shape[-1])).squeeze(0) - bias * flat_k.sum()
        return grad_x, grad_bias, along.sum()


class BiasNorm(nn.Module):
    """Divides every frame by the RMS of its distance from a learned bias, times a learned scale.

    y = x / RMS(x - bias) * exp(log_scale). Unlike layer norm it subtracts nothing from x, so a
    channel that is large and constant takes no part only if the bias has learned it. Always in
    float32: the residual stream continues in what this returns.

    Args:
        num_channels: Size of the last dimension.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(num_channels).normal_(mean=0.0, std=1e-4))

    def draw_log_scale(self) -> Tensor:
        """Returns the log of the scale for this pass, which may limit its gradient."""
        return limit_value(self.log_scale, *_LOG_SCALE_LIMITS) if self.training else self.log_scale

    def forward(self, x: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """Normalises x (..., C) of any float type to float32 of the same shape.

        Args:
            x: The input.
            log_scale: From `draw_log_scale`, where this pass has drawn one already.
        """
        log_scale = self.draw_log_scale() if log_scale is None else log_scale
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling():
                return x.float() * _scales(x.float(), self.bias, log_scale)
            normed: Tensor = _BiasNorm.apply(x.float(), self.bias, log_scale)
            return normed
