"""Trading a little arithmetic for much memory: what is cheap to compute is computed twice.

Autograd keeps every tensor that a backward pass reads. Of a layer's tensors half are products of
elementwise operations on other tensors that it keeps anyway.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Function = Callable[..., Tensor]

_MIN_ELEMENTS = 1 << 19
"""Of small tensors there is little to save, and the bookkeeping takes longer than they do."""


def recomputed(function: Function, *tensors: Tensor) -> Tensor:
    """Returns function(*tensors), keeping only `tensors` for the backward pass.

    There, `function` runs again up to the last tensor that its backward pass needs: a matrix
    product or convolution at its end is not repeated.

    Args:
        function: Draws no random numbers.
        *tensors: All that it depends on and that needs a gradient, besides parameters.
    """
    # A compiler decides by itself what to compute again.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    if sum(tensor.numel() for tensor in tensors) < _MIN_ELEMENTS:
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result
