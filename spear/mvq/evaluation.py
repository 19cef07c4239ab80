"""How good a quantiser is: errors, use of its codes, and what each codebook contributes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.usage import count_codes, normalized_entropies

_BLOCK_ELEMENTS = 1 << 24


@dataclass
class Evaluation:
    """What a set of frames says about a quantiser.

    Errors are relative: |x - x_hat|^2 / |x - mean|^2 summed over all frames, in the normalised
    space. 1 is what a single mean vector would reach.
    """

    num_frames: int
    """Frames looked at (count)."""
    relative_error: float
    """Error of the decoded tokens."""
    first_guess_error: float | None
    """Error before the full search, of the classifiers' guess; None without classifiers."""
    errors_without: list[float]
    """For every codebook the error when its mean contribution stands for it."""
    entropies: list[float]
    """For every codebook the entropy of its usage, divided by log K."""
    usage: Tensor
    """(N, K) int64, how often each code was chosen."""
    correlations: Tensor
    """(N, N) float64, how much codebooks do each other's work: see `evaluate`."""

    @property
    def num_unused(self) -> list[int]:
        """For every codebook, how many codes no frame chose."""
        return [int(count) for count in (self.usage == 0).sum(dim=1)]

    @property
    def used_bits(self) -> float:
        """Sum over codebooks of the entropy of their usage, in bits a frame."""
        return sum(self.entropies) * math.log2(self.usage.shape[1])

    def strongest_pairs(self, count: int) -> list[tuple[int, int, float]]:
        """Returns pairs of codebooks with their correlation, the furthest from 0 first."""
        size = len(self.correlations)
        pairs = [(a, b, float(self.correlations[a, b])) for a in range(size) for b in range(a)]
        return sorted(pairs, key=lambda pair: -abs(pair[2]))[:count]


@torch.no_grad()
def evaluate(quantizer: CodebookQuantizer, frames: Tensor) -> Evaluation:
    """Encodes frames (F, D) of the teacher's own space and measures what is lost.

    The correlation of codebooks n and m is that of what they contribute to the decoded frames:
    with y_n the vector chosen from codebook n, less its mean over the frames, it is
    E<y_n, y_m> / sqrt(E|y_n|^2 E|y_m|^2), from -1 to 1. At 0 two codebooks share no work; above,
    both say in part the same; below, one takes back what the other said. The mutual information of
    the codes would not do: K^2 = 65,536 pairs seen in 10,000 frames look dependent by
    (K - 1)^2 / 2F = 3 nats where they are not.

    Raises:
        ConfigError: Frames of the wrong width.
        DataError: NaN or infinite values.
    """
    frames = frames.float()
    codes = quantizer.encode(frames).long()
    target = quantizer.normalize(frames.to(codes.device))
    usage = count_codes(codes, quantizer.codebook_size)
    centers = quantizer.centers.double()
    means = torch.einsum("nk,nkd->nd", usage.double(), centers) / max(len(frames), 1)
    squared, gram, coupling = _products(target, codes, centers - means.unsqueeze(1), means)
    energy = gram.diagonal()
    norms = energy.clamp(min=1e-20).sqrt()
    spread = _spread(target)
    # |x - x_hat + y_n|^2 of every frame, summed.
    without = (squared + 2 * coupling + energy) / spread
    first_guess_error = None
    if isinstance(quantizer, Quantizer) and quantizer.has_classifiers:
        guess = quantizer.encode(frames, num_passes=0)
        first_guess_error = relative_error(quantizer, frames, guess)
    return Evaluation(
        num_frames=len(frames),
        relative_error=squared / spread,
        first_guess_error=first_guess_error,
        errors_without=without.tolist(),
        entropies=normalized_entropies(usage).tolist(),
        usage=usage.cpu(),
        correlations=(gram / norms / norms.unsqueeze(1)).cpu(),
    )


def relative_error(quantizer: CodebookQuantizer, frames: Tensor, codes: Tensor) -> float:
    """Returns |x - x_hat|^2 / |x - mean|^2 of frames (F, D) and their codes (F, N)."""
    decoded = quantizer.normalize(quantizer.decode(codes))
    target = quantizer.normalize(frames.to(decoded.device))
    return float((target - decoded).double().square().sum()) / _spread(target)


def spread_out(rows: Tensor, count: int) -> Tensor:
    """Returns at most `count` rows of a tensor, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count) * len(rows) // count]


def _products(
    target: Tensor, codes: Tensor, contributions: Tensor, means: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Inner products of residuals and of what codebooks contribute, summed over the frames.

    Args:
        target: (F, D) normalised frames.
        codes: (F, N) int64.
        contributions: (N, K, D) float64 centres, less the mean of those chosen.
        means: (N, D) float64, these means.

    Returns:
        The squared error; (N, N) float64 products of the contributions with each other; (N,)
        float64 of them with the residuals.
    """
    num_codebooks, _, dim = contributions.shape
    books = torch.arange(num_codebooks, device=codes.device)
    size = max(_BLOCK_ELEMENTS // (num_codebooks * dim), 1)
    squared = 0.0
    gram, coupling = means.new_zeros(num_codebooks, num_codebooks), means.new_zeros(num_codebooks)
    for block, own in zip(target.split(size), codes.split(size), strict=True):
        chosen = contributions[books, own]  # (B, N, D)
        residual = block - means.sum(dim=0) - chosen.sum(dim=1)
        flat = chosen.transpose(0, 1).flatten(1)
        gram += flat @ flat.t()
        coupling += flat @ residual.flatten()
        squared += float(residual.square().sum())
    return squared, gram, coupling


def _spread(target: Tensor) -> float:
    """Returns the sum of |x - mean|^2, never 0."""
    return max(float((target - target.mean(dim=0)).double().square().sum()), 1e-20)
