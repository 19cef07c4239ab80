"""The search for the codes of a frame, on a table of the inner products of all centres.

A frame x is to be written as a sum of one centre of each codebook. Its squared error is, apart
from a constant, a sum of one number for every chosen code (`unary`, one matrix product per frame)
and one for every pair of chosen codes (`ProductTable`, computed once): no further work in D
dimensions is needed. A pass scores every code of every codebook with the others fixed, keeps the
best few of each, and merges neighbouring codebooks pairwise with exact joint errors until one
group is left (the search of `multi_quantization`, here on look-ups, and never ending worse than it
began). Every row is treated by itself, so that the result does not depend on batch mates.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of the largest temporary table of one block of frames. Small blocks stay in the cache of
# a CPU, which is worth a factor of two there; a GPU wants large ones.
_CPU_BLOCK_ELEMENTS = 1 << 20
_GPU_BLOCK_ELEMENTS = 1 << 26
_NARROW_WIDTH = 2
_MAX_NARROW_PASSES = 6


class ProductTable:
    """Inner products between all centres, laid out for the search.

    Args:
        centers: (N, K, D) float32.

    Attributes:
        offset: (D,) the sum of the codebooks' means. Centres are taken relative to their
            codebook's mean, which keeps all numbers small and makes "undecided" mean zero.
        centered: (N * K, D) centres without their codebook's mean.
        squared_norms: (N * K,) of the centred centres.
        cross: (N * K, N * K) twice the inner product of two codes of different codebooks, zero for
            two codes of one codebook, which never occur together.
    """

    def __init__(self, centers: Tensor) -> None:
        self.num_codebooks, self.codebook_size, dim = centers.shape
        self.num_codes = self.num_codebooks * self.codebook_size
        exact = centers.detach().double()
        means = exact.mean(dim=1, keepdim=True)
        exact = (exact - means).reshape(self.num_codes, dim)
        self.offset = means.sum(dim=(0, 1)).float()
        self.centered = exact.float()
        self.squared_norms = exact.square().sum(dim=1).float()
        self.cross = torch.empty(self.num_codes, self.num_codes, device=centers.device)
        for codebook in range(self.num_codebooks):
            # One block of rows at a time: the whole table in float64 would be twice its size.
            rows = slice(codebook * self.codebook_size, (codebook + 1) * self.codebook_size)
            self.cross[rows] = (2 * exact[rows] @ exact.t()).float()
            self.cross[rows, rows] = 0
        self.first_rows = torch.arange(self.num_codebooks, device=centers.device)
        self.first_rows = self.first_rows * self.codebook_size

    def unary(self, frames: Tensor) -> Tensor:
        """Returns (B, N * K): |c|^2 - 2 <x - offset, c> for every centre c; frames are (B, D)."""
        return torch.addmm(self.squared_norms, frames - self.offset, self.centered.t(), alpha=-2.0)

    def squared_errors(self, frames: Tensor, codes: Tensor) -> Tensor:
        """Returns (B,): the squared error of every frame (B, D) under its codes (B, N)."""
        return (frames - self.decode(codes)).square().sum(dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns (B, D): the sum of the chosen centres; codes are (B, N) integers."""
        rows = codes.long() + self.first_rows
        return F.embedding_bag(rows, self.centered, mode="sum") + self.offset


@dataclass
class _Groups:
    """Candidate joint choices for G groups of L neighbouring codebooks each, of B frames.

    Attributes:
        deltas: (B, G, W) change of the squared error if this candidate alone replaced the current
            codes of its group. Candidate 0 is the current choice itself, with delta 0, where
            there is one.
        slots: (B, G, W, L) places in the shortlists of the group's codebooks.
        shortlist: (B, G, L * S) table rows of the S shortlisted codes of each codebook.
    """

    deltas: Tensor
    slots: Tensor
    shortlist: Tensor

    def part(self, groups: slice) -> "_Groups":
        """Returns the same for some of the groups only."""
        return _Groups(self.deltas[:, groups], self.slots[:, groups], self.shortlist[:, groups])


