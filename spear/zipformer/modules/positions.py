"""The compact relative positional encoding, and the turn from relative to absolute positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DROPOUT = 0.15
_INITIAL_FRAMES = 1024


def encode_offsets(num_frames: int, dim: int, device: torch.device) -> Tensor:
    """Encodes the offsets 1 - T ... T - 1 between frames.

    Offsets are compressed logarithmically, then by arctan, onto a finite interval on which sines
    and cosines of increasing frequency are taken: neighbours are told apart near zero, and far
    offsets that differ little look alike. The last channel is constant (icefall, zipformer.py).

    Args:
        num_frames: T.
        dim: Channels, even.
        device: Where to compute.

    Returns:
        (2 T - 1, dim) float32.
    """
    offsets = torch.arange(1 - num_frames, num_frames, dtype=torch.float32, device=device)
    knee = math.sqrt(dim)
    compressed = knee * offsets.sign() * ((offsets.abs() + knee).log() - math.log(knee))
    angles = (compressed * (2.0 * math.pi / dim)).atan()
    phases = angles.unsqueeze(1) * torch.arange(1, dim // 2 + 1, device=device)
    encoding = torch.stack((phases.cos(), phases.sin()), dim=2).flatten(1)
    encoding[:, -1] = 1.0
    return encoding


class RelativePositions(nn.Module):
    """Hands out the encoding of relative positions, with dropout in training.

    Args:
        dim: Channels, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self._table: Tensor | None = None  # a constant: no buffer, so in no state dict

    def forward(self, x: Tensor, num_remembered: int = 0) -> Tensor:
        """Returns the encodings of the offsets of sources from targets, in the type of x.

        Args:
            x: (B, T, ...), the target frames; they are sources too.
            num_remembered: Sources before them.

        Returns:
            (T + S - 1, dim) with S = T + num_remembered, for the offsets 1 - S ... T - 1.
        """
        num_targets, device = x.shape[1], x.device
        num_sources = num_targets + num_remembered
        num_offsets = num_targets + num_sources - 1
        if torch.compiler.is_compiling():  # a graph for any number of frames keeps no table
            encoding = encode_offsets(num_sources, self.dim, device)[:num_offsets]
        else:
            encoding = self._from_table(num_sources, num_offsets, device)
        return F.dropout(encoding.to(x.dtype), p=_DROPOUT, training=self.training)

    def _from_table(self, num_sources: int, num_offsets: int, device: torch.device) -> Tensor:
        table = self._table
        if table is None or table.device != device or table.shape[0] < 2 * num_sources - 1:
            # In float32, since offsets do not fit into a half.
            table = encode_offsets(max(num_sources, _INITIAL_FRAMES), self.dim, device)
            self._table = table
        first = table.shape[0] // 2 + 1 - num_sources
        return table[first : first + num_offsets]


def relative_to_absolute(scores: Tensor, num_sources: int) -> Tensor:
    """Turns scores by offset into scores by source: out[..., i, j] = scores[..., i, T - 1 + j - i].

    Read row after row, the wanted entries of one row follow those of the row before at a distance
    of one less than a row. So a shift and a view give them without a copy; what is written to the
    view is written to `scores`.

    Args:
        scores: (..., T, T + S - 1), contiguous in the last two dimensions. In a graph, which has
            to serve a single target as well, with one more column of anything.
        num_sources: S.

    Returns:
        (..., T, S).
    """
    num_targets = scores.shape[-2]
    if num_targets == 1 and not torch.compiler.is_compiling():
        return scores
    stride = scores.shape[-1] - 1
    rows = scores.flatten(-2)[..., num_targets - 1 : num_targets - 1 + num_targets * stride]
    return rows.unflatten(-1, (num_targets, stride))[..., :num_sources]
