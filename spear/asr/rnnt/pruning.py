"""The band of the transducer lattice that the pruned loss computes: a few nodes for every frame.

A joiner for every pair of frame and label costs (T x S) vectors over the vocabulary. The shares of
the smoothed loss say where the paths run; for every frame a window of `s_range` nodes is kept that
holds most of them (Kuang et al., arXiv 2206.13236, section 3.2). Windows only move forward, never
by more than they overlap, begin at the first node and end at the last, so paths go through.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.asr.rnnt.lattice import Arcs, Lengths


def choose_windows(shares: Arcs, lengths: Lengths, s_range: int) -> Tensor:
    """Chooses the nodes that are kept at every frame.

    Args:
        shares: Of the smoothed loss, (B, T, S + 1) each; 0 outside an utterance's lattice.
        lengths: Of each utterance.
        s_range: Nodes kept at a frame, at least 2; all S + 1 where there are fewer.

    Returns:
        (B, T, min(s_range, S + 1)) int64, consecutive numbers of labels written.
    """
    num_frames, num_nodes = shares.blank.shape[1:]
    size = min(s_range, num_nodes)
    # Of all paths through frame t, those that leave it from within the window and have not
    # entered it there by the label before.
    kept = shares.blank.unfold(2, size, 1).sum(dim=3)
    entered = F.pad(shares.label[:, :, :-1], (1, 0))[:, :, : kept.shape[2]]
    begin = _first_best(kept - entered)
    last_begin = (lengths.labels - size + 1).clamp(min=0).unsqueeze(1)
    frame = torch.arange(num_frames, device=begin.device)
    begin = torch.where(frame < lengths.frames.unsqueeze(1) - 1, begin, last_begin)
    begin = _join(begin, size - 1)
    return begin.unsqueeze(2) + torch.arange(size, device=begin.device)


def _first_best(scores: Tensor) -> Tensor:
    """Returns the first of the best windows (B, T) by their scores (B, T, W), but for rounding.

    Where paths keep to fewer nodes than a window has, several hold all of them.
    """
    best = scores.amax(dim=2, keepdim=True)
    rounding = 2 * torch.finfo(scores.dtype).eps
    return (scores >= best - rounding).to(torch.uint8).argmax(dim=2)


def _join(begin: Tensor, max_step: int) -> Tensor:
    """Lowers window begins (B, T) until they rise from 0, by at most `max_step` a frame.

    Where the last one cannot be reached in so few frames, it is not.
    """
    highest = max_step * torch.arange(begin.shape[1], device=begin.device)
    below = _lowest_ahead(highest - _lowest_ahead(begin))
    return highest - below.clamp(min=0)


def _lowest_ahead(x: Tensor) -> Tensor:
    """Returns for each place of x (B, T) the smallest value from there on."""
    return x.flip(1).cummin(dim=1).values.flip(1) if x.shape[1] else x


def take_windows(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs every frame with the nodes that are kept for it.

    Args:
        am: (B, T, C) float, by frame.
        lm: (B, S + 1, C') float, by number of labels written.
        ranges: (B, T, R) int64, from `choose_windows`.

    Returns:
        (B, T, R, C), a view of `am`, and (B, T, R, C').
    """
    batch_size, num_nodes, _ = lm.shape
    first_row = num_nodes * torch.arange(batch_size, device=ranges.device)
    # As an embedding, because its gradient is summed over rows, in a fixed order; that of `gather`
    # would be of the size of (B, T, S + 1, C').
    lm_kept = F.embedding(ranges + first_row[:, None, None], lm.flatten(0, 1))
    return am.unsqueeze(2).expand(-1, -1, ranges.shape[2], -1), lm_kept


def spread_windows(kept: Arcs, ranges: Tensor, num_nodes: int) -> Arcs:
    """Puts scores (B, T, R) of kept nodes into whole lattices (B, T, S + 1); others are -inf."""
    shape = (*ranges.shape[:2], num_nodes)
    label, blank = (
        score.new_full(shape, float("-inf")).scatter(2, ranges, score) for score in kept
    )
    return Arcs(label, blank)
