"""The gradient of a depthwise convolution's kernel on a CPU, compiled by numba.

torch's takes up to twenty times as long as the forward pass, with as many multiplications. Here
channels are last in memory and make the vectors.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from spear.system.numba_functions import compiled, compiled_for_threads

_TASKS = 16
"""Parts of the work; their number is fixed, so that the sum does not depend on that of threads."""
_MIN_ELEMENTS = 1 << 15


@compiled(fastmath={"contract", "nsz"})
def _add_product(x: Any, y: Any, total: Any) -> None:
    for c in range(total.shape[0]):
        total[c] += x[c] * y[c]


@compiled()
def _add_row(x: Any, grad: Any, total: Any) -> None:
    """Adds x (W + kw - 1, C) times grad (W, C), shifted by every j < kw, to total (kw, C)."""
    # The sum of a row by itself first: less rounding than in one long sum.
    row = np.zeros_like(total)
    for w in range(grad.shape[0]):
        for j in range(row.shape[0]):
            _add_product(x[w + j], grad[w], row[j])
    total += row


@compiled()
def _add_task(x: Any, grad: Any, totals: Any, task: int) -> None:
    """Fills totals[task] (kh, kw, C) from the task's share of the rows of grad (B, H, W, C)."""
    num_tasks, height = totals.shape[:2]
    num_rows = grad.shape[0] * grad.shape[1]
    for row in range(task * num_rows // num_tasks, (task + 1) * num_rows // num_tasks):
        b, h = row // grad.shape[1], row % grad.shape[1]
        for i in range(height):
            _add_row(x[b, h + i], grad[b, h], totals[task, i])


@compiled_for_threads(_MIN_ELEMENTS)
def _add_all(x: Any, grad: Any, totals: Any) -> None:
    for task in numba.prange(totals.shape[0]):
        _add_task(x, grad, totals, task)


def kernel_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Returns the gradient (kh, kw, C) of the kernel of a depthwise convolution.

    Args:
        x: (B, H + kh - 1, W + kw - 1, C) float32 contiguous, its input with the padding.
        grad: (B, H, W, C) float32 contiguous, the gradient of its output.
    """
    height, width = (a - b + 1 for a, b in zip(x.shape[1:3], grad.shape[1:3], strict=True))
    totals = torch.zeros(_TASKS, height, width, x.shape[3])
    _add_all(grad.numel(), x.detach().numpy(), grad.detach().numpy(), totals.numpy())
    return totals.sum(0)
