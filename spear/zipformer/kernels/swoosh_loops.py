"""The Swoosh functions for float32 on a CPU, compiled by numba: one pass over memory.

`spear.zipformer.modules.activations` says the same in tensor operations, of which each is a pass;
its softplus alone takes three times as long as all of this.

With z = x - offset and e = exp(-|z|), softplus(z) = max(z, 0) + log(1 + e), and the sigmoid of z is
1 / (1 + e) or e / (1 + e). exp splits off a power of two and is a polynomial in the rest (Cephes'
coefficients); log(1 + e) for e in [0, 1] is the odd series of 2 atanh(e / (2 + e)). Both are within
1.5e-7 of the true values.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from spear.system.numba_functions import compiled, compiled_for_threads

_BLOCK = 1 << 13
"""Elements that one thread takes at a time."""
_MIN_ELEMENTS = 4 * _BLOCK

# Everything but a new order of additions: the loops are to become vector instructions, and two
# runs, or two numbers of threads, are to give the same bits. numpy's division raises nothing.
_OPTIONS = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

_SLOPE = np.float32(0.08)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LOWEST = np.float32(-87.0)  # exp of it is the smallest that is not subnormal
_LOG2_E = np.float32(1.44269504)
_ROUNDER = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves a whole number in the last bits
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_5, _EXP_4, _EXP_3, _EXP_2, _EXP_1, _EXP_0 = np.array(
    [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5],
    dtype=np.float32,
)
_LOG_13, _LOG_11, _LOG_9, _LOG_7, _LOG_5, _LOG_3 = np.array(
    [2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3], dtype=np.float32
)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


@compiled(inline="always", **_OPTIONS)
def _exp(x: Any) -> Any:
    """exp(x) for x <= 0; below -87 the value at -87."""
    x = _LOWEST if x < _LOWEST else x  # so written, it lets NaN pass
    rounded = x * _LOG2_E + _ROUNDER
    power = rounded - _ROUNDER
    rest = x - power * _LN2_HIGH
    rest = rest - power * _LN2_LOW
    sum_ = _EXP_5 * rest + _EXP_4
    sum_ = sum_ * rest + _EXP_3
    sum_ = sum_ * rest + _EXP_2
    sum_ = sum_ * rest + _EXP_1
    sum_ = sum_ * rest + _EXP_0
    sum_ = sum_ * (rest * rest) + rest + _ONE
    bits = (np.float32(rounded).view(np.int32) + _BIAS) << _MANTISSA_BITS
    return sum_ * np.int32(bits).view(np.float32)


@compiled(inline="always", **_OPTIONS)
def _log_of_one_plus(e: Any) -> Any:
    """log(1 + e) for 0 <= e <= 1."""
    t = e / (_TWO + e)
    square = t * t
    sum_ = _LOG_13 * square + _LOG_11
    sum_ = sum_ * square + _LOG_9
    sum_ = sum_ * square + _LOG_7
    sum_ = sum_ * square + _LOG_5
    sum_ = sum_ * square + _LOG_3
    sum_ = sum_ * square + _TWO
    return sum_ * t


@compiled(**_OPTIONS)
def _forward(x: Any, y: Any, offset: Any, constant: Any) -> None:
    """Writes swoosh(x) into y; both (n,)."""
    for i in range(x.shape[0]):
        z = x[i] - offset
        e = _exp(z if z < _ZERO else -z)
        positive = z if z > _ZERO else _ZERO
        y[i] = positive + _log_of_one_plus(e) - _SLOPE * x[i] - constant


@compiled(**_OPTIONS)
def _backward(x: Any, y: Any, grad: Any, offset: Any, constant: Any) -> None:
    """Writes swoosh(x) into y, and multiplies grad by the derivative; all (n,)."""
    for i in range(x.shape[0]):
        z = x[i] - offset
        e = _exp(z if z < _ZERO else -z)
        positive = z if z > _ZERO else _ZERO
        y[i] = positive + _log_of_one_plus(e) - _SLOPE * x[i] - constant
        share = _ONE / (_ONE + e)
        grad[i] = grad[i] * ((share if z > _ZERO else e * share) - _SLOPE)


@compiled(**_OPTIONS)
def _gradient(x: Any, grad: Any, result: Any, offset: Any) -> None:
    """Writes grad times the derivative into result; all (n,)."""
    for i in range(x.shape[0]):
        z = x[i] - offset
        e = _exp(z if z < _ZERO else -z)
        share = _ONE / (_ONE + e)
        result[i] = grad[i] * ((share if z > _ZERO else e * share) - _SLOPE)


@compiled_for_threads(_MIN_ELEMENTS)
def _forward_blocks(x: Any, y: Any, offset: Any, constant: Any) -> None:
    for block in numba.prange((x.shape[0] + _BLOCK - 1) // _BLOCK):
        first, end = block * _BLOCK, min((block + 1) * _BLOCK, x.shape[0])
        _forward(x[first:end], y[first:end], offset, constant)


@compiled_for_threads(_MIN_ELEMENTS)
def _backward_blocks(x: Any, y: Any, grad: Any, offset: Any, constant: Any) -> None:
    for block in numba.prange((x.shape[0] + _BLOCK - 1) // _BLOCK):
        first, end = block * _BLOCK, min((block + 1) * _BLOCK, x.shape[0])
        _backward(x[first:end], y[first:end], grad[first:end], offset, constant)


@compiled_for_threads(_MIN_ELEMENTS)
def _gradient_blocks(x: Any, grad: Any, result: Any, offset: Any) -> None:
    for block in numba.prange((x.shape[0] + _BLOCK - 1) // _BLOCK):
        first, end = block * _BLOCK, min((block + 1) * _BLOCK, x.shape[0])
        _gradient(x[first:end], grad[first:end], result[first:end], offset)


def swoosh(x: Tensor, offset: float, constant: float) -> Tensor:
    """Returns the activation of a dense float32 tensor, in the memory order of x."""
    y = torch.empty_like(x)
    _forward_blocks(x.numel(), _flat(x), _flat(y), np.float32(offset), np.float32(constant))
    return y


def swoosh_gradient(x: Tensor, grad: Tensor, offset: float) -> Tensor:
    """Returns grad times the derivative; both dense float32, in memory in the same order."""
    result = torch.empty_like(x)
    _gradient_blocks(x.numel(), _flat(x), _flat(grad), _flat(result), np.float32(offset))
    return result


def swoosh_backward(x: Tensor, grad: Tensor, offset: float, constant: float) -> Tensor:
    """Returns swoosh(x), and multiplies grad in place by the derivative.

    Args:
        x: Dense float32.
        grad: Float32, its elements in memory in the order of those of x.
        offset: Of the Swoosh.
        constant: Of the Swoosh.
    """
    y = torch.empty_like(x)
    shape = np.float32(offset), np.float32(constant)
    _backward_blocks(x.numel(), _flat(x), _flat(y), _flat(grad), *shape)
    return y


def _flat(x: Tensor) -> Any:
    """Returns the elements (n,) of a dense tensor as they lie in memory."""
    return torch.as_strided(x.detach(), (x.numel(),), (1,)).numpy()
