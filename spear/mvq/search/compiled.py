"""The search of `spear.mvq.search.joint` for CPUs, compiled by numba: the same, frame by frame.

Per frame it holds one row of scores (N * K) and the shortlists' products, which stay in the cache
of a core; nothing is allocated in a loop. `spear.mvq.search.joint.search_by_torch` says the same in
tensor operations, and both give the same codes wherever the arithmetic is exact.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spear.mvq.search.limits import MAX_SWEEPS, num_kept
from spear.mvq.search.products import ProductTable
from spear.system.numba_functions import compiled

_MIN_FRAMES_PER_THREAD = 16
_GROUP = 32
_PLACES = 1 << 31
_LAST_KEY = (1 << 62) + ((1 << 62) - 1)
_num_kept = compiled()(num_kept)


def search(
    table: ProductTable, unary: Tensor, codes: Tensor | None, num_passes: int, beam_width: int
) -> Tensor:
    """See `spear.mvq.search.joint.search`."""
    shape = (len(unary), table.num_codebooks)
    found = torch.zeros(shape, dtype=torch.long) if codes is None else codes.clone()
    scores, products = unary.contiguous().numpy(), table.cross.numpy()
    num_threads = max(1, min(torch.get_num_threads(), len(unary) // _MIN_FRAMES_PER_THREAD))
    bounds = [index * len(unary) // num_threads for index in range(num_threads + 1)]
    width = min(beam_width, table.codebook_size)
    # No group can have more candidates than this, however wide the beam.
    capacity = min(num_kept(beam_width, table.num_codebooks), width**table.num_codebooks)
    how = (codes is not None, num_passes, beam_width, capacity)

    def work(index: int) -> None:
        part = slice(bounds[index], bounds[index + 1])
        _search_frames(scores[part], products, found.numpy()[part], *how)

    if num_threads == 1:
        work(0)
    else:  # the compiled code lets go of the interpreter's lock
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(work, range(num_threads)))
    return found


class _Candidates(NamedTuple):
    """Joint choices of groups of neighbouring codebooks.

    A group is `length[g]` codebooks from `first[g]`; its candidate 0 is the current choice.
    """

    first: Any  # (N,)
    length: Any  # (N,)
    count: Any  # (N,) candidates of the group
    deltas: Any  # (N, capacity) change of the error
    slots: Any  # (N, N, capacity) places in the shortlists, by codebook


class _Scratch(NamedTuple):
    """What a frame needs for a while."""

    shortlist: Any  # (N, W) rows of the table; 0 is the current one
    deltas: Any  # (N, W)
    pairs: Any  # (N, N, W, W) what two changes together cost beyond each alone
    in_use: Any  # (N, W) places of the shortlist that a candidate holds, ascending from 1
    num_in_use: Any  # (N,) how many
    values: Any  # (joint choices of two groups, or K,) what each would change
    keys: Any  # the same, as integers that sort alike: see `_key`
    minima: Any  # the lowest keys of every _GROUP
    places: Any  # (capacity,) of the lowest values, ascending
    coupling: Any  # (N, W) of one candidate with all shortlisted codes of the other group
    groups: Any  # candidates before ...
    merged: Any  # ... and after a level of merging


@compiled()
def _search_frames(
    unary: Any,
    cross: Any,
    codes: Any,
    has_guess: bool,
    num_passes: int,
    beam_width: int,
    capacity: int,
) -> None:
    """Searches all frames; `codes` (B, N) holds the guess and becomes the result."""
    num_frames, num_codebooks = codes.shape
    size = unary.shape[1] // num_codebooks
    scratch = _make_scratch(num_codebooks, size, min(beam_width, size), capacity)
    scores = np.empty(unary.shape[1], np.float32)
    rows = np.empty(num_codebooks, np.int64)
    for frame in range(num_frames):
        scores[:] = unary[frame]
        if has_guess:
            for n in range(num_codebooks):
                rows[n] = codes[frame, n] + n * size
                _add_row(scores, cross[rows[n]])
        else:
            for n in range(num_codebooks):
                rows[n] = n * size + _lowest(scores[n * size : (n + 1) * size])
                _add_row(scores, cross[rows[n]])
        for _ in range(num_passes):
            if not _merge_pass(scores, cross, rows, beam_width, scratch):
                break
            _sweep(scores, cross, rows, size)
        for n in range(num_codebooks):
            codes[frame, n] = rows[n] - n * size


@compiled()
def _make_scratch(num_codebooks: int, size: int, width: int, capacity: int) -> _Scratch:
    num_values = (max(size, capacity * capacity) // _GROUP + 1) * _GROUP
    return _Scratch(
        np.empty((num_codebooks, width), np.int64),
        np.empty((num_codebooks, width), np.float32),
        np.zeros((num_codebooks, num_codebooks, width, width), np.float32),
        np.empty((num_codebooks, width), np.int64),
        np.empty(num_codebooks, np.int64),
        np.empty(num_values, np.float32),
        np.empty(num_values, np.int64),
        np.empty(num_values // _GROUP, np.int64),
        np.empty(capacity, np.int64),
        np.empty((num_codebooks, width), np.float32),
        _make_candidates(num_codebooks, capacity),
        _make_candidates(num_codebooks, capacity),
    )


@compiled()
def _make_candidates(num_codebooks: int, capacity: int) -> _Candidates:
    return _Candidates(
        np.empty(num_codebooks, np.int64),
        np.empty(num_codebooks, np.int64),
        np.empty(num_codebooks, np.int64),
        np.empty((num_codebooks, capacity), np.float32),
        np.empty((num_codebooks, num_codebooks, capacity), np.int32),
    )


@compiled()
def _add_row(scores: Any, row: Any) -> None:
    for place in range(len(scores)):
        scores[place] += row[place]


@compiled()
def _change_row(scores: Any, new: Any, old: Any) -> None:
    for place in range(len(scores)):
        scores[place] += new[place] - old[place]


@compiled()
def _key(bits: Any, place: int) -> Any:
    """Returns an integer in which the order of values, then of places, is that of integers.

    Args:
        bits: A float32 read as int32: the order of positive ones is theirs, that of negative ones
            is turned round.
        place: Below 2^31.

    Minima of integers are compiled to vector instructions, those of floats are not.
    """
    return np.int64(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))) * _PLACES + place


@compiled()
def _lowest(scores: Any) -> int:
    """Returns the first place of the lowest score."""
    bits = scores.view(np.int32)
    least = np.int64(_LAST_KEY)
    for place in range(len(bits)):
        least = min(least, _key(bits[place], place))
    return int(least & (_PLACES - 1))


@compiled()
def _sweep(scores: Any, cross: Any, rows: Any, size: int) -> None:
    """Coordinate descent; `scores` and `rows` of the frame follow."""
    for _ in range(MAX_SWEEPS):
        is_moved = False
        for n in range(len(rows)):
            best = n * size + _lowest(scores[n * size : (n + 1) * size])
            if scores[best] < scores[rows[n]]:
                _change_row(scores, cross[best], cross[rows[n]])
                rows[n] = best
                is_moved = True
        if not is_moved:
            break


@compiled()
def _merge_pass(scores: Any, cross: Any, rows: Any, beam_width: int, scratch: _Scratch) -> bool:
    """Changes all codebooks together; returns whether anything moved."""
    num_codebooks, width = scratch.shortlist.shape
    _shortlist(scores, rows, scratch)
    before, after = scratch.groups, scratch.merged
    for n in range(num_codebooks):
        before.first[n], before.length[n], before.count[n] = n, 1, width
        for w in range(width):
            before.deltas[n, w] = scratch.deltas[n, w]
            before.slots[n, n, w] = w
            scratch.in_use[n, w] = w + 1
        scratch.num_in_use[n] = width - 1
    num_groups = num_codebooks
    while num_groups > 1:
        for target in range(num_groups // 2):
            _fill_pairs(cross, before, 2 * target, scratch)
            _merge(before, 2 * target, after, target, beam_width, scratch)
            _note_use(after, target, scratch)
        if num_groups % 2:
            _carry(before, num_groups - 1, after, num_groups // 2)
        num_groups = (num_groups + 1) // 2
        before, after = after, before
    best = 0
    for candidate in range(1, before.count[0]):
        if before.deltas[0, candidate] < before.deltas[0, best]:
            best = candidate
    is_moved = False
    for n in range(num_codebooks):
        new = scratch.shortlist[n, before.slots[0, n, best]]
        if new != rows[n]:
            _change_row(scores, cross[new], cross[rows[n]])
            rows[n] = new
            is_moved = True
    return is_moved


@compiled()
def _select(size: int, count: int, scratch: _Scratch) -> None:
    """Finds the places of the `count` lowest of the first `size` values; of equals the first.

    A tournament: the lowest of every group are known, so that the next one is found by looking at
    these and at its group again. No branches to mispredict, as in a heap or a sorted list.
    """
    keys, minima = scratch.keys, scratch.minima
    bits = scratch.values[:size].view(np.int32)
    for place in range(size):
        keys[place] = _key(bits[place], place)
    num_groups = (size + _GROUP - 1) // _GROUP
    keys[size : num_groups * _GROUP] = _LAST_KEY
    for g in range(num_groups):
        minima[g] = _least(keys[g * _GROUP : (g + 1) * _GROUP])
    for index in range(count):
        place = _least(minima[:num_groups]) & (_PLACES - 1)
        scratch.places[index] = place
        keys[place] = _LAST_KEY
        g = place // _GROUP
        minima[g] = _least(keys[g * _GROUP : (g + 1) * _GROUP])


@compiled()
def _least(keys: Any) -> Any:
    least = np.int64(_LAST_KEY)
    for place in range(len(keys)):
        least = min(least, keys[place])
    return least


@compiled()
def _shortlist(scores: Any, rows: Any, scratch: _Scratch) -> None:
    """The current code of every codebook, then its best others."""
    size, limit = len(scores) // len(rows), scratch.shortlist.shape[1] - 1
    for n in range(len(rows)):
        own = scores[n * size : (n + 1) * size]
        current = scores[rows[n]]
        for k in range(size):
            scratch.values[k] = own[k] - current
        scratch.values[rows[n] - n * size] = np.inf
        _select(size, limit, scratch)
        scratch.shortlist[n, 0], scratch.deltas[n, 0] = rows[n], 0
        for w in range(limit):
            scratch.shortlist[n, w + 1] = scratch.places[w] + n * size
            scratch.deltas[n, w + 1] = scratch.values[scratch.places[w]]


@compiled()
def _fill_pairs(cross: Any, groups: _Candidates, a: int, scratch: _Scratch) -> None:
    """What two codes cost together beyond each of them with the other's current partner.

    For codes of groups a and a + 1 that a candidate holds: the table is too large for the cache of
    a core, so what is not needed is not fetched.
    """
    shortlist, pairs, in_use = scratch.shortlist, scratch.pairs, scratch.in_use
    alone = scratch.coupling[0]
    first, middle = groups.first[a], groups.first[a + 1]
    for n in range(first, middle):
        current = cross[shortlist[n, 0]]
        for m in range(middle, middle + groups.length[a + 1]):
            for j in range(scratch.num_in_use[m]):
                alone[j] = current[shortlist[m, in_use[m, j]]]
            both_current = current[shortlist[m, 0]]
            for i in range(scratch.num_in_use[n]):
                w = in_use[n, i]
                row = cross[shortlist[n, w]]
                base = row[shortlist[m, 0]] - both_current
                for j in range(scratch.num_in_use[m]):
                    v = in_use[m, j]
                    pairs[n, m, w, v] = row[shortlist[m, v]] - alone[j] - base


@compiled()
def _note_use(groups: _Candidates, g: int, scratch: _Scratch) -> None:
    """Finds which shortlisted codes the candidates of a group hold."""
    in_use = scratch.in_use
    for n in range(groups.first[g], groups.first[g] + groups.length[g]):
        in_use[n, :] = 0
        for candidate in range(groups.count[g]):
            in_use[n, groups.slots[g, n, candidate]] = 1
        count = 0
        for w in range(1, in_use.shape[1]):
            if in_use[n, w] > 0:
                in_use[n, count] = w
                count += 1
        scratch.num_in_use[n] = count


@compiled()
def _merge(
    before: _Candidates,
    a: int,
    after: _Candidates,
    target: int,
    beam_width: int,
    scratch: _Scratch,
) -> None:
    """Joins groups a and a + 1 of `before` into group `target` of `after`."""
    b = a + 1
    first, middle = before.first[a], before.first[b]
    end = middle + before.length[b]
    # The last merge needs the best alone, beside the current choice.
    is_last = end - first == len(before.first)
    values, coupling = scratch.values, scratch.coupling
    width = coupling.shape[1]
    num_a, num_b = before.count[a], before.count[b]
    for x in range(num_a):
        for m in range(middle, end):
            coupling[m, :] = 0
            for n in range(first, middle):
                slot = before.slots[a, n, x]
                if slot > 0:
                    pair = scratch.pairs[n, m, slot]
                    for w in range(width):
                        coupling[m, w] += pair[w]
        row = values[x * num_b : (x + 1) * num_b]
        deltas = before.deltas[b]
        for y in range(num_b):
            row[y] = before.deltas[a, x] + deltas[y]
        for m in range(middle, end):
            slots = before.slots[b, m]
            own = coupling[m]
            for y in range(num_b):
                row[y] += own[slots[y]]
    values[0] = np.inf  # the current choice is kept in any case
    count = min(1 if is_last else _num_kept(beam_width, end - first) - 1, num_a * num_b - 1)
    _select(num_a * num_b, count, scratch)
    after.first[target], after.length[target], after.count[target] = first, end - first, count + 1
    after.deltas[target, 0] = 0
    after.slots[target, first:end, 0] = 0
    for candidate in range(count):
        place = scratch.places[candidate]
        after.deltas[target, candidate + 1] = values[place]
        x, y = place // num_b, place % num_b
        for n in range(first, middle):
            after.slots[target, n, candidate + 1] = before.slots[a, n, x]
        for n in range(middle, end):
            after.slots[target, n, candidate + 1] = before.slots[b, n, y]


@compiled()
def _carry(before: _Candidates, source: int, after: _Candidates, target: int) -> None:
    """Copies a group that has no neighbour to merge with."""
    first, length, count = before.first[source], before.length[source], before.count[source]
    after.first[target], after.length[target], after.count[target] = first, length, count
    after.deltas[target, :count] = before.deltas[source, :count]
    own = slice(first, first + length)
    after.slots[target, own, :count] = before.slots[source, own, :count]
