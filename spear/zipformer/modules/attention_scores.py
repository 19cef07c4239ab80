"""From queries and keys to attention weights, forward and backward, with little memory.

The score of source frame j for target frame i is q_i k_j + p_i r(j - i). Written as tensor
operations, autograd would keep or make five tensors of the size of the weights or twice that (the
scores by offset, by frame, their sum, masked, and a gradient padded with zeros), which for ten
seconds are 30 MB each. Here the weights are all that is kept, and on a CPU a few utterances are
worked on at a time, so that what is in between stays in the cache.

Cost for T target and S source frames, d channels of a query and p of a position query, per head:
T S d + T (T + S) p multiplications forward and twice as many backward.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from spear.zipformer.frames import MASKED_SCORE
from spear.zipformer.modules.positions import relative_to_absolute

_MAX_SCORE = 25.0
_PART_ELEMENTS = 1 << 20


class Projections(NamedTuple):
    """What the weights depend on.

    Attributes:
        query: (B, T, H d).
        key: (B, S, H d), S >= T: the last T sources are the target frames.
        pos_query: (B, T, H p), or None to leave positions out.
        encoded: (H, p, T + S - 1), projected encodings of the offsets 1 - S ... T - 1.
    """

    query: Tensor
    key: Tensor
    pos_query: Tensor | None
    encoded: Tensor | None


class SharedWeights(NamedTuple):
    """The same weights, once for each of the three modules of a layer that use them.

    Their gradients arrive apart, so that autograd adds up no tensors of this size.

    Attributes:
        first: (B, H, T, S), target frame before source frame; every row sums to one.
        second: The same tensor.
        one_head: (B, T, S), of the first head.
    """

    first: Tensor
    second: Tensor
    one_head: Tensor


def attention_weights(
    projections: Projections, hidden: Tensor, num_heads: int, penalty: float = 0.0
) -> SharedWeights:
    """Computes softmax over sources of the scores.

    Args:
        projections: Queries, keys and positions.
        hidden: (B, 1, 1 or T, S) bool, True where a target frame must not see a source frame.
        num_heads: H.
        penalty: Slope of a penalty on scores beyond 25, which acts on the gradient alone; 0 is
            none.

    Returns:
        The weights, in the type of the query.
    """
    if torch.compiler.is_compiling():
        if projections.encoded is not None:  # see relative_to_absolute
            projections = projections._replace(encoded=F.pad(projections.encoded, (0, 1)))
        scores = _scores(projections, num_heads)
        weights = _softmax(scores.masked_fill(hidden, MASKED_SCORE))
        return SharedWeights(weights, weights, weights[:, 0])
    return SharedWeights(*_AttentionWeights.apply(*projections, hidden, num_heads, penalty))


class _AttentionWeights(Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes everything by position)
        ctx: Any,
        query: Tensor,
        key: Tensor,
        pos_query: Tensor | None,
        encoded: Tensor | None,
        hidden: Tensor,
        num_heads: int,
        penalty: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        projections = Projections(query, key, pos_query, encoded)
        batch_size, num_targets, num_sources = query.shape[0], query.shape[1], key.shape[1]
        weights = query.new_empty(batch_size, num_heads, num_targets, num_sources)
        for part in _parts(weights):
            scores = _scores(_part_of(projections, part), num_heads)
            _hide(scores, hidden[part])
            weights[part] = _softmax(scores)
        ctx.save_for_backward(*projections, weights)
        ctx.constants = (num_heads, penalty)
        return weights, weights.detach(), weights.detach()[:, 0]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, second: Tensor, one_head: Tensor
    ) -> tuple[Tensor | None, ...]:
        *saved, weights = ctx.saved_tensors
        projections = Projections(*saved)
        num_heads, penalty = ctx.constants
        grads = _zeros_like(projections)
        by_offset = None  # made once: what lies between the entries that are written stays zero
        if projections.encoded is not None:
            num_offsets = projections.encoded.shape[2]
            size = _parts(weights)[0].stop
            by_offset = grad.new_zeros(size, *weights.shape[1:3], num_offsets)
        for part in _parts(weights):
            some = _part_of(projections, part)
            grad_weights = grad[part] + second[part]
            grad_weights[:, 0] += one_head[part]
            grad_scores = _softmax_backward(grad_weights, weights[part])
            if penalty != 0.0:
                scores = _scores(some, num_heads)
                grad_scores += penalty * scores.sign() * (scores.abs() > _MAX_SCORE)
            scratch = None if by_offset is None else by_offset[: len(grad_scores)]
            _add_gradients(grad_scores, some, _part_of(grads, part), scratch)
        return *grads, None, None, None


def _parts(weights: Tensor) -> list[slice]:
    """What of a batch to work on at a time: on a CPU what stays in its cache, elsewhere all."""
    batch_size = weights.shape[0]
    size = max(1, batch_size)
    if weights.device.type == "cpu" and weights.numel() > 0:
        size = min(size, max(1, _PART_ELEMENTS * batch_size // weights.numel()))
    return [slice(first, first + size) for first in range(0, batch_size, size)]


def _zeros_like(projections: Projections) -> Projections:
    query, key, pos_query, encoded = projections
    return Projections(
        torch.zeros_like(query),
        torch.zeros_like(key),
        None if pos_query is None else torch.zeros_like(pos_query),
        None if encoded is None else torch.zeros_like(encoded),
    )


def _part_of(projections: Projections, part: slice) -> Projections:
    query, key, pos_query, encoded = projections
    return Projections(
        query[part], key[part], None if pos_query is None else pos_query[part], encoded
    )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turns (B, T, H d) into (B, H, T, d)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _scores(projections: Projections, num_heads: int) -> Tensor:
    """Returns (B, H, T, S)."""
    query = split_heads(projections.query, num_heads)
    key = split_heads(projections.key, num_heads).transpose(2, 3)
    if projections.pos_query is None or projections.encoded is None:
        return query @ key
    by_offset = split_heads(projections.pos_query, num_heads) @ projections.encoded
    scores = relative_to_absolute(by_offset, key.shape[3])
    joined = torch.baddbmm(scores.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1))
    return joined.unflatten(0, (-1, num_heads))


def _hide(scores: Tensor, hidden: Tensor) -> None:
    # Looking whether anything is hidden is free on a CPU; a GPU would have to be waited for.
    if scores.device.type != "cpu" or bool(hidden.any()):
        scores.masked_fill_(hidden, MASKED_SCORE)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Returns the gradient of the scores, in the type of `grad`; its arithmetic is in float32."""
    wide = weights.float()
    grad_scores: Tensor = torch.ops.aten._softmax_backward_data(
        grad.float(), wide, -1, torch.float32
    )
    return grad_scores.to(grad.dtype)


def _add_gradients(
    grad_scores: Tensor, given: Projections, grads: Projections, by_offset: Tensor | None
) -> None:
    """Adds to `grads` the gradients of the projections, from those of the scores (B, H, T, S).

    `by_offset` (B, H, T, T + S - 1) is zero but for what this function writes.
    """
    num_heads = grad_scores.shape[1]
    query, key = split_heads(given.query, num_heads), split_heads(given.key, num_heads)
    split_heads(grads.query, num_heads).copy_(grad_scores @ key)
    split_heads(grads.key, num_heads).copy_(grad_scores.transpose(2, 3) @ query)
    if given.pos_query is None or given.encoded is None or by_offset is None:
        return
    assert grads.pos_query is not None and grads.encoded is not None
    relative_to_absolute(by_offset, grad_scores.shape[3]).copy_(grad_scores)
    pos_query = split_heads(given.pos_query, num_heads)
    split_heads(grads.pos_query, num_heads).copy_(by_offset @ given.encoded.transpose(1, 2))
    grads.encoded.add_((pos_query.transpose(2, 3) @ by_offset).sum(0))
