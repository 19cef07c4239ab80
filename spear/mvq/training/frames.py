"""Training frames that need not fit into memory, and what is known of their channels.

Frames are an array, a memory map or a tensor (F, D); they are read a block at a time. With several
processes each looks at its share of the blocks, and all end with the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spear.errors import DataError
from spear.system.distributed import Ranks

Frames = np.ndarray | Tensor

_BLOCK_FRAMES = 1 << 14
_MIN_CHANNEL_SHARE = 1e-6


@dataclass
class ChannelStatistics:
    """What all training frames together say about their channels, (D,) float32 each."""

    mean: Tensor
    """Mean."""
    scale: Tensor
    """Standard deviation; 1 for a channel that never changes."""
    lowest: Tensor
    """Smallest value."""
    highest: Tensor
    """Largest value."""


@dataclass
class NormalizedFrames:
    """The frames that a quantiser is trained on, as it sees them.

    Attributes:
        frames: (F, D).
        mean: (D,) float32, subtracted.
        scale: (D,) float32, that they are divided by.
    """

    frames: Frames
    mean: Tensor
    scale: Tensor

    def read(self, rows: Tensor) -> Tensor:
        """Returns frames (B, D) float32 at indexes (B,), on the device of the statistics."""
        block = read_rows(self.frames, rows).to(self.mean.device)
        return (block.float() - self.mean) / self.scale


def read_rows(frames: Frames, rows: Tensor) -> Tensor:
    """Returns the frames (B, D) at indexes (B,), as a tensor of their own type."""
    if isinstance(frames, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(frames[rows.numpy()]))
    return frames[rows.to(frames.device)]


def check_training_frames(shape: Sequence[int], num_rows: int, codebook_size: int) -> None:
    """Refuses training frames that are no (F, D) or fewer than codes.

    Raises:
        DataError: It says what there is and what is needed.
    """
    if len(shape) != 2 or shape[1] == 0:
        raise DataError(f"frames must be (F, D), not of shape {tuple(shape)}")
    if num_rows < codebook_size:
        raise DataError(
            f"{num_rows} frames are too few for codebooks of {codebook_size} codes: embed more "
            "clips or choose a smaller codebook_size"
        )


def channel_statistics(
    frames: Frames, rows: Tensor, ranks: Ranks | None = None
) -> ChannelStatistics:
    """Reads all training frames once, in float64.

    Blocks are combined in their order by the formula of Chan, Golub and LeVeque (1979), so that
    the figures do not depend on the number of processes.

    Args:
        frames: (F, D).
        rows: (F',) int64 indexes of the frames that count.
        ranks: The processes that share the work.

    Raises:
        DataError: A value is not finite, or all frames are equal. Every process raises it.
    """
    ranks = ranks or Ranks(torch.device("cpu"))
    blocks = rows.split(_BLOCK_FRAMES)
    # For each block the sums, squared deviations, minima and maxima of its channels.
    found = torch.zeros(len(blocks), 4, frames.shape[1], dtype=torch.float64)
    bad = torch.zeros(len(blocks), dtype=torch.int64)  # a frame that is not finite, plus 1
    for index in range(ranks.rank, len(blocks), ranks.world_size):
        block = read_rows(frames, blocks[index]).double().cpu()
        not_finite = (~torch.isfinite(block).all(dim=1)).nonzero()[:, 0]
        if len(not_finite):
            bad[index] = blocks[index][not_finite[0]] + 1
            continue
        mean = block.mean(dim=0)
        found[index, 0], found[index, 1] = mean, (block - mean).square().sum(dim=0)
        found[index, 2], found[index, 3] = block.amin(dim=0), block.amax(dim=0)
    found = ranks.all_reduce(found.to(ranks.device)).cpu()
    bad = ranks.all_reduce(bad.to(ranks.device)).cpu()
    if bool(bad.any()):
        raise DataError(
            f"frame {int(bad[bad > 0][0]) - 1} of the training frames holds NaN or infinite "
            "values: embed the clips again, and look for a broken teacher"
        )
    lowest, highest = found[:, 2].amin(dim=0), found[:, 3].amax(dim=0)
    if bool((lowest == highest).all()):
        raise DataError(
            f"all {len(rows)} training frames are equal: nothing can be learnt from them. Look at "
            "the recordings (silence?) and at the teacher"
        )
    mean, squares = _combine([len(block) for block in blocks], found[:, 0], found[:, 1])
    scale = (squares / len(rows)).sqrt()
    scale[scale <= _MIN_CHANNEL_SHARE * scale.max()] = 1.0
    return ChannelStatistics(mean.float(), scale.float(), lowest.float(), highest.float())


def normalization(found: ChannelStatistics, normalize_channels: bool) -> tuple[Tensor, Tensor]:
    """Returns what to subtract from frames and to divide them by; 0 and 1 without normalisation."""
    if normalize_channels:
        return found.mean, found.scale
    return torch.zeros_like(found.mean), torch.ones_like(found.scale)


def _combine(counts: Sequence[int], means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and squared deviations (D,) of all from those of the blocks (B, D)."""
    num_frames, mean, total = 0, torch.zeros_like(means[0]), torch.zeros_like(squares[0])
    for count, block_mean, block_squares in zip(counts, means, squares, strict=True):
        num_frames += count
        step = block_mean - mean
        mean = mean + step * (count / num_frames)
        total = total + block_squares + step.square() * (count * (num_frames - count) / num_frames)
    return mean, total
