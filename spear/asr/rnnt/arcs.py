"""Scores of the transducer lattice's arcs, from a joiner's logits or from a sum of two models.

An arc's score is the log-probability of its label, or of the blank, at its node. Logits exist for
every node (the full loss) or for a band of nodes (the pruned loss); the smoothed loss needs none:
its joiner is the sum of an acoustic and a language model's logits, whose normaliser over the
vocabulary is a matrix product (Kuang et al., arXiv 2206.13236).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from spear.asr.rnnt.lattice import Arcs, Lengths


def arcs_of_logits(logits: Tensor, symbols: Tensor, blank: int) -> Arcs:
    """Normalises logits and picks what the arcs are worth.

    Args:
        logits: (B, T, R, C) of any float type, computed with in float32 at least.
        symbols: (B, T, R) int64, the label of the arc that leaves each node.
        blank: Id of the blank.

    Returns:
        (B, T, R) float32 (float64 for float64 logits) log-probabilities.
    """
    label, blank_score = _PickLogProbs.apply(logits, symbols, blank)
    return Arcs(label, blank_score)


class _PickLogProbs(Function):
    """Two log-softmax values of each row of logits, without ever keeping a log-softmax.

    Neither pass needs more than one utterance's logits beside what it is given and returns.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, symbols: Tensor, blank: int) -> tuple[Tensor, Tensor]:
        shape, dtype = logits.shape[:3], wide_type(logits)
        label, blank_score, normalizers = logits.new_empty((3, *shape), dtype=dtype)
        for b, own in enumerate(logits):
            wide = own.to(dtype)
            torch.logsumexp(wide, dim=-1, out=normalizers[b])
            label[b] = wide.gather(-1, symbols[b].unsqueeze(-1)).squeeze(-1) - normalizers[b]
            blank_score[b] = wide[..., blank] - normalizers[b]
        ctx.save_for_backward(logits, symbols, normalizers)
        ctx.blank = blank
        return label, blank_score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, label: Tensor, blank: Tensor) -> tuple[Tensor | None, ...]:
        logits, symbols, normalizers = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for b, own in enumerate(logits):
            total = label[b] + blank[b]
            wide = torch.sub(own, normalizers[b].unsqueeze(-1)).exp_()
            wide.mul_(-total.unsqueeze(-1))
            wide.masked_fill_((total == 0).unsqueeze(-1), 0.0)  # padding may hold anything
            wide.scatter_add_(-1, symbols[b].unsqueeze(-1), label[b].unsqueeze(-1))
            wide[..., ctx.blank] += blank[b]
            grad[b] = wide
        return grad, None, None


def wide_type(x: Tensor) -> torch.dtype:
    """Returns the type to compute in: float64 stays, everything else is float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def arcs_of_sum(
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    lengths: Lengths,
    *,
    blank: int,
    am_scale: float,
    lm_scale: float,
) -> Arcs:
    """Scores every arc with the sum of two models' logits, mixed with those of each by itself.

    Args:
        am: (B, T, C) float, logits by frame.
        lm: (B, S + 1, C) float, logits by number of labels written.
        symbols: (B, S) int64, padded with anything valid.
        lengths: Of each utterance; what lies beyond plays no part.
        blank: Id of the blank.
        am_scale: Weight of the acoustic model beside an average language model.
        lm_scale: Weight of the language model by itself.

    Returns:
        (B, T, S + 1) log-probabilities; they do not sum to one where the weights are not 0.
    """
    am = am.masked_fill(_beyond(lengths.frames, am), 0.0)
    is_padding = _beyond(lengths.labels + 1, lm)
    lm = lm.masked_fill(is_padding, 0.0)
    am_picked = _pick_by_frame(am, symbols, blank)
    lm_picked = _pick_by_node(lm, symbols, blank)
    joint = _joint_normalizers(am, lm)
    rest = 1.0 - am_scale - lm_scale
    mixed = [rest * (a + n - joint) for a, n in zip(am_picked, lm_picked, strict=True)]
    if lm_scale != 0.0:
        alone = lm.logsumexp(dim=-1).unsqueeze(1)
        mixed = [m + lm_scale * (n - alone) for m, n in zip(mixed, lm_picked, strict=True)]
    if am_scale != 0.0:
        unigram = _mean_distribution(lm, ~is_padding)
        prior = _pick_by_node(unigram.expand_as(lm), symbols, blank)
        alone = (am + unigram).logsumexp(dim=-1, keepdim=True)
        terms = zip(mixed, am_picked, prior, strict=True)
        mixed = [m + am_scale * (a + p - alone) for m, a, p in terms]
    return Arcs(*mixed)


def _beyond(lengths: Tensor, x: Tensor) -> Tensor:
    """Returns (B, L, 1) bool: which rows of x (B, L, C) are padding."""
    position = torch.arange(x.shape[1], device=x.device)
    return (position >= lengths.unsqueeze(1)).unsqueeze(2)


def _pick_by_frame(am: Tensor, symbols: Tensor, blank: int) -> Arcs:
    """Returns the logits (B, T, S + 1) of labels and (B, T, 1) of the blank in am (B, T, C)."""
    index = symbols.unsqueeze(1).expand(-1, am.shape[1], -1)
    return Arcs(F.pad(am.gather(2, index), (0, 1)), am[:, :, blank, None])


def _pick_by_node(lm: Tensor, symbols: Tensor, blank: int) -> Arcs:
    """Returns the logits (B, 1, S + 1) of labels and of the blank in lm (B, S + 1, C)."""
    label = lm[:, :-1].gather(2, symbols.unsqueeze(2)).squeeze(2)
    return Arcs(F.pad(label, (0, 1)).unsqueeze(1), lm[:, None, :, blank])


def _joint_normalizers(am: Tensor, lm: Tensor) -> Tensor:
    """Returns (B, T, S + 1): log sum_c exp(am[t, c] + lm[u, c]), as a product of matrices.

    The largest logits, taken out first, keep exp in range; the rest is as small as `tiny` where
    the two models agree on nothing.
    """
    am_max = am.amax(dim=2, keepdim=True).detach()
    lm_max = lm.amax(dim=2, keepdim=True).detach()
    with torch.autocast(am.device.type, enabled=False):
        product = (am - am_max).exp() @ (lm - lm_max).exp().transpose(1, 2)
    return (product + torch.finfo(product.dtype).tiny).log() + am_max + lm_max.transpose(1, 2)


def _mean_distribution(lm: Tensor, is_there: Tensor) -> Tensor:
    """Returns (1, 1, C): log of the batch's mean distribution over all nodes that are there."""
    probs = lm.softmax(dim=-1) * is_there
    mean = probs.sum(dim=(0, 1), keepdim=True) / is_there.sum()
    return (mean + torch.finfo(mean.dtype).tiny).log()
