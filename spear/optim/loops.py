"""ScaledAdam's two passes over memory on a CPU, compiled by numba.

The first pass takes the three sums of every tensor, the second updates gradient statistics,
momentum and parameter at once: 36 bytes an element are moved in a step, all that there is to read
and write. One call each serves all tensors of a group, whose addresses are passed in a table. The
tensors are cut into blocks of a fixed size, each block is summed by itself and the blocks in their
order: the number of threads changes no bit.

`spear.optim.stack` says the same in tensor operations.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from spear.optim.shards import local
from spear.optim.sizes import Coefficients
from spear.optim.stack import Moments
from spear.system.numba_functions import compiled, compiled_for_threads

_BLOCK = 1 << 14
"""Elements that one thread takes at a time."""
_MIN_ELEMENTS = 4 * _BLOCK

_OPTIONS = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
# Additions of a sum may be put into lanes of a vector. A machine always does that alike.
_SUM_OPTIONS = {"fastmath": {"contract", "nsz", "reassoc"}, "error_model": "numpy"}


@intrinsic
def _floats_at(typing_context: Any, address: Any) -> Any:
    """Reads an int64 as the address of float32 numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return numba.types.CPointer(numba.float32)(numba.int64), generate


@compiled(inline="always")
def _view(addresses: Any, block: Any) -> Any:
    """Returns the float32 numbers of a block (tensor, first, size); addresses are of tensors."""
    numbers: Any = _floats_at(addresses[block[0]] + 4 * block[1])  # type: ignore[call-arg]
    return numba.carray(numbers, (block[2],))


@compiled(**_SUM_OPTIONS)
def _add_up(p: Any, g: Any, sums: Any) -> None:
    squares = products = sizes = np.float32(0.0)
    for i in range(p.shape[0]):
        squares += g[i] * g[i]
        products += p[i] * g[i]
        sizes += p[i] * p[i]
    sums[0], sums[1], sums[2] = squares, products, sizes


@compiled(**_OPTIONS)
def _update(values: Any, state: Any, own: Any, shared: Any) -> None:
    """Does one step of the elements of a block.

    Args:
        values: Parameter and gradient, (size,) each.
        state: Mean squared gradient and momentum, (size,) each.
        own: (4,) float32: the fields of `Coefficients`.
        shared: (6,) float32: clipping factor, the betas and 1 minus these, eps.
    """
    (p, g), (v, d) = values, state
    correction, rate, growth, limit = own[0], own[1], own[2], own[3]
    factor, eps = shared[0], shared[5]
    beta1, beta2, rest1, rest2 = shared[1], shared[2], shared[3], shared[4]
    for i in range(p.shape[0]):
        grad = g[i] * factor
        mean_square = beta2 * v[i] + rest2 * (grad * grad)
        root = np.sqrt(mean_square * correction) + eps
        delta = beta1 * d[i] + rest1 * (rate * grad / root + growth * p[i])
        moved = p[i] + delta
        v[i] = mean_square
        d[i] = delta
        p[i] = min(max(moved, -limit), limit)


@compiled_for_threads(_MIN_ELEMENTS)
def _add_up_blocks(tables: Any, blocks: Any, sums: Any) -> None:
    for i in numba.prange(blocks.shape[0]):
        _add_up(_view(tables[0], blocks[i]), _view(tables[1], blocks[i]), sums[i])


@compiled_for_threads(_MIN_ELEMENTS)
def _update_blocks(tables: Any, blocks: Any, own: Any, shared: Any) -> None:
    for i in numba.prange(blocks.shape[0]):
        values = _view(tables[0], blocks[i]), _view(tables[1], blocks[i])
        state = _view(tables[2], blocks[i]), _view(tables[3], blocks[i])
        _update(values, state, own[blocks[i, 0]], shared)


def fits(parameter: Tensor) -> bool:
    """Tells whether the loops can update a parameter: float32 on a CPU, in one piece, not empty."""
    own = local(parameter)
    is_plain = own.device.type == "cpu" and own.dtype == torch.float32
    return is_plain and own.is_contiguous() and own.numel() > 0


class CompiledPasses:
    """Both passes over the elements of some parameters, of sharded ones over this process's part.

    Args:
        rows: Place of each parameter in the vectors of its group.
        parameters: These; `fits` is true of each.
        moments: Theirs, changed in place.
    """

    def __init__(self, rows: list[int], parameters: list[Tensor], moments: list[Moments]) -> None:
        self.parameters = parameters
        self._squares = [each.exp_avg_sq for each in moments]
        self._deltas = [each.delta for each in moments]
        self._rows = torch.tensor(rows)
        blocks = [
            (place, first, min(_BLOCK, delta.numel() - first))
            for place, delta in enumerate(self._deltas)
            for first in range(0, delta.numel(), _BLOCK)
        ]
        self._num_elements = sum(size for _, _, size in blocks)
        self._blocks = np.array(blocks, dtype=np.int64)
        self._first_blocks = np.flatnonzero(self._blocks[:, 1] == 0)

    def add_sums(self, sums: Tensor) -> None:
        """Adds the sums of g^2, p g and p^2 of each parameter to its row of (N, 3) float64."""
        partial = np.empty((len(self._blocks), 3), dtype=np.float32)
        tensors = self._values_and_gradients()
        _add_up_blocks(self._num_elements, _addresses(*tensors), self._blocks, partial)
        totals = np.add.reduceat(partial.astype(np.float64), self._first_blocks, axis=0)
        sums.index_add_(0, self._rows, torch.from_numpy(totals))

    def update(self, coefficients: Coefficients, options: dict[str, Any]) -> None:
        """Does one step; see `ParameterStack.update`."""
        if not coefficients.is_good.numpy():  # it lies in this memory: nobody waits for it
            return
        own = torch.stack(coefficients.of(self._rows), dim=1).numpy()
        betas = options["betas"]
        rests = [1 - beta for beta in betas]
        factor = coefficients.factor.numpy()
        shared = np.array([factor, *betas, *rests, options["eps"]], dtype=np.float32)
        tensors = *self._values_and_gradients(), self._squares, self._deltas
        _update_blocks(self._num_elements, _addresses(*tensors), self._blocks, own, shared)

    def _values_and_gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns both, alike in memory; gradients mostly are so as they are."""
        values = [local(parameter) for parameter in self.parameters]
        return values, [local(parameter.grad).contiguous() for parameter in self.parameters]


def _addresses(*tensors: list[Tensor]) -> Any:
    """Returns where the first elements of lists of tensors lie, (lists, tensors) int64."""
    return np.array([[tensor.data_ptr() for tensor in row] for row in tensors], dtype=np.int64)
