"""First centres for training: every codebook gets its own subspace of equal importance.

The principal directions of the frames are taken N at a time, most important first, and each such
row is turned until its N directions have the same variance; every codebook gets one direction of
each row, and starts as k-means in its subspace. No codebook comes first, all have the same share of
the work, and least squares then lets all centres use all dimensions. A residual hierarchy, or the
directions unturned (the allocation of Ge et al., CVPR 2013), would leave some codebooks with most
of the signal and others with noise that a student cannot predict: on stacked log-mel, removing one
codebook then cost from 4% to 51% of the signal, against 6% to 13% so.
"""

import torch
from torch import Tensor

from spear.mvq.quantizers.kmeans import lloyd

_KMEANS_ITERATIONS = 8


def initial_centers(
    frames: Tensor, num_codebooks: int, codebook_size: int, generator: torch.Generator
) -> Tensor:
    """Returns (N, K, D) float32 centres for frames (F, D), F at least K."""
    mean = frames.mean(dim=0)
    centered = frames - mean
    exact = centered.double()
    bases = balanced_bases(exact.t() @ exact / len(frames), num_codebooks, generator)
    # With more codebooks than dimensions several work on the same direction, each on its part.
    share = min(1.0, frames.shape[1] / num_codebooks)
    centers = []
    for basis in bases:
        directions = basis.float()
        means = lloyd(centered @ directions, codebook_size, generator, range(_KMEANS_ITERATIONS))
        centers.append(share * means @ directions.t())
    return torch.stack(centers) + mean / num_codebooks


def balanced_bases(
    covariance: Tensor, num_codebooks: int, generator: torch.Generator
) -> list[Tensor]:
    """Splits the space into one subspace per codebook, all of about the same variance.

    Args:
        covariance: (D, D) float64.
        num_codebooks: N; where it exceeds D, subspaces repeat.
        generator: Decides who goes short where D is no multiple of N.

    Returns:
        N matrices (D, ceil(D / N)) or one column less, with orthonormal columns; those of different
        codebooks are orthogonal, too, unless N > D.
    """
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    columns: list[list[Tensor]] = [[] for _ in range(num_codebooks)]
    for start in range(0, len(variances), num_codebooks):
        row = slice(start, start + num_codebooks)
        turned = directions[:, row] @ equalizing_rotation(variances[row]).t()
        places = torch.randperm(num_codebooks, generator=generator).tolist()
        if start > 0:
            places = places[: turned.shape[1]]
        for index, place in enumerate(places):
            columns[place].append(turned[:, index % turned.shape[1]])
    return [torch.stack(own, dim=1) for own in columns]


def equalizing_rotation(variances: Tensor) -> Tensor:
    """Returns the rotation Q (n, n) after which all directions have the mean variance.

    The diagonal of Q diag(v) Q' becomes constant by n - 1 plane rotations: each takes the
    direction of the largest and that of the smallest variance and turns the first to the mean.
    """
    size = len(variances)
    rotation = torch.eye(size, dtype=variances.dtype, device=variances.device)
    current = torch.diag(variances)
    mean = variances.mean()
    left = list(range(size))
    while len(left) > 1:
        values = current.diagonal()
        high = max(left, key=lambda index: float(values[index]))
        low = min(left, key=lambda index: float(values[index]))
        a, b, c = values[high], values[low], current[high, low]
        if float(a - b) <= 1e-12 * float(mean):
            break
        # The tangent t of the angle solves (b - mean) t^2 + 2 c t + (a - mean) = 0, b < mean < a.
        root = (c * c - (b - mean) * (a - mean)).clamp(min=0).sqrt()
        tangent = (-c - root) / (b - mean)
        cosine = (1 + tangent * tangent).rsqrt()
        turn = torch.eye(size, dtype=variances.dtype, device=variances.device)
        turn[high, high] = turn[low, low] = cosine
        turn[high, low], turn[low, high] = cosine * tangent, -cosine * tangent
        rotation, current = turn @ rotation, turn @ current @ turn.t()
        left.remove(high)
    return rotation