def num_kept(beam_width: int, num_codebooks: int) -> int:
    """Returns how many candidates a group of so many codebooks keeps.

    The number doubles whenever groups become four times longer, as in `multi_quantization`:
    16, 16, 32, 32, 64 for groups of 1, 2, 4, 8, 16 codebooks and a beam width of 16.
    """
    return beam_width << ((num_codebooks.bit_length() - 1) // 2)


def refine(
    table: ProductTable, unary: Tensor, codes: Tensor | None, beam_width: int, shift: int = 0
) -> Tensor:
    """One pass of the search: better codes for every frame, or the same.

    Args:
        table: The products of the centres.
        unary: (B, N * K) from `table.unary`.
        codes: (B, N) int64 current codes; None for undecided, when every other codebook is taken
            at its mean.
        beam_width: Number of codes that each codebook shortlists.
        shift: Turns the order of the codebooks, so that other neighbours are merged.

    Returns:
        (B, N) int64. Given codes, the error is no larger than theirs.
    """
    if len(unary) == 0:
        return torch.empty(0, table.num_codebooks, dtype=torch.long, device=unary.device)
    has_current = codes is not None
    groups = _shortlist(table, unary, codes, beam_width)
    order = torch.arange(table.num_codebooks, device=unary.device).roll(shift)
    groups = _Groups(groups.deltas[:, order], groups.slots[:, order], groups.shortlist[:, order])
    rest: _Groups | None = None  # what is left over where the number of groups is odd
    while (count := groups.deltas.shape[1]) > 1:
        if count % 2:
            last = groups.part(slice(count - 1, count))
            rest = last if rest is None else _merge(table, last, rest, beam_width, has_current)
        even, odd = groups.part(slice(0, count - 1, 2)), groups.part(slice(1, None, 2))
        groups = _merge(table, even, odd, beam_width, has_current)
    if rest is not None:
        groups = _merge(table, groups, rest, beam_width, has_current)
    chosen = _best_rows(groups, table.num_codebooks)
    return torch.empty_like(chosen).index_copy_(1, order, chosen) - table.first_rows


def search(
    table: ProductTable,
    unary: Tensor,
    codes: Tensor | None,
    *,
    num_passes: int,
    beam_width: int,
    num_narrow_passes: int = _MAX_NARROW_PASSES,
) -> Tensor:
    """Cheap narrow passes until little moves, then passes of the full width.

    Most of the way is covered by passes that look at one alternative per codebook, at a quarter
    of the cost of a full one. Passes merge neighbours in two ways in turn; a frame that two passes
    on end leave as it is takes no part in the next.

    Args:
        table: The products of the centres.
        unary: (B, N * K) from `table.unary`.
        codes: (B, N) int64 first guess, or None.
        num_passes: Number of passes of full width; 0 returns the first guess.
        beam_width: Number of codes that each codebook shortlists in a full pass.
        num_narrow_passes: At most so many narrow passes come first.

    Returns:
        (B, N) int64.
    """
    if codes is None:
        codes = _in_blocks(table, unary, None, beam_width, 0)
    if num_passes == 0:
        return codes
    narrow = min(_NARROW_WIDTH, beam_width)
    codes = _repeat(table, unary, codes, num_narrow_passes, narrow)
    return _repeat(table, unary, codes, num_passes, beam_width)


def _repeat(
    table: ProductTable, unary: Tensor, codes: Tensor, num_passes: int, beam_width: int
) -> Tensor:
    """Runs passes with two orders of the codebooks in turn; frames that both leave alone rest."""
    codes = codes.clone()
    active = torch.arange(len(codes), device=codes.device)
    times_kept = torch.zeros_like(active)
    for index in range(num_passes):
        everything = len(active) == len(codes)  # then spare a copy of the scores
        scores, before = (unary, codes) if everything else (unary[active], codes[active])
        after = _in_blocks(table, scores, before, beam_width, index % 2)
        moved = (after != before).any(dim=1)
        codes[active] = after
        times_kept = torch.where(moved, 0, times_kept + 1)
        active, times_kept = active[times_kept < 2], times_kept[times_kept < 2]
        if len(active) == 0:
            break
    return codes


def _in_blocks(
    table: ProductTable, unary: Tensor, codes: Tensor | None, beam_width: int, shift: int
) -> Tensor:
    """Runs `refine` on blocks of frames whose temporary tables stay small."""
    size = block_frames(table, beam_width, unary.device)
    return torch.cat(
        [
            refine(
                table,
                unary[start : start + size],
                None if codes is None else codes[start : start + size],
                beam_width,
                shift,
            )
            for start in range(0, max(len(unary), 1), size)
        ]
    )


def block_frames(table: ProductTable, beam_width: int, device: torch.device) -> int:
    """Returns how many frames are searched at once, by the size of the largest temporary."""
    half = (table.num_codebooks + 1) // 2
    per_frame = max((half * min(beam_width, table.codebook_size)) ** 2, table.num_codes)
    elements = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    return max(elements // per_frame, 8)


def _shortlist(
    table: ProductTable, unary: Tensor, codes: Tensor | None, beam_width: int
) -> _Groups:
    """The best codes of every codebook with all others fixed, as groups of one codebook."""
    shape = (len(unary), table.num_codebooks, table.codebook_size)
    if codes is None:
        scores, current = unary.view(shape), None
    else:
        coupling = F.embedding_bag(codes + table.first_rows, table.cross, mode="sum")
        scores = coupling.add_(unary).view(shape)
        scores -= scores.gather(2, codes.unsqueeze(2))
        current = codes
    deltas, chosen = _keep_best(scores, min(beam_width, table.codebook_size), current)
    rows = chosen + table.first_rows.unsqueeze(1)
    slots = torch.arange(rows.shape[2], device=rows.device).view(1, 1, -1, 1)
    return _Groups(deltas, slots.expand(*rows.shape, 1), rows)


def _keep_best(deltas: Tensor, count: int, current: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the `count` smallest of the last dimension and their places.

    The candidate `current` (places, one per row) is always kept, and stands first.
    """
    if current is None:
        best = deltas.topk(count, dim=-1, largest=False)
        return best.values, best.indices
    current = current.unsqueeze(-1)
    others = deltas.scatter(-1, current, float("inf"))
    best = others.topk(count - 1, dim=-1, largest=False)
    values = torch.cat((torch.zeros_like(others[..., :1]), best.values), dim=-1)
    return values, torch.cat((current, best.indices), dim=-1)


def _merge(
    table: ProductTable, a: _Groups, b: _Groups, beam_width: int, has_current: bool
) -> _Groups:
    """Joins group g of `a` with group g of `b`, keeping the best joint candidates."""
    interaction = _interaction(table, a, b)
    if has_current:
        # Deltas hold the coupling to the partner's *current* codes: replace it by the real one.
        interaction = interaction - interaction[:, :, :1]
        interaction = interaction - interaction[:, :, :, :1]
    joint = a.deltas.unsqueeze(3) + b.deltas.unsqueeze(2) + interaction
    num_a, num_b = joint.shape[2:]
    joint = joint.flatten(2)
    length = a.slots.shape[3] + b.slots.shape[3]
    if length == table.num_codebooks:  # the end: only the best is wanted; the first of equals
        place = joint.argmin(dim=2, keepdim=True)
        deltas = joint.gather(2, place)
    else:
        first = joint.new_zeros(joint.shape[:2], dtype=torch.long) if has_current else None
        count = min(num_kept(beam_width, length), num_a * num_b)
        deltas, place = _keep_best(joint, count, first)
    from_a = _take_slots(a.slots, place.div(num_b, rounding_mode="floor"))
    from_b = _take_slots(b.slots, place % num_b)
    slots = torch.cat((from_a, from_b), dim=3)
    return _Groups(deltas, slots, torch.cat((a.shortlist, b.shortlist), dim=2))


def _interaction(table: ProductTable, a: _Groups, b: _Groups) -> Tensor:
    """Returns (B, G, Wa, Wb): twice the inner product of every two candidates' sums.

    The products of all shortlisted codes are fetched once; candidates add up their rows, then
    their columns, of that small table.
    """
    batch, groups, num_a, length_a = a.slots.shape
    num_b, length_b = b.slots.shape[2:]
    size_b = b.shortlist.shape[2]
    place = (a.shortlist * table.num_codes).unsqueeze(3) + b.shortlist.unsqueeze(2)
    small = table.cross.view(-1).index_select(0, place.view(-1)).view(-1, size_b)
    if length_a > 1:
        small = F.embedding_bag(_bag_rows(a), small, mode="sum")
    if length_b > 1:
        small = small.view(-1, num_a, size_b).transpose(1, 2).reshape(-1, num_a)
        small = F.embedding_bag(_bag_rows(b), small, mode="sum")
        return small.view(batch, groups, num_b, num_a).transpose(2, 3)
    return small.view(batch, groups, num_a, num_b)


def _bag_rows(groups: _Groups) -> Tensor:
    """Returns (B * G * W, L): for every candidate, its codes' rows in the small tables."""
    batch, count, _, length = groups.slots.shape
    size = groups.shortlist.shape[2]
    device = groups.slots.device
    within = torch.arange(length, device=device) * (size // length)
    first = (torch.arange(batch * count, device=device) * size).view(batch, count, 1, 1)
    return (groups.slots + within + first).view(-1, length)


def _take_slots(slots: Tensor, place: Tensor) -> Tensor:
    """Returns (B, G, W', L): the candidates of `slots` (B, G, W, L) at `place` (B, G, W')."""
    return slots.gather(2, place.unsqueeze(3).expand(*place.shape, slots.shape[3]))


def _best_rows(groups: _Groups, num_codebooks: int) -> Tensor:
    """Returns (B, N): the table rows of the best candidate of the only group left."""
    best = groups.deltas[:, 0].argmin(dim=1).view(-1, 1, 1, 1)
    batch = len(best)
    slots = groups.slots.gather(2, best.expand(batch, 1, 1, num_codebooks))
    shortlist = groups.shortlist.view(batch, num_codebooks, -1)
    return shortlist.gather(2, slots.view(batch, num_codebooks, 1))[:, :, 0]
