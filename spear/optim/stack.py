"""Parameters of equal shape updated together, in torch's operations on any device.

A stack's tensors have a leading dimension over its parameters, so one kernel updates them all. On
a GPU that is what counts, for there are hundreds of small parameters. On a CPU it is passes over
memory that count: stacks are kept so small that what lies between two operations stays in the
cache, and a large parameter is a stack of its own, which is only viewed, piece by piece.

`spear.optim.loops` does the same for CPUs in one pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spear.optim.shards import local
from spear.optim.sizes import Coefficients
from spear.optim.state import ParameterState

_MAX_ELEMENTS_CPU = (1 << 15) - 64
"""Less than torch divides among threads: to wait for these takes longer than so few numbers do."""
_MAX_ELEMENTS_GPU = 1 << 25


class ParameterStack:
    """The elements of n parameters of one shape and type; of sharded ones this process's part.

    Args:
        rows: Place of each parameter in the vectors of its group.
        parameters: These.
        states: Theirs.

    Attributes:
        exp_avg_sq: (n, *S) float32.
        delta: (n, *S) float32.
    """

    def __init__(
        self, rows: list[int], parameters: list[Tensor], states: list[ParameterState]
    ) -> None:
        self.rows, self.parameters = rows, parameters
        self.exp_avg_sq = _stack([state.exp_avg_sq for state in states])
        self.delta = _stack([state.delta for state in states])
        self._index = torch.tensor(rows, device=self.delta.device)

    def locals(self) -> list[Tensor]:
        """Returns the parameters' values; called without gradients, they share memory."""
        return [local(parameter) for parameter in self.parameters]

    def gradients(self) -> list[Tensor]:
        """Returns their gradients."""
        return [local(parameter.grad) for parameter in self.parameters]

    def add_sums(self, sums: Tensor) -> None:
        """Adds the sums of g^2, p g and p^2 of each parameter to its row of (N, 3) float64."""
        for value, gradient, _, _ in self._pieces():
            values, grads = value.float(), gradient.float()
            products = (grads.square(), values * grads, values.square())
            columns = torch.stack([product.sum(dim=1) for product in products], dim=1)
            sums.index_add_(0, self._index, columns.to(sums))

    def update(
        self,
        coefficients: Coefficients,
        factor: Tensor,
        is_good: Tensor,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Does one step; the formulae are those of `Coefficients`.

        Args:
            coefficients: Of the whole group.
            factor: () float32, by which the gradients are clipped.
            is_good: () bool; where False, nothing changes.
            betas: Decay of the momentum and of the mean squared gradient.
            eps: Added to the root mean squared gradient.
        """
        is_seen = _lies_here(is_good)
        if is_seen and not is_good.numpy():
            return
        gate = None if is_seen else is_good
        correction, rate, growth, limit = (
            numbers.index_select(0, self._index).unsqueeze(1)
            for numbers in vars(coefficients).values()
        )
        for values, grads, exp_avg_sq, momentum in self._pieces():
            grad = grads.float() * factor
            mean_square = (exp_avg_sq * betas[1]).addcmul_(grad, grad, value=1 - betas[1])
            root = (mean_square * correction).sqrt_().add_(eps)
            delta = grad.mul_(rate).div_(root).addcmul_(values.float(), growth)
            # No bias correction: the first ten or so updates are smaller, which is welcome.
            delta.mul_(1 - betas[0]).add_(momentum, alpha=betas[0])
            _store(mean_square, exp_avg_sq, gate)
            _store(delta, momentum, gate)
            # Adding -0.0 leaves every bit of a number.
            self._move(values, delta if gate is None else torch.where(gate, delta, -0.0))
        if self.parameters[0].numel() == 1:
            self._clamp(limit)

    def _pieces(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields parameters, gradients, mean squares and momentum as (n, m), piece by piece."""
        count = len(self.rows)
        wholes = (
            _stack(self.locals()).reshape(count, -1),
            _stack(self.gradients()).reshape(count, -1),
            self.exp_avg_sq.view(count, -1),
            self.delta.view(count, -1),
        )
        size = _max_elements(self.delta.device) if self._is_view else wholes[0].shape[1]
        yield from zip(*(whole.split(size, dim=1) for whole in wholes), strict=True)

    @property
    def _is_view(self) -> bool:
        """Whether the parameters in `_pieces` are the parameters themselves, not a copy."""
        return len(self.rows) == 1 and local(self.parameters[0]).is_contiguous()

    def _move(self, values: Tensor, delta: Tensor) -> None:
        """Adds delta (n, m) to the parameters, of which `values` is a piece."""
        if self._is_view:
            values.add_(delta)
        else:
            torch._foreach_add_(self.locals(), list(delta.view_as(self.delta).unbind(0)))

    def _clamp(self, limit: Tensor) -> None:
        """Keeps parameters of one element within limit (n, 1)."""
        limits = list(limit.view_as(self.delta).unbind(0))
        torch._foreach_minimum_(self.locals(), limits)
        torch._foreach_maximum_(self.locals(), torch._foreach_neg(limits))


def form_stacks(parameters: list[Tensor], states: list[ParameterState]) -> Iterator[ParameterStack]:
    """Yields stacks of the parameters, one of each shape and type, or more where these are large.

    Parameters of which this process holds no element are left out.
    """
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for row, parameter in enumerate(parameters):
        own = local(parameter)
        # A scalar is clamped, a shard of one element is not.
        kind = (own.dtype, own.device, own.shape, parameter.numel() == 1)
        if own.numel() > 0:
            by_kind.setdefault(kind, []).append(row)
    for (_, device, shape, _), rows in by_kind.items():
        size = max(1, _max_elements(device) // shape.numel())
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            yield ParameterStack(some, [parameters[r] for r in some], [states[r] for r in some])


def _max_elements(device: torch.device) -> int:
    """Returns how large stacks of several parameters, and pieces of large ones, become."""
    return _MAX_ELEMENTS_CPU if device.type == "cpu" else _MAX_ELEMENTS_GPU


def _lies_here(flag: Tensor) -> bool:
    """Tells whether the host may look at a tensor without waiting for a device."""
    return flag.device.type == "cpu"


def _store(new: Tensor, own: Tensor, gate: Tensor | None) -> None:
    """Copies new values into a state where the gate, () bool, is open; None is open."""
    if gate is None:
        own.copy_(new)
    else:
        torch.where(gate, new, own, out=own)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacks tensors; one alone is only viewed, which spares a copy of the largest matrices."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
