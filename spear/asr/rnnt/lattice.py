"""The lattice of the RNN transducer: the probability of a transcript, and of every arc in it.

A node (t, u) stands for "frame t is being read, u labels are written" (Graves, arXiv 1211.3711).
From it a label arc leads to (t, u + 1) and a blank arc to (t + 1, u); an alignment is a path from
(0, 0) to (num_frames, num_labels), whose last arc is a blank. All nodes with the same t + u, an
anti-diagonal, depend on the one before only, so a step of the recursion is one operation on a
vector of nodes of the whole batch. The backward pass is written out: the gradient of the
log-probability with respect to an arc's score is the share of the probability that passes it.

Sums run in float64: a log-probability of some thousand nats leaves float32 four digits after the
point, which is too few for the differences that the shares are made of.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_NEVER = float("-inf")


class Lengths(NamedTuple):
    """How large the lattice of each utterance is.

    Attributes:
        frames: (B,) int64, frames of each utterance.
        labels: (B,) int64, labels of each transcript.
    """

    frames: Tensor
    labels: Tensor


class Arcs(NamedTuple):
    """One value for every arc of a batch of lattices.

    Attributes:
        label: (B, T, U) float, of the label arc that leaves each node; U is one more than the most
            labels of a transcript, and the last column is not looked at.
        blank: (B, T, U) float, of the blank arc.
    """

    label: Tensor
    blank: Tensor


class Paths(NamedTuple):
    """What is known of all paths through the lattices.

    Attributes:
        log_prob: (B,) float, of the transcript: the sum over all alignments; -inf where there is
            none. Differentiable with respect to the arcs' scores.
        shares: For every arc the part of that probability which passes it, without gradient; 0
            outside an utterance's lattice, and everywhere where there is no alignment.
    """

    log_prob: Tensor
    shares: Arcs


def sum_paths(scores: Arcs, lengths: Lengths) -> Paths:
    """Sums over all alignments of every utterance.

    Args:
        scores: Log-probabilities of the arcs; beyond the lengths they may hold anything.
        lengths: Of each utterance.
    """
    log_prob, label, blank = _SumPaths.apply(*scores, *lengths)
    return Paths(log_prob, Arcs(label, blank))


class _SumPaths(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        label, blank, frames, labels = arguments
        lengths = Lengths(frames, labels)
        log_prob, shares = _paths(Arcs(label, blank), lengths)
        ctx.save_for_backward(*shares)
        ctx.mark_non_differentiable(*shares)
        return log_prob, *shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0][:, None, None]
        label, blank = ctx.saved_tensors
        return grad * label, grad * blank, None, None


def _paths(scores: Arcs, lengths: Lengths) -> tuple[Tensor, Arcs]:
    """Computes log-probabilities (B,) and shares in the type of the scores."""
    by_diagonal = _on_diagonals(scores, lengths)
    alphas = _forward(by_diagonal)
    last = _last_nodes(lengths)
    log_prob = alphas[last]
    shares = _shares(by_diagonal, alphas, last)
    num_frames, dtype = scores.label.shape[1], scores.label.dtype
    label, blank = (_by_frame(share, num_frames).to(dtype) for share in shares)
    return log_prob.to(dtype), Arcs(label, blank)


def _on_diagonals(scores: Arcs, lengths: Lengths) -> Arcs:
    """Sorts scores (B, T, U) by anti-diagonal into (T + U, B, U); what is no arc becomes -inf."""
    batch_size, num_frames, num_nodes = scores.label.shape
    frame = torch.arange(num_frames, device=lengths.frames.device)[:, None]
    node = torch.arange(num_nodes, device=lengths.frames.device)
    is_read = frame < lengths.frames[:, None, None]
    num_labels = lengths.labels[:, None, None]
    sorted_ = []
    for score, exists in ((scores.label, node < num_labels), (scores.blank, node <= num_labels)):
        shape = (num_frames + num_nodes, batch_size, num_nodes)
        diagonals = torch.full(shape, _NEVER, dtype=torch.float64, device=score.device)
        _by_frame(diagonals, num_frames).copy_(score.masked_fill(~(is_read & exists), _NEVER))
        sorted_.append(diagonals)
    return Arcs(*sorted_)


def _by_frame(diagonals: Tensor, num_frames: int) -> Tensor:
    """Views (T + U, B, U), of which [t + u, b, u] belongs to node (t, u), as (B, T, U)."""
    _, batch_size, num_nodes = diagonals.shape
    step = batch_size * num_nodes
    shape = (batch_size, num_frames, num_nodes)
    return diagonals.as_strided(shape, (num_nodes, step, step + 1))


def _last_nodes(lengths: Lengths) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where in (T + U, B, U) every utterance ends."""
    utterance = torch.arange(len(lengths.frames), device=lengths.frames.device)
    return lengths.frames + lengths.labels, utterance, lengths.labels


def _forward(scores: Arcs) -> Tensor:
    """Returns (T + U, B, U): the log-probability of coming from (0, 0) to each node."""
    num_diagonals, batch_size, num_nodes = scores.label.shape
    # One column before the first node, from where no label comes.
    padded = scores.label.new_full((num_diagonals, batch_size, num_nodes + 1), _NEVER)
    alphas = padded[:, :, 1:]
    alphas[0, :, 0] = 0.0
    by_label = torch.cat([padded[:, :, :1], scores.label[:, :, :-1]], dim=2)
    for d in range(1, num_diagonals):
        stay = alphas[d - 1] + scores.blank[d - 1]
        move = padded[d - 1, :, :-1] + by_label[d - 1]
        torch.logaddexp(stay, move, out=alphas[d])
    return alphas


def _shares(scores: Arcs, alphas: Tensor, last: tuple[Tensor, Tensor, Tensor]) -> Arcs:
    """Returns the shares (T + U, B, U) of the arcs.

    A node passes its share back to the arcs that lead to it, in proportion to what they brought.
    """
    end = alphas.masked_fill(alphas == _NEVER, float("inf"))  # nothing comes to such a node
    label, blank = torch.zeros_like(alphas), torch.zeros_like(alphas)
    torch.exp(alphas[:-1] + scores.blank[:-1] - end[1:], out=blank[:-1])
    label[:-1, :, :-1] = torch.exp(alphas[:-1, :, :-1] + scores.label[:-1, :, :-1] - end[1:, :, 1:])
    num_diagonals, batch_size, num_nodes = alphas.shape
    nodes = alphas.new_zeros(num_diagonals, batch_size, num_nodes + 1)
    nodes[last] = (alphas[last] != _NEVER).to(nodes.dtype)
    for d in range(num_diagonals - 2, -1, -1):
        following = nodes[d + 1]
        share = nodes[d, :, :-1]
        share.addcmul_(following[:, :-1], blank[d]).addcmul_(following[:, 1:], label[d])
    blank[:-1] *= nodes[1:, :, :-1]
    label[:-1] *= nodes[1:, :, 1:]
    return Arcs(label, blank)
