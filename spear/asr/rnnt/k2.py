"""k2's transducer losses under the names and conventions of `spear.asr.rnnt.losses`, its caller.

Importing this file needs torch and k2 and nothing else of this project, so that it can be run, by
its path, in whatever environment k2 has a wheel for. Arguments are as `spear.asr.rnnt.losses`
describes them and arrive checked; `reduction` is k2's, for which one infinite loss makes a mean
infinite.
"""

import k2
import torch
from torch import Tensor


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
    reduction: str = "mean",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns the smoothed loss, and the shares px (B, S, T + 1) and py (B, S + 1, T)."""
    loss, shares = k2.rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=symbols,
        termination_symbol=blank,
        lm_only_scale=lm_scale,
        am_only_scale=am_scale,
        boundary=_boundary(frames, symbol_lengths),
        reduction=reduction,
        return_grad=True,
    )
    return loss, shares


def prune_ranges(
    px: Tensor, py: Tensor, frames: Tensor, symbol_lengths: Tensor, s_range: int = 5
) -> Tensor:
    """Returns the kept places (B, T, min(s_range, S + 1)) int64; k2 wants 1 <= S <= T."""
    return k2.get_rnnt_prune_ranges(
        px_grad=px, py_grad=py, boundary=_boundary(frames, symbol_lengths), s_range=s_range
    )


def prune(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `am` and `lm` at the kept places, (B, T, s_range, C) each."""
    return k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """Returns the loss of logits (B, T, s_range, C)."""
    return k2.rnnt_loss_pruned(
        logits=logits,
        symbols=symbols,
        ranges=ranges,
        termination_symbol=blank,
        boundary=_boundary(frames, symbol_lengths),
        reduction=reduction,
    )


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    frames: Tensor,
    symbol_lengths: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """Returns the loss of logits (B, T, S + 1, C)."""
    return k2.rnnt_loss(
        logits=logits,
        symbols=symbols,
        termination_symbol=blank,
        boundary=_boundary(frames, symbol_lengths),
        reduction=reduction,
    )


def _boundary(frames: Tensor, symbol_lengths: Tensor) -> Tensor:
    """Returns (B, 4) int64: first label and frame, and those behind the last."""
    zeros = torch.zeros_like(frames)
    return torch.stack([zeros, zeros, symbol_lengths, frames], dim=1)
