"""ScaledAdam's two passes over memory on a CPU, compiled by numba.

The first pass takes the three sums of every tensor, the second updates gradient statistics,
momentum and parameter at once: 36 bytes an element are moved in a step, all that there is to read
and write. One call each serves all tensors of a group, whose addresses are passed in a table. The
tensors are cut into blocks of a fixed size, each block is summed by itself and the blocks in their
order: the number of threads changes no bit.

`spear.optim.stack` says the same in tensor operations.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from spear.optim.sizes import Coefficients
from spear.optim.stack import ParameterStack
from spear.system.numba_functions import compiled, enter_threads

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
def _view(address: Any, start: Any, size: Any) -> Any:
    """Returns `size` float32 numbers from number `start` after an address."""
    numbers: Any = _floats_at(address + 4 * start)  # type: ignore[call-arg]
    return numba.carray(numbers, (size,))


@compiled(**_SUM_OPTIONS)
def _add_up(p: Any, g: Any, sums: Any) -> None:
    squares = products = sizes = np.float32(0.0)
    for i in range(p.shape[0]):
        squares += g[i] * g[i]
        products += p[i] * g[i]
        sizes += p[i] * p[i]
    sums[0], sums[1], sums[2] = squares, products, sizes


@compiled(**_OPTIONS)
def _update(elements: Any, own: Any, shared: Any) -> None:
    """Does one step of the elements of a block.

    Args:
        elements: Parameter, gradient, mean squared gradient and momentum, (size,) each.
        own: (4,) float32: the fields of `Coefficients`.
        shared: (6,) float32: clipping factor, the betas and 1 minus these, eps.
    """
    p, g, v, d = elements
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


@compiled()
def _sum_block(tables: Any, block: Any, sums: Any) -> None:
    row, start, size = block
    _add_up(_view(tables[0, row], start, size), _view(tables[1, row], start, size), sums)


@compiled()
def _update_block(tables: Any, block: Any, own: Any, shared: Any) -> None:
    row, start, size = block
    elements = (
        _view(tables[0, row], start, size),
        _view(tables[1, row], start, size),
        _view(tables[2, row], start, size),
        _view(tables[3, row], start, size),
    )
    _update(elements, own[row], shared)


@compiled()
def _sum_all(tables: Any, blocks: Any, sums: Any) -> None:
    for i in range(blocks.shape[0]):
        _sum_block(tables, blocks[i], sums[i])


@compiled(parallel=True)
def _sum_all_threaded(tables: Any, blocks: Any, sums: Any) -> None:
    for i in numba.prange(blocks.shape[0]):
        _sum_block(tables, blocks[i], sums[i])


@compiled()
def _update_all(tables: Any, blocks: Any, own: Any, shared: Any) -> None:
    for i in range(blocks.shape[0]):
        _update_block(tables, blocks[i], own, shared)


@compiled(parallel=True)
def _update_all_threaded(tables: Any, blocks: Any, own: Any, shared: Any) -> None:
    for i in numba.prange(blocks.shape[0]):
        _update_block(tables, blocks[i], own, shared)


class StackLoops:
    """Both passes over all elements of some stacks.

    Args:
        stacks: `fits` is true of each.
    """

    def __init__(self, stacks: Sequence[ParameterStack]) -> None:
        self.stacks = stacks
        self.rows = torch.tensor([row for stack in stacks for row in stack.rows])
        sizes = [stack.delta[0].numel() for stack in stacks for _ in stack.rows]
        blocks = [
            (row, start, min(_BLOCK, size - start))
            for row, size in enumerate(sizes)
            for start in range(0, size, _BLOCK)
        ]
        self.num_elements = sum(sizes)
        self._blocks = np.array(blocks, dtype=np.int64)
        self._first_blocks = np.flatnonzero(self._blocks[:, 1] == 0)
        self._state_table = _addresses(
            [
                [row for stack in stacks for row in stack.exp_avg_sq],
                [row for stack in stacks for row in stack.delta],
            ]
        )

    @staticmethod
    def fits(stack: ParameterStack) -> bool:
        """Tells whether a stack is of float32 on a CPU, each parameter in one piece."""
        return all(
            value.device.type == "cpu" and value.dtype == torch.float32 and value.is_contiguous()
            for value in stack.locals()
        )

    def add_sums(self, sums: Tensor) -> None:
        """Adds the sums of g^2, p g and p^2 of each parameter to its row of (N, 3) float64."""
        partial = np.empty((len(self._blocks), 3), dtype=np.float32)
        gradients = self._gradients()
        run = _sum_all_threaded if self._has_threads() else _sum_all
        run(_addresses([self._values(), gradients]), self._blocks, partial)
        totals = np.add.reduceat(partial.astype(np.float64), self._first_blocks, axis=0)
        sums.index_add_(0, self.rows, torch.from_numpy(totals))

    def update(
        self,
        coefficients: Coefficients,
        factor: Tensor,
        is_good: Tensor,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Does one step; see `ParameterStack.update`."""
        if not is_good.numpy():  # it lies in this memory already: nobody waits for it
            return
        numbers = vars(coefficients).values()
        own = torch.stack(list(numbers), dim=1).index_select(0, self.rows).numpy()
        rests = [1 - beta for beta in betas]
        shared = np.array([factor.numpy(), *betas, *rests, eps], dtype=np.float32)
        gradients = self._gradients()
        tables = np.concatenate([_addresses([self._values(), gradients]), self._state_table])
        run = _update_all_threaded if self._has_threads() else _update_all
        run(tables, self._blocks, own, shared)

    def _values(self) -> list[Tensor]:
        return [value for stack in self.stacks for value in stack.locals()]

    def _gradients(self) -> list[Tensor]:
        """Returns the gradients in the order of memory of the parameters; mostly as they are."""
        return [grad.contiguous() for stack in self.stacks for grad in stack.gradients()]

    def _has_threads(self) -> bool:
        return enter_threads(self.num_elements, _MIN_ELEMENTS)


def _addresses(tensors: list[list[Tensor]]) -> Any:
    """Returns where the first elements of tensors lie, int64, in the form of the argument."""
    return np.array([[tensor.data_ptr() for tensor in row] for row in tensors], dtype=np.int64)
