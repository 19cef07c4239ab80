"""Frames and quantisers that the tests of this folder share."""

import torch
from torch import Tensor

from spear.mvq import Quantizer


def correlated_frames(
    num_frames: int, dim: int, seed: int = 0, cluster_distance: float = 2.0
) -> Tensor:
    """(F, D) clustered frames with correlated channels of unequal variance and a large mean."""
    fixed = torch.Generator().manual_seed(99)
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=fixed) * torch.linspace(0, -3, dim).exp()
    clusters = cluster_distance * torch.randn(32, dim, generator=fixed)
    latent = torch.randn(num_frames, dim, generator=generator)
    latent = latent + clusters[torch.randint(32, (num_frames,), generator=generator)]
    return latent @ mixing.t() / dim**0.5 + 5 * torch.randn(dim, generator=fixed)


def random_centers(num_codebooks: int, codebook_size: int, dim: int, seed: int = 0) -> Tensor:
    """(N, K, D) centres that are far from orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_codebooks, codebook_size, dim)
    return torch.randn(shape, generator=generator) / num_codebooks**0.5


def relative_error(quantizer: Quantizer, x: Tensor, codes: Tensor) -> float:
    """The naive definition, in the normalised space."""
    target = quantizer.normalize(x).double()
    approximation = quantizer.normalize(quantizer.decode(codes)).double()
    spread = (target - target.mean(dim=0)).square().sum()
    return float((target - approximation).square().sum() / spread)
