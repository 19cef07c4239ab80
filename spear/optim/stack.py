"""Parameters of equal shape updated together, in torch's operations on any device.

A stack's tensors have a leading dimension over its parameters, so one kernel updates them all. On
a GPU that is what counts, for there are hundreds of small parameters. On a CPU it is passes over
memory that count: stacks are kept so small that what lies between two operations stays in the
cache, and a large parameter is a stack of its own, which is only viewed, piece by piece.

`spear.optim.loops` does the same for CPUs in one pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spear.optim.shards import local
from spear.optim.sizes import Coefficients

_MAX_ELEMENTS_CPU = (1 << 15) - 64
"""Less than torch divides among threads: to wait for these takes longer than so few numbers do."""
_MAX_ELEMENTS_GPU = 1 << 25


class Moments(NamedTuple):
    """What ScaledAdam remembers of the elements of a parameter, or of this process's part of it.

    Attributes:
        exp_avg_sq: (*S) float32, decaying mean of the squared gradient.
        delta: (*S) float32, the update with momentum.
    """

    exp_avg_sq: Tensor
    delta: Tensor


class ParameterStack:
    """The elements of n parameters of one shape and type; of sharded ones this process's part.

    Args:
        rows: Place of each parameter in the vectors of its group.
        parameters: These.
        moments: Theirs.

    Attributes:
        rows: The same.
        moments: Of all, (n, *S); those that were given are copied, unless it is one alone.
    """

    def __init__(self, rows: list[int], parameters: list[Tensor], moments: list[Moments]) -> None:
        self.rows, self.parameters = rows, parameters
        self.moments = Moments(*(_stack(list(each)) for each in zip(*moments, strict=True)))
        self._rows = torch.tensor(rows, device=self.moments.delta.device)

    def add_sums(self, sums: Tensor) -> None:
        """Adds the sums of g^2, p g and p^2 of each parameter to its row of (N, 3) float64."""
        for value, gradient, _, _ in self._pieces():
            values, grads = value.float(), gradient.float()
            products = (grads.square(), values * grads, values.square())
            columns = torch.stack([product.sum(dim=1) for product in products], dim=1)
            sums.index_add_(0, self._rows, columns.to(sums))

    def update(self, coefficients: Coefficients, options: dict[str, Any]) -> None:
        """Does one step; the formulae are those of `Coefficients`.

        On a GPU a step that must not happen is done with numbers that change nothing: nobody has
        to ask the device whether it is one.

        Args:
            coefficients: Of the whole group.
            options: Of the group.
        """
        (beta1, beta2), is_good = options["betas"], coefficients.is_good
        if _lies_here(is_good) and not is_good.numpy():
            return
        keep1, keep2 = torch.where(is_good, beta1, 1.0), torch.where(is_good, beta2, 1.0)
        own = [numbers.unsqueeze(1) for numbers in coefficients.of(self._rows)]
        correction, rate, growth, limit = own
        for values, grads, exp_avg_sq, momentum in self._pieces():
            grad = _gated(grads.float() * coefficients.factor, is_good, 0.0)
            exp_avg_sq.mul_(keep2).addcmul_(grad, grad, value=1 - beta2)
            root = (exp_avg_sq * correction).sqrt_().add_(options["eps"])
            # No bias correction: the first ten or so updates are smaller, which is welcome.
            delta = grad.mul_(rate).div_(root).addcmul_(values.float(), growth)
            momentum.mul_(keep1).add_(delta, alpha=1 - beta1)
            # Adding -0.0 leaves every bit of a number.
            self._move(values, _gated(momentum, is_good, -0.0))
        if self.parameters[0].numel() == 1:
            self._clamp(limit)

    def _values(self) -> list[Tensor]:
        """Returns the parameters' values; called without gradients, they share memory."""
        return [local(parameter) for parameter in self.parameters]

    def _pieces(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields parameters, gradients, mean squares and momentum as (n, m), piece by piece."""
        grads = [local(parameter.grad) for parameter in self.parameters]
        wholes = [_stack(self._values()), _stack(grads), *self.moments]
        wholes = [whole.reshape(len(self.rows), -1) for whole in wholes]
        size = _max_elements(wholes[0].device) if self._is_view else wholes[0].shape[1]
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
            torch._foreach_add_(self._values(), list(delta.view_as(self.moments.delta).unbind(0)))

    def _clamp(self, limit: Tensor) -> None:
        """Keeps parameters of one element within limit (n, 1)."""
        limits = list(limit.view_as(self.moments.delta).unbind(0))
        torch._foreach_minimum_(self._values(), limits)
        torch._foreach_maximum_(self._values(), torch._foreach_neg(limits))


def group_by_shape(parameters: list[Tensor]) -> Iterator[list[int]]:
    """Yields places of parameters that make a stack: of one shape and type, not too large.

    Parameters of which this process holds no element are left out.
    """
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for place, parameter in enumerate(parameters):
        own = local(parameter)
        # A scalar is clamped, a shard of one element is not.
        kind = (own.dtype, own.device, own.shape, parameter.numel() == 1)
        if own.numel() > 0:
            by_kind.setdefault(kind, []).append(place)
    for (_, device, shape, _), places in by_kind.items():
        size = max(1, _max_elements(device) // shape.numel())
        for first in range(0, len(places), size):
            yield places[first : first + size]


def _max_elements(device: torch.device) -> int:
    """Returns how large stacks of several parameters, and pieces of large ones, become."""
    return _MAX_ELEMENTS_CPU if device.type == "cpu" else _MAX_ELEMENTS_GPU


def _lies_here(flag: Tensor) -> bool:
    """Tells whether the host may look at a tensor without waiting for a device."""
    return flag.device.type == "cpu"


def _gated(new: Tensor, is_good: Tensor, otherwise: float) -> Tensor:
    """Returns `new` in a good step, else a number; where the host looked, the step is good."""
    return new if _lies_here(is_good) else torch.where(is_good, new, otherwise)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacks tensors; one alone is only viewed, which spares a copy of the largest matrices."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
