"""What training needs to know of coded frames: co-occurrence of codes and sums of frames.

With the codes given, the best centres minimise sum_f |x_f - sum_n c[n, z_fn]|^2, which is one
linear system of size N * K: (Z'Z) C = Z'X, with Z the (F, N * K) matrix of chosen codes. Z'Z counts
how often two codes are chosen together and Z'X sums the frames of every code; both are accumulated
over mini-batches, so that any number of frames fits. The same sums give the classifiers that guess
codes from a frame.

The sums are exact: frames are rounded to a grid so coarse that float64 holds every sum of them and
of their products without an error (16,384 frames of values up to 8 are rounded to 1/65,536). So
they come out the same in whatever order blocks, threads, processes or a GPU's atomic additions
contribute, and a training by several processes is that by one, bit for bit.
"""

import math

import torch
from torch import Tensor

from spear.system.distributed import Ranks

_BLOCK_FRAMES = 4096


_EXACT_BITS = 52
"""Sums of multiples of 1 stay exact in float64 up to 2 to this power, with one bit to spare."""


class CodeStatistics:
    """Sufficient statistics of (frames, codes) pairs.

    Args:
        num_codebooks: N.
        codebook_size: K.
        dim: D.
        largest_value: No value of a frame is further from 0.
        max_frames: No more frames are accumulated.
        device: Where to compute.

    Attributes:
        counts: (N * K, N * K) float64; the diagonal says how often each code was chosen.
        sums: (N * K, D) float64: sum of the frames that chose each code.
        scatter: (D, D) float64: sum of x x'.
        num_frames: () float64: weight of the frames accumulated.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        *,
        largest_value: float,
        max_frames: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_codebooks, self.codebook_size, self.dim = num_codebooks, codebook_size, dim
        free_bits = _EXACT_BITS - math.ceil(math.log2(max_frames))
        # |x| < 2^v on a grid of 2^-b takes v + b bits, a product of two twice as many.
        self._grid = 2.0 ** (free_bits // 2 - math.ceil(math.log2(largest_value)))
        num_codes = num_codebooks * codebook_size
        kind = {"dtype": torch.float64, "device": device}
        self.counts = torch.zeros(num_codes, num_codes, **kind)  # type: ignore[call-overload]
        self.sums = torch.zeros(num_codes, dim, **kind)  # type: ignore[call-overload]
        self.scatter = torch.zeros(dim, dim, **kind)  # type: ignore[call-overload]
        self.num_frames = torch.zeros((), **kind)  # type: ignore[call-overload]

    def accumulate(self, frames: Tensor, codes: Tensor) -> None:
        """Adds frames (B, D) with their codes (B, N)."""
        first_rows = torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size
        flat_counts = self.counts.view(-1)
        for start in range(0, len(frames), _BLOCK_FRAMES):
            block = frames[start : start + _BLOCK_FRAMES].double()
            rows = codes[start : start + _BLOCK_FRAMES].long() + first_rows
            pairs = (rows.unsqueeze(2) * len(self.counts) + rows.unsqueeze(1)).view(-1)
            flat_counts.scatter_add_(0, pairs, flat_counts.new_ones(()).expand(len(pairs)))
            block = (block * self._grid).round_().div_(self._grid)
            for codebook in range(self.num_codebooks):
                self.sums.index_add_(0, rows[:, codebook], block)
            self.scatter.addmm_(block.t(), block)
        self.num_frames += len(frames)

    def tensors(self) -> dict[str, Tensor]:
        """Returns by their names, themselves: counts, sums, scatter and num_frames."""
        return {name: getattr(self, name) for name in ("counts", "sums", "scatter", "num_frames")}

    def all_reduce(self, ranks: Ranks) -> None:
        """Adds up what the processes accumulated, each from its own frames."""
        for tensor in self.tensors().values():
            ranks.all_reduce(tensor)

    def absorb(self, newer: "CodeStatistics", memory: float) -> None:
        """Weakens what was accumulated so far, by codes that have since changed, and adds to it."""
        for name, tensor in self.tensors().items():
            tensor.mul_(memory).add_(newer.tensors()[name])

    def clear(self) -> None:
        """Forgets all frames."""
        for tensor in self.tensors().values():
            tensor.zero_()

    def spread(self) -> float:
        """Returns sum |x - mean|^2 of the frames, never 0."""
        total = self.sums[: self.codebook_size].sum(dim=0)
        squares = self.scatter.diagonal().sum() - total.square().sum() / self.num_frames.clamp(
            min=1
        )
        return max(float(squares), 1e-20)

    def usage(self) -> Tensor:
        """Returns (N, K) float64: how often each code was chosen."""
        return self.counts.diagonal().view(self.num_codebooks, self.codebook_size).clone()

    def least_squares(
        self, previous: Tensor | None = None, *, ridge: float = 1.0, inertia: float = 0.0
    ) -> Tensor:
        """The centres of least squared error for the accumulated codes.

        Minimises sum |x - sum c|^2 + ridge * sum |c|^2 + inertia * sum |c - previous|^2. Both
        weights are counted in frames. Without any, the system is singular: a constant may move
        from one codebook to another, and unused codes are free. The ridge keeps centres that few
        frames chose from fitting these frames alone.

        Args:
            previous: (N, K, D) centres that `inertia` holds on to; unused codes stay there.
            ridge: Pull of every centre to zero; above 0 unless inertia is.
            inertia: Pull of every centre to its previous place.

        Returns:
            (N, K, D) float32.

        Raises:
            ValueError: Neither weight is positive, or inertia is given without `previous`.
        """
        if ridge + inertia <= 0 or (inertia > 0 and previous is None):
            raise ValueError("least_squares needs ridge > 0, or inertia > 0 and previous centres")
        system = self.counts.clone()
        system.diagonal().add_(ridge + inertia)
        target = self.sums
        if previous is not None and inertia > 0:
            target = target + inertia * previous.double().view_as(self.sums)
        solution = torch.cholesky_solve(target, torch.linalg.cholesky(system))
        return solution.float().view(self.num_codebooks, self.codebook_size, self.dim)

    def classifiers(self, prior: float = 1.0, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Linear classifiers that guess each codebook's code from the frame.

        The classes of a codebook are taken as Gaussians around their means with one common
        covariance (linear discriminant analysis): with S the scatter within classes and m the
        mean of class k, logit_k = <S^-1 m, x> - <S^-1 m, m> / 2 + log p(k). This knows which
        directions the other codebooks will explain, and it is exact algebra, not training.

        Args:
            prior: Frames added to each class at zero, so that rare classes are not trusted.
            floor: Share of the mean variance added to every direction of S.

        Returns:
            Weights (N * K, D) and biases (N * K,), float32.
        """
        counts = self.usage() + prior
        means = self.sums.view(self.num_codebooks, self.codebook_size, self.dim)
        means = means / counts.unsqueeze(2)
        shares = counts / counts.sum(dim=1, keepdim=True)
        total = self.scatter / self.num_frames.clamp(min=1)
        weights, biases = torch.empty_like(means), torch.empty_like(shares)
        for codebook, (mean, share) in enumerate(zip(means, shares, strict=True)):
            within = total - (mean * share.unsqueeze(1)).t() @ mean
            level = within.diagonal().mean().clamp(min=1e-12)
            within.diagonal().add_(floor * level)
            # Positive definite: the prior makes the part taken away smaller than the whole.
            factor = torch.linalg.cholesky(within)
            weights[codebook] = torch.cholesky_solve(mean.t(), factor).t()
            biases[codebook] = share.log() - (weights[codebook] * mean).sum(dim=1) / 2
        return weights.view(-1, self.dim).float(), biases.view(-1).float()
