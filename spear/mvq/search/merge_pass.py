"""One merging pass of the search: all codebooks of a frame improved together.

Every code of every codebook is scored with the others fixed, the best few of each are shortlisted,
and neighbouring codebooks are merged in pairs, then pairs of pairs, with exact joint errors, until
one group is left. It is the refinement of `multi_quantization`, here on look-ups; the current
choice is always among the candidates, so that no frame ends worse than it began. Among equals the
current choice comes first, then lower codes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.mvq.search.limits import num_kept
from spear.mvq.search.products import ProductTable

# Elements of the largest temporary table of one block of frames. Small blocks stay in the cache of
# a CPU, which is worth a factor of two there; a GPU wants large ones.
_CPU_BLOCK_ELEMENTS = 1 << 20
_GPU_BLOCK_ELEMENTS = 1 << 26


@dataclass
class _Groups:
    """Candidate joint choices for G groups of L neighbouring codebooks each, of B frames.

    Attributes:
        deltas: (B, G, W) change of the squared error if this candidate alone replaced the current
            codes of its group. Candidate 0 is the current choice itself, with delta 0.
        slots: (B, G, W, L) places in the shortlists of the group's codebooks.
        shortlist: (B, G, L * S) table rows of the S shortlisted codes of each codebook.
    """

    deltas: Tensor
    slots: Tensor
    shortlist: Tensor

    def part(self, groups: slice) -> "_Groups":
        """Returns the same for some of the groups only."""
        return _Groups(self.deltas[:, groups], self.slots[:, groups], self.shortlist[:, groups])


def merge_pass(table: ProductTable, unary: Tensor, codes: Tensor, beam_width: int) -> Tensor:
    """Better codes for every frame, or the same.

    Args:
        table: The products of the centres.
        unary: (B, N * K) from `table.unary`.
        codes: (B, N) int64 current codes.
        beam_width: Number of codes that each codebook shortlists.

    Returns:
        (B, N) int64. The error is no larger than that of `codes`.
    """
    if len(unary) == 0:
        return codes.clone()
    groups = _shortlist(table, unary, codes, beam_width)
    rest: _Groups | None = None  # what is left over where the number of groups is odd
    while (count := groups.deltas.shape[1]) > 1:
        if count % 2:
            last = groups.part(slice(count - 1, count))
            rest = last if rest is None else _merge(table, last, rest, beam_width)
        even, odd = groups.part(slice(0, count - 1, 2)), groups.part(slice(1, None, 2))
        groups = _merge(table, even, odd, beam_width)
    if rest is not None:
        groups = _merge(table, groups, rest, beam_width)
    return _best_rows(groups, table.num_codebooks) - table.first_rows


def block_frames(table: ProductTable, beam_width: int, device: torch.device) -> int:
    """Returns how many frames are searched at once, by the size of the largest temporary."""
    half = (table.num_codebooks + 1) // 2
    per_frame = max((half * min(beam_width, table.codebook_size)) ** 2, table.num_codes)
    elements = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    return max(elements // per_frame, 8)


def _shortlist(table: ProductTable, unary: Tensor, codes: Tensor, beam_width: int) -> _Groups:
    """The best codes of every codebook with all others fixed, as groups of one codebook."""
    scores = table.scores(unary, codes).view(*codes.shape, table.codebook_size)
    scores = scores - scores.gather(2, codes.unsqueeze(2))
    deltas, chosen = _keep_best(scores, min(beam_width, table.codebook_size), codes)
    rows = chosen + table.first_rows.unsqueeze(1)
    slots = torch.arange(rows.shape[2], device=rows.device).view(1, 1, -1, 1)
    return _Groups(deltas, slots.expand(*rows.shape, 1), rows)


def _keep_best(deltas: Tensor, count: int, current: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the `count` smallest of the last dimension and their places, in order.

    The candidate `current` (places, one per row) is always kept, and stands first. Among equals
    the first is kept: a stable sort, since `topk` promises nothing.
    """
    current = current.unsqueeze(-1)
    others = deltas.scatter(-1, current, float("inf")).sort(dim=-1, stable=True)
    values, places = others.values[..., : count - 1], others.indices[..., : count - 1]
    values = torch.cat((torch.zeros_like(deltas[..., :1]), values), dim=-1)
    return values, torch.cat((current, places), dim=-1)


def _merge(table: ProductTable, a: _Groups, b: _Groups, beam_width: int) -> _Groups:
    """Joins group g of `a` with group g of `b`, keeping the best joint candidates."""
    interaction = _interaction(table, a, b)
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
        first = torch.zeros(joint.shape[:2], dtype=torch.long, device=joint.device)
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
