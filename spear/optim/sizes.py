"""The numbers that ScaledAdam keeps of each tensor: its size, how that is learned, its age.

An update of a tensor is proportional to the tensor's root mean square, and the log of that size is
itself learned by Adam, once in a few steps. All of it is a handful of numbers per tensor: they are
kept as vectors over the tensors of a group, so that a few tiny operations serve all of them. What
they need of the tensors' elements is three sums each: of the squared gradient, of parameter times
gradient, and of the squared parameter.

Ages are tensors too. A step that does not happen therefore leaves no trace, and nobody has to ask
the device whether it did.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """What the update of each of n tensors is made with; the first four (n,) float32.

    With gradient g, mean square v and momentum d of an element of parameter p:

        g = factor g
        v = beta2 v + (1 - beta2) g^2
        d = beta1 d + (1 - beta1) (rate g / (sqrt(v correction) + eps) + growth p)
        p = clamp(p + d, -limit, limit)

    Attributes:
        correction: Bias correction of v.
        rate: Minus the learning rate, times the tensor's size.
        growth: Relative change of the size; mostly 0.
        limit: Largest absolute value; infinite but for tensors of one element.
        factor: () float32, by which gradients are clipped.
        is_good: () bool; where False, nothing changes.
    """

    correction: Tensor
    rate: Tensor
    growth: Tensor
    limit: Tensor
    factor: Tensor
    is_good: Tensor

    def of(self, rows: Tensor) -> list[Tensor]:
        """Returns the first four for some of the tensors."""
        return [numbers.index_select(0, rows) for numbers in self[:4]]


class Sizes:
    """Sizes of n tensors of one group.

    Args:
        num_elements: Of each tensor.
        period: P, steps between two updates of the sizes.
        device: Where the vectors live.

    Attributes:
        step: (n,) int64, updates so far.
        param_rms: (n,) float32, root mean square when the size was last updated.
        scale_grads: (n, P) float32, gradients with respect to the log of the size since then.
        scale_exp_avg_sq: (n,) float32, decaying mean of their squares.
        takes_part: (n,) bool, which of the tensors are updated.
    """

    NAMES = ("step", "param_rms", "scale_grads", "scale_exp_avg_sq")
    """What is remembered. Of a tensor of one element, whose size is not learned, only the first."""

    def __init__(self, num_elements: list[int], period: int, device: torch.device) -> None:
        count = len(num_elements)
        self.period = period
        self.num_elements = torch.tensor(num_elements, dtype=torch.float64, device=device)
        self.is_scalar = self.num_elements == 1
        self.step = torch.zeros(count, dtype=torch.int64, device=device)
        self.param_rms = torch.zeros(count, device=device)
        self.scale_grads = torch.zeros(count, period, device=device)
        self.scale_exp_avg_sq = torch.zeros(count, device=device)
        self.takes_part = torch.ones(count, dtype=torch.bool, device=device)

    def grad_norm(self, sums: Tensor, options: dict[str, Any]) -> Tensor:
        """Returns the norm, () float32, of the gradients as the update will weigh them.

        Args:
            sums: (n, 3) float64: sums of g^2, p g and p^2 over all elements of each tensor; 0 of
                those that take no part.
            options: Of the parameter group.
        """
        rms = torch.where(self.step == 0, self._rms(sums), self.param_rms)
        weight = torch.where(self.is_scalar, options["scalar_lr_scale"], rms)
        return (sums[:, 0] * weight.double().square()).sum().sqrt().float()

    def advance(
        self, sums: Tensor, factor: Tensor, is_good: Tensor, options: dict[str, Any]
    ) -> Coefficients:
        """Does one step of the sizes, and says how the elements are to be updated.

        Args:
            sums: As in `grad_norm`, of unclipped gradients.
            factor: () float32, by which gradients are clipped.
            is_good: () bool; where False, nothing changes here.
            options: Of the parameter group.
        """
        step = self.step + 1
        is_due = step % self.period == 0
        phase = ((step - 1) % self.period).unsqueeze(1)
        scale_grad = (sums[:, 1] * factor).float().unsqueeze(1)
        scale_grads = self.scale_grads.scatter(1, phase, scale_grad)
        rms = torch.where(is_due | (step == 1), self._rms(sums), self.param_rms)
        # A whole period has to be seen first, also where it is a single step.
        is_sized = is_due & (step > 1) & ~self.is_scalar
        beta2 = options["betas"][1] ** self.period  # this happens once in `period` steps
        mean_square = self.scale_exp_avg_sq * beta2
        mean_square += scale_grads.square().mean(dim=1) * (1 - beta2)
        mean_square = torch.where(is_sized, mean_square, self.scale_exp_avg_sq)
        growth = self._growth(step, rms, scale_grads, mean_square, options)
        changes = self.takes_part & is_good
        for name, new in zip(self.NAMES, (step, rms, scale_grads, mean_square), strict=True):
            gate = changes.unsqueeze(1) if new.ndim == 2 else changes
            getattr(self, name).copy_(torch.where(gate, new, getattr(self, name)))

        correction = _bias_correction(options["betas"][1], step)
        # Beyond 0.99 the reference leaves the correction out.
        correction = torch.where(correction < 0.99, 1.0 / correction, 1.0).float()
        size = rms.clamp(min=options["param_min_rms"])
        size = torch.where(self.is_scalar, options["scalar_lr_scale"], size)
        growth = torch.where(is_sized & is_good, growth, 0.0)
        limit = torch.where(self.is_scalar, options["scalar_max"], float("inf")).float()
        return Coefficients(correction, size * -options["lr"], growth, limit, factor, is_good)

    def _growth(
        self,
        step: Tensor,
        rms: Tensor,
        scale_grads: Tensor,
        mean_square: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """Returns the relative change of each tensor's size, (n,): Adam on the log of the size."""
        lr = options["lr"] * options["scalar_lr_scale"]
        beta2 = options["betas"][1] ** self.period
        bias = _bias_correction(beta2, step // self.period).sqrt().float()
        denominator = mean_square.sqrt() + options["eps"]
        change = bias * -lr * scale_grads.sum(dim=1) / denominator
        change = change.masked_fill(rms < options["param_min_rms"], 0.0).clamp(min=-0.1, max=0.1)
        return torch.minimum(change, (options["param_max_rms"] - rms) / rms)

    def _rms(self, sums: Tensor) -> Tensor:
        return (sums[:, 2] / self.num_elements).sqrt().float()


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """Returns 1 - beta^step, (n,) float64."""
    return 1.0 - torch.pow(torch.full_like(step, beta, dtype=torch.float64), step)
