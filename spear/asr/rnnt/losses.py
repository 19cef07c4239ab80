"""Losses of the RNN transducer: full, and pruned with the smoothed loss that tells what to prune.

    loss, (px, py) = rnnt_loss_smoothed(am, lm, symbols, frames, symbol_lengths)
    ranges = prune_ranges(px, py, frames, symbol_lengths, s_range=5)
    am_kept, lm_kept = prune(am_projected, lm_projected, ranges)
    loss = rnnt_loss_pruned(joiner(am_kept, lm_kept), symbols, ranges, frames, symbol_lengths)

Names, meaning and numbers are those of k2 (Kuang et al., arXiv 2206.13236), whose implementation
`backend="k2"` calls; the other one, in torch alone, has no limits on the number of labels. Here
(B, T) are utterances and frames, S the most labels of a transcript, C the vocabulary with the
blank. Losses are in nats, float32 whatever the inputs are, float64 for float64. What lies beyond
the lengths plays no part and gets no gradient.

An utterance that no alignment can give has an infinite loss: one with labels and no frames, one
whose labels do not fit through the kept windows, one with a logit of -inf in every path. Its
gradient is zero, and sums and means leave it out. Whoever trains takes `reduction="none"` and
names it.
"""

from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.asr.rnnt.arcs import arcs_of_logits, arcs_of_sum, wide_type
from spear.asr.rnnt.checks import (
    LatticeShape,
    check_lengths,
    check_ranges,
    check_rank,
    check_same,
    check_transcripts,
)
from spear.asr.rnnt.lattice import Arcs, Lengths, sum_paths
from spear.asr.rnnt.pruning import choose_windows, spread_windows, take_windows
from spear.errors import ConfigError, DataError, MissingPackageError

Reduction = Literal["none", "sum", "mean"]
Backend = Literal["torch", "k2"]


