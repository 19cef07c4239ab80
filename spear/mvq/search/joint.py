"""The search for the codes of a frame, on the table of the inner products of all centres.

A frame x is to be written as a sum of one centre of each codebook. On the table
(`spear.mvq.search.products`) no step needs work in D dimensions. From a first guess on, two steps
take turns:

1. a *pass* (`spear.mvq.search.merge_pass`) changes all codebooks together, with exact joint errors;
2. *sweeps* go through the codebooks and give each its best code with the others fixed, until
   nothing moves (coordinate descent). They are cheap: a frame reads the scores of K codes and,
   where a code changes, two rows of the table.

A frame that a pass leaves alone is done. Sweeps do not come first: they run into the nearest local
optimum, and passes from there end 0.6% worse.

Every frame is treated by itself, so that its codes do not depend on batch mates, and no step makes
one worse. On a CPU with numba the same algorithm runs compiled (`spear.mvq.search.compiled`).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from spear.mvq.search.limits import MAX_SWEEPS
from spear.mvq.search.merge_pass import block_frames, merge_pass
from spear.mvq.search.products import ProductTable
from spear.system.numba_functions import is_installed
from spear.system.progress import get_logger

_logger = get_logger(__name__)


def search(
    table: ProductTable,
    unary: Tensor,
    codes: Tensor | None,
    *,
    num_passes: int,
    beam_width: int,
) -> Tensor:
    """Finds the codes of frames, by the compiled search where there is one.

    Args:
        table: The products of the centres.
        unary: (B, N * K) from `table.unary`.
        codes: (B, N) int64 first guess. None for the greedy one: codebook after codebook, the best
            code given those before, with those to come at their means.
        num_passes: Merging passes; 0 returns the first guess.
        beam_width: Number of codes that each codebook shortlists in a pass.

    Returns:
        (B, N) int64. The error of no frame grows with `num_passes`.
    """
    compiled = _compiled_search() if unary.device.type == "cpu" else None
    if compiled is None:
        return search_by_torch(table, unary, codes, num_passes=num_passes, beam_width=beam_width)
    found: Tensor = compiled.search(table, unary, codes, num_passes, beam_width)
    return found


def search_by_torch(
    table: ProductTable,
    unary: Tensor,
    codes: Tensor | None,
    *,
    num_passes: int,
    beam_width: int,
) -> Tensor:
    """See `search`; without compiled code: on GPUs, and what the other is tested against."""
    if codes is None:
        codes = _greedy(table, unary)
    if num_passes == 0 or len(unary) == 0:
        return codes.clone()
    codes = codes.clone()
    active = torch.arange(len(codes), device=codes.device)
    for _ in range(num_passes):
        everything = len(active) == len(codes)  # then spare a copy of the scores
        scores, before = (unary, codes) if everything else (unary[active], codes[active])
        after = _pass_in_blocks(table, scores, before, beam_width)
        moved = (after != before).any(dim=1)
        active = active[moved]
        if len(active) == 0:
            break
        codes[active] = sweep(table, scores[moved], after[moved])
    return codes


def sweep(table: ProductTable, unary: Tensor, codes: Tensor) -> Tensor:
    """Coordinate descent: one codebook at a time gets its best code, until no frame changes.

    Args:
        table: The products of the centres.
        unary: (B, N * K) from `table.unary`.
        codes: (B, N) int64.

    Returns:
        (B, N) int64. A code changes only for a strictly better one, of equals to the lowest.
    """
    codes = codes.clone()
    active = torch.arange(len(codes), device=codes.device)
    scores = table.scores(unary, codes)
    for _ in range(MAX_SWEEPS):
        moved = torch.zeros(len(active), dtype=torch.bool, device=codes.device)
        for codebook in range(table.num_codebooks):
            first = codebook * table.codebook_size
            options = scores[:, first : first + table.codebook_size]
            now = codes[active, codebook]
            best = options.argmin(dim=1)
            is_better = options.gather(1, best.unsqueeze(1)) < options.gather(1, now.unsqueeze(1))
            rows = is_better[:, 0].nonzero()[:, 0]
            old, new = now[rows], best[rows]
            scores[rows] += table.cross[first + new] - table.cross[first + old]
            codes[active[rows], codebook] = new
            moved[rows] = True
        if not bool(moved.any()):
            break
        active, scores = active[moved], scores[moved]
    return codes


def _greedy(table: ProductTable, unary: Tensor) -> Tensor:
    """Returns the first guess (B, N) where there are no classifiers: see `search`."""
    scores = unary.clone()
    codes = torch.empty(len(unary), table.num_codebooks, dtype=torch.long, device=unary.device)
    for codebook in range(table.num_codebooks):
        first = codebook * table.codebook_size
        best = scores[:, first : first + table.codebook_size].argmin(dim=1)
        codes[:, codebook] = best
        scores += table.cross[first + best]
    return codes


def _pass_in_blocks(table: ProductTable, unary: Tensor, codes: Tensor, beam_width: int) -> Tensor:
    """Runs `merge_pass` on blocks of frames whose temporary tables stay small."""
    size = block_frames(table, beam_width, unary.device)
    parts = zip(unary.split(size), codes.split(size), strict=True)
    return torch.cat([merge_pass(table, *part, beam_width) for part in parts])


@cache
def _compiled_search() -> Any:
    """Returns the module of the compiled search, or None without numba."""
    if not is_installed():
        _logger.info("numba is not installed: tokens take seven to eight times as long on the CPU")
        return None
    from spear.mvq.search import compiled as compiled_search

    return compiled_search
