"""A linear layer and its cross-entropy over N x K classes, without the logits in memory.

The logits (F, N x K) of ten minutes of audio, 30,000 frames of 16 x 256 classes, are 492 MB in
float32, and torch's cross-entropy holds three tensors of their size at its peak. Here they are made
for a thousand frames at a time, in the forward pass, and turned at once into the gradients of
the frames and of the layer; those are all that is kept.

There is no fused GPU kernel: it would save passes over logits, F N K numbers each, most of which
find them in the cache; the three matrix products of 2 F D N K operations would stay.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_FRAMES = 1024
"""Frames of which logits exist at a time: 16 MiB of them in float32 for 16 x 256 classes. With
fewer, adding up the layer's gradient would show, and threads would meet more often, which is slow
where cores are shared."""
MAX_CHUNK_LOGITS = 1 << 22
"""With more classes the frames are fewer."""


class TokenLoss(NamedTuple):
    """What the predictions of one teacher's tokens cost.

    Attributes:
        total: () float32, differentiable: the weighted sum over frames and codebooks.
        cross_entropy: (F, N) float32, without weights and without gradient.
        predictions: (F, N) int64, the most probable tokens.
    """

    total: Tensor
    cross_entropy: Tensor
    predictions: Tensor


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    *,
    frame_weights: Tensor,
    codebook_size: int,
) -> TokenLoss:
    """Computes sum over t and n of frame_weights[t] CE(logits[t, n], tokens[t, n]).

    Its backward pass can be run once: the gradients that it returns are those that were kept.

    Args:
        hidden: (F, D) float frames.
        weight: (N K, D) float, of the layer that makes logits (F, N, K) of them.
        bias: (N K,) float.
        tokens: (F, N) integer targets below K.
        frame_weights: (F,) float32, without gradient.
        codebook_size: K.
    """
    inputs = (hidden, weight, bias, tokens, frame_weights)
    return TokenLoss(*_ChunkedCrossEntropy.apply(*inputs, codebook_size, torch.is_grad_enabled()))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """See `chunked_cross_entropy`.

    The loss is the last thing that is computed, so its gradient is known in the forward pass up to
    one factor: d total / d logits[t, n, :] = w_t (softmax - one-hot). Backward multiplies by it.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        tokens: Tensor,
        frame_weights: Tensor,
        codebook_size: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _matmul_dtype(hidden)
        kernel, offset = weight.to(dtype), bias.to(dtype)
        losses = torch.empty(tokens.shape, dtype=torch.float32, device=hidden.device)
        predictions = torch.empty_like(tokens, dtype=torch.int64)
        grads = _Gradients(hidden, weight, bias) if with_gradient else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(len(hidden), weight.size(0)):
                inputs = hidden[part].to(dtype)
                logits = torch.addmm(offset, inputs, kernel.T).float()
                logits, targets = logits.unflatten(1, (-1, codebook_size)), tokens[part].long()
                probs, losses[part], predictions[part] = _compare(logits, targets)
                del logits  # so that no two chunks' exist
                if grads is not None:
                    probs = _subtract_one_hot(probs, targets)
                    grads.add(part, probs.flatten(1), inputs, kernel, frame_weights[part].float())
                del probs
            total = frame_weights.float() @ losses.sum(dim=1)
        ctx.grads = grads
        ctx.mark_non_differentiable(losses, predictions)
        return total, losses, predictions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the token loss was differentiated already: compute it again")
        grads, ctx.grads = ctx.grads, None
        return (*grads.scaled(grad_outputs[0]), None, None, None, None)


class _Gradients:
    """The gradients of frames and layer, in the types of these, as they grow chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.hidden = torch.empty_like(hidden)
        self.weight, self.bias = torch.zeros_like(weight), torch.zeros_like(bias)

    def add(
        self, part: slice, slope: Tensor, inputs: Tensor, kernel: Tensor, frame_weights: Tensor
    ) -> None:
        """Adds a chunk's share.

        Args:
            part: The chunk's f frames.
            slope: (f, N K) float32, gradient of the unweighted loss by the logits.
            inputs: (f, D) frames, in the type of the matrix products.
            kernel: (N K, D), in the same type.
            frame_weights: (f,) float32. They multiply vectors of D numbers, not of N K.
        """
        self.bias += (frame_weights @ slope).to(self.bias.dtype)
        weights, slope = frame_weights.unsqueeze(1), slope.to(kernel.dtype)
        torch.mul(slope @ kernel, weights, out=self.hidden[part])
        weighted = (inputs * weights).to(kernel.dtype)
        if self.weight.dtype == kernel.dtype:
            self.weight.addmm_(slope.T, weighted)
        else:  # sums stay in the type of the parameters
            self.weight += slope.T @ weighted

    def scaled(self, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns all gradients, multiplied in place by a factor (): a copy would double them."""
        parts = (self.hidden, self.weight, self.bias)
        return tuple(part.mul_(factor.to(part.dtype)) for part in parts)  # type: ignore[return-value]


def _chunks(num_frames: int, num_logits: int) -> list[slice]:
    """Cuts frames of `num_logits` logits each into chunks."""
    step = max(1, min(CHUNK_FRAMES, MAX_CHUNK_LOGITS // num_logits))
    return [slice(start, start + step) for start in range(0, num_frames, step)]


def _compare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes softmax, cross-entropy and predictions in two passes over the logits.

    log sum exp is taken from the highest logit and its probability, which is at least 1 / K: its
    logarithm is exact to rounding where that of the target's probability may be log 0.

    Args:
        logits: (f, N, K) float32.
        targets: (f, N) int64.

    Returns:
        (f, N, K) float32 probabilities, (f, N) float32 cross-entropies, (f, N) int64 predictions.
    """
    highest, predictions = logits.max(dim=-1)
    probs = logits.softmax(dim=-1)
    log_sum = highest - _pick(probs, predictions).log()
    return probs, log_sum - _pick(logits, targets), predictions


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """Returns values[..., places] (f, N) of (f, N, K)."""
    return values.gather(-1, places.unsqueeze(-1)).squeeze(-1)


def _subtract_one_hot(probs: Tensor, targets: Tensor) -> Tensor:
    """Returns probs (f, N, K), less 1 in place at the targets (f, N)."""
    places = targets.unsqueeze(-1)
    return probs.scatter_add_(-1, places, probs.new_full((), -1.0).expand_as(places))


def _matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Returns what a linear layer would compute in at this place: autocast's type, if it is on."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype
