"""Training of the baselines: k-means, residual VQ, random projection.

They exist for ablations, behind the interface of the multi-codebook quantiser: what they give can
be extracted, verified and pre-trained on like its tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spear.errors import ConfigError
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.kmeans import KMeansQuantizer, lloyd
from spear.mvq.quantizers.loading import QUANTIZERS
from spear.mvq.quantizers.random_projection import RandomProjectionQuantizer, random_projections
from spear.mvq.quantizers.residual import ResidualQuantizer, residual_centers
from spear.mvq.training.frames import (
    Frames,
    channel_statistics,
    check_training_frames,
    normalization,
    read_rows,
)
from spear.mvq.training.statistics import CodeStatistics
from spear.system.progress import progress

_BLOCK_FRAMES = 4096
# In frames; only keeps the system solvable: a constant may move from one codebook to another.
_RIDGE = 1e-3
BASELINES = (KMeansQuantizer.kind, ResidualQuantizer.kind, RandomProjectionQuantizer.kind)


@dataclass
class BaselineBudget:
    """How long the baselines work, and on how much."""

    num_iterations: int = 16
    """Most passes of k-means over the frames (count), in every stage where there are several."""
    max_frames: int = 200_000
    """Frames to train on (count), drawn at random where there are more; all are held in memory,
    4 bytes a channel."""
    projected_dim: int = 16
    """Dimensions that a random projection leaves of a frame (count)."""


def train_baseline(
    kind: str,
    frames: Frames,
    num_codebooks: int,
    codebook_size: int,
    *,
    seed: int = 0,
    normalize_channels: bool = False,
    rows: Tensor | None = None,
    budget: BaselineBudget | None = None,
    metadata: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
) -> CodebookQuantizer:
    """Trains a baseline on a sample of frames.

    Args:
        kind: "kmeans", "residual" or "random-projection".
        frames: (F, D) floating point array, memory map or tensor.
        num_codebooks: N; 1 for k-means.
        codebook_size: K, up to 4096 for k-means, 256 for residual VQ, 8192 for random projection.
        seed: Fixes all random choices.
        normalize_channels: Give every channel zero mean and unit variance first, by statistics of
            these frames that are stored with the quantiser.
        rows: (F',) int64 indexes of the frames to train on, ascending; all by default.
        budget: How long to work.
        metadata: Stored with the quantiser.
        device: Where to compute.

    Returns:
        The quantiser, on `device`.

    Raises:
        ConfigError: A number is out of range, or there is no such kind.
        DataError: Too few frames, a wrong shape, or values that are not finite.
    """
    budget = budget or BaselineBudget()
    check_baseline(kind, num_codebooks, codebook_size, budget)
    rows = torch.arange(len(frames)) if rows is None else rows
    check_training_frames(frames.shape, len(rows), codebook_size)
    mean, scale = normalization(channel_statistics(frames, rows), normalize_channels)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(rows), generator=generator)[: budget.max_frames].sort().values
    points = read_rows(frames, rows[drawn]).float()
    points = points.sub_(mean.to(points)).div_(scale.to(points)).to(device)
    tensors = _fit(kind, points, (num_codebooks, codebook_size), generator, budget)
    tensors |= {"channel_mean": mean, "channel_scale": scale}
    return QUANTIZERS[kind](**tensors, metadata=metadata).to(device)


def check_baseline(
    kind: str, num_codebooks: int, codebook_size: int, budget: BaselineBudget
) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: It names the number and its range.
    """
    if kind not in BASELINES:
        raise ConfigError(f"no baseline is called {kind!r}; there are {', '.join(BASELINES)}")
    QUANTIZERS[kind].check_sizes(num_codebooks, codebook_size)
    if budget.num_iterations < 1 or budget.projected_dim < 1:
        raise ConfigError("baseline.num_iterations and projected_dim must be at least 1")
    if budget.max_frames < codebook_size:
        raise ConfigError(
            f"baseline.max_frames is {budget.max_frames}: fewer than the {codebook_size} codes"
        )


def _fit(
    kind: str,
    points: Tensor,
    sizes: tuple[int, int],
    generator: torch.Generator,
    budget: BaselineBudget,
) -> dict[str, Tensor]:
    """Returns the tensors of a quantiser for normalised frames (F, D), which may be changed."""
    if kind == KMeansQuantizer.kind:
        passes = progress(range(budget.num_iterations), "k-means")
        return {"centers": lloyd(points, sizes[1], generator, passes)[None]}
    if kind == ResidualQuantizer.kind:
        return {"centers": residual_centers(points, *sizes, generator, budget.num_iterations)}
    dim = points.shape[1]
    drawn = random_projections(dim, *sizes, budget.projected_dim, generator)
    projection, directions = (tensor.to(points) for tensor in drawn)
    blank = RandomProjectionQuantizer(
        points.new_zeros(*sizes, dim), projection=projection, directions=directions
    )
    centers = fit_decoding(points, blank.encode(points), sizes[1])
    return {"centers": centers, "projection": projection, "directions": directions}


def fit_decoding(points: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """The vectors whose sums come nearest to frames, in least squares.

    Args:
        points: (F, D) float32 normalised frames.
        codes: (F, N) their codes.
        codebook_size: K.

    Returns:
        (N, K, D) float32; a code that no frame has adds its share of the mean.
    """
    num_codebooks = codes.shape[1]
    statistics = CodeStatistics(
        num_codebooks,
        codebook_size,
        points.shape[1],
        largest_value=max(2 * float(points.abs().max()), 1e-20),
        max_frames=len(points),
        device=points.device,
    )
    mean = points.mean(dim=0)
    for block, own in zip(points.split(_BLOCK_FRAMES), codes.split(_BLOCK_FRAMES), strict=True):
        statistics.accumulate(block - mean, own)
    return statistics.least_squares(ridge=_RIDGE) + mean / num_codebooks