def rnnt_loss_smoothed(
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    *,
    blank: int = 0,
    am_scale: float = 0.0,
    lm_scale: float = 0.25,
    reduction: Reduction = "mean",
    backend: Backend = "torch",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Computes the loss of the trivial joiner am + lm, mixed with each part by itself.

    Args:
        am: (B, T, C) float, the encoder's logits.
        lm: (B, S + 1, C) float, the decoder's logits.
        symbols: (B, S) int, transcripts without blanks, padded with anything.
        frames: (B,) int, valid frames.
        symbol_lengths: (B,) int, valid labels; 0 is a transcript too.
        blank: Id of the blank.
        am_scale: Weight of the encoder's logits beside an average decoder.
        lm_scale: Weight of the decoder's distribution by itself.
        reduction: "none" (B,), "sum" or "mean" over utterances.
        backend: Whose implementation, "torch" or "k2".

    Returns:
        The loss; and the shares of the probability that pass each arc, without gradient:
        px (B, S, T + 1) for label arcs (the last column is 0) and py (B, S + 1, T) for blanks.

    Raises:
        DataError: Shapes, lengths or symbols do not fit.
        ConfigError: An option is none of those above, or the weights are not shares of 1.
        MissingPackageError: k2 is asked for and not installed.
    """
    am, lm = am.to(wide_type(am)), lm.to(wide_type(lm))
    shape = _shape_of_pair(am, lm)
    check_same("vocabularies of am and lm", am.shape[2], lm.shape[2])
    symbols, lengths = check_transcripts(shape, symbols, frames, symbol_lengths, blank)
    if not (am_scale >= 0.0 and lm_scale >= 0.0 and am_scale + lm_scale <= 1.0):
        raise ConfigError(
            f"am_scale {am_scale} and lm_scale {lm_scale}: both must be 0 or more, together at "
            "most 1"
        )
    if _use_k2(backend, shape.num_nodes):
        losses, shares = _k2().rnnt_loss_smoothed(
            am,
            lm,
            symbols,
            *lengths,
            blank=blank,
            am_scale=am_scale,
            lm_scale=lm_scale,
            reduction="none",
        )
        return _reduce(losses, reduction), shares
    scores = arcs_of_sum(
        am, lm, symbols, lengths, blank=blank, am_scale=am_scale, lm_scale=lm_scale
    )
    paths = sum_paths(scores, lengths)
    px = F.pad(paths.shares.label[:, :, :-1].transpose(1, 2), (0, 1))
    return _reduce(-paths.log_prob, reduction), (px, paths.shares.blank.transpose(1, 2))


def prune_ranges(
    px: Tensor,
    py: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    s_range: int = 5,
    *,
    backend: Backend = "torch",
) -> Tensor:
    """Chooses for every frame the places between labels that the pruned loss computes.

    Args:
        px: (B, S, T + 1) float, from `rnnt_loss_smoothed`.
        py: (B, S + 1, T) float, from there too.
        frames: (B,) int, valid frames.
        symbol_lengths: (B,) int, valid labels.
        s_range: Places kept at a frame, at least 2. All of them where there are fewer.
        backend: Whose implementation, "torch" or "k2".

    Returns:
        (B, T, min(s_range, S + 1)) int64, consecutive; windows rise from frame to frame.

    Raises:
        DataError: Shapes or lengths do not fit.
        ConfigError: An option is none of those above.
    """
    check_rank("py", py, "(B, S + 1, T)")
    batch_size, num_nodes, num_frames = py.shape
    if tuple(px.shape) != (batch_size, num_nodes - 1, num_frames + 1):
        raise DataError(f"px has shape {tuple(px.shape)} and py {tuple(py.shape)}: they differ")
    if s_range < 2:
        raise ConfigError(f"s_range is {s_range}: below 2 no label fits between two frames")
    lengths = Lengths(
        check_lengths("frames", frames, batch_size, num_frames),
        check_lengths("symbol_lengths", symbol_lengths, batch_size, num_nodes - 1),
    )
    # k2 refuses more labels than frames; its windows are ours.
    if _use_k2(backend, num_nodes) and num_nodes <= num_frames + 1:
        return _k2().prune_ranges(px, py, *lengths, s_range)
    label = F.pad(px[:, :, :-1].transpose(1, 2), (0, 1))
    return choose_windows(Arcs(label, py.transpose(1, 2)), lengths, s_range)


def prune(
    am: Tensor, lm: Tensor, ranges: Tensor, *, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """Pairs encoder and decoder vectors where they are needed.

    Args:
        am: (B, T, C) float, one vector a frame.
        lm: (B, S + 1, C') float, one vector for each number of labels written.
        ranges: (B, T, s_range) int64, from `prune_ranges`.
        backend: Whose implementation, "torch" or "k2".

    Returns:
        (B, T, s_range, C), a view of `am`, and (B, T, s_range, C') in the types that came.

    Raises:
        DataError: Shapes do not fit, or `ranges` are of another batch.
        ConfigError: There is no such backend.
    """
    check_ranges(ranges, _shape_of_pair(am, lm))
    if _use_k2(backend, lm.shape[1]):
        return _k2().prune(am, lm, ranges)
    return take_windows(am, lm, ranges)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    backend: Backend = "torch",
) -> Tensor:
    """Computes the loss over the alignments that stay within the kept windows.

    Args:
        logits: (B, T, s_range, C) float, the joiner's output for the kept pairs.
        symbols: (B, S) int, transcripts without blanks, padded with anything.
        ranges: (B, T, s_range) int64, from `prune_ranges`.
        frames: (B,) int, valid frames.
        symbol_lengths: (B,) int, valid labels.
        blank: Id of the blank.
        reduction: "none" (B,), "sum" or "mean" over utterances.
        backend: Whose implementation, "torch" or "k2".

    Raises:
        DataError: Shapes, lengths, symbols or ranges do not fit.
        ConfigError: An option is none of those above.
        MissingPackageError: k2 is asked for and not installed.
    """
    check_rank("logits", logits, "(B, T, s_range, C)")
    check_rank("symbols", symbols, "(B, S)")
    batch_size, num_frames, size, vocab_size = logits.shape
    shape = LatticeShape(batch_size, num_frames, symbols.shape[1] + 1, vocab_size)
    symbols, lengths = check_transcripts(shape, symbols, frames, symbol_lengths, blank)
    check_ranges(ranges, shape)
    check_same("windows of logits and ranges", size, ranges.shape[2])
    if _use_k2(backend, shape.num_nodes):
        logits = logits.to(wide_type(logits))
        options = {"blank": blank, "reduction": "none"}
        losses = _k2().rnnt_loss_pruned(logits, symbols, ranges, *lengths, **options)
        return _reduce(losses, reduction)
    next_symbol = _next_symbols(symbols, num_frames, blank).gather(2, ranges)
    kept = arcs_of_logits(logits, next_symbol, blank)
    paths = sum_paths(spread_windows(kept, ranges, shape.num_nodes), lengths)
    return _reduce(-paths.log_prob, reduction)


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: Reduction = "mean",
    backend: Backend = "torch",
) -> Tensor:
    """Computes the loss over all alignments.

    Args:
        logits: (B, T, S + 1, C) float, the joiner's output for every frame and place.
        symbols: (B, S) int, transcripts without blanks, padded with anything.
        frames: (B,) int, valid frames.
        symbol_lengths: (B,) int, valid labels.
        blank: Id of the blank.
        reduction: "none" (B,), "sum" or "mean" over utterances.
        backend: Whose implementation, "torch" or "k2".

    Raises:
        DataError: Shapes, lengths or symbols do not fit.
        ConfigError: An option is none of those above.
        MissingPackageError: k2 is asked for and not installed.
    """
    check_rank("logits", logits, "(B, T, S + 1, C)")
    shape = LatticeShape(*logits.shape)
    symbols, lengths = check_transcripts(shape, symbols, frames, symbol_lengths, blank)
    if _use_k2(backend, shape.num_nodes):
        logits = logits.to(wide_type(logits))
        losses = _k2().rnnt_loss(logits, symbols, *lengths, blank=blank, reduction="none")
        return _reduce(losses, reduction)
    scores = arcs_of_logits(logits, _next_symbols(symbols, shape.num_frames, blank), blank)
    return _reduce(-sum_paths(scores, lengths).log_prob, reduction)


def _shape_of_pair(am: Tensor, lm: Tensor) -> LatticeShape:
    """Returns the sizes of the lattices of am (B, T, C) and lm (B, S + 1, C)."""
    check_rank("am", am, "(B, T, C)")
    check_rank("lm", lm, "(B, S + 1, C)")
    check_same("batch sizes of am and lm", am.shape[0], lm.shape[0])
    return LatticeShape(*am.shape[:2], *lm.shape[1:])


def _next_symbols(symbols: Tensor, num_frames: int, blank: int) -> Tensor:
    """Returns (B, T, S + 1): the label that follows at each node; the last has none."""
    return F.pad(symbols, (0, 1), value=blank).unsqueeze(1).expand(-1, num_frames, -1)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """Reduces losses (B,); sums and means leave infinite ones out, but not NaN."""
    if reduction == "none":
        return losses
    takes_part = losses != float("inf")
    total = torch.where(takes_part, losses, 0.0).sum()
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / takes_part.sum().clamp(min=1)
    raise ConfigError(f"reduction is {reduction!r}: none, sum or mean, please")


def _use_k2(backend: Backend, num_nodes: int) -> bool:
    """Tells whether k2 is meant and takes the batch: it refuses one without a single label."""
    if backend not in {"torch", "k2"}:
        raise ConfigError(f"transducer backend {backend!r}: torch or k2, please")
    return backend == "k2" and num_nodes > 1


def _k2() -> ModuleType:
    try:
        from spear.asr.rnnt import k2 as rnnt_k2
    except ImportError as error:
        raise MissingPackageError(
            f"the transducer losses of k2 need the package 'k2': pip install k2 where it has a "
            f"wheel for this Python, or choose the backend torch ({error})"
        ) from error
    return rnnt_k2
