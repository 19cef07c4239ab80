"""How often codes occur and how evenly: the one count of tokens, whoever counts.

Counts are (N, K): how often each of the K codes of each of N codebooks occurs.
"""

import math

import torch
from torch import Tensor


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Returns (N, K) int64: how often each code occurs in codes (F, N), integers below K.

    The counts are on the codes' device, and nothing waits for it.
    """
    num_frames, num_codebooks = codes.shape
    counts = torch.zeros(num_codebooks, codebook_size, dtype=torch.int64, device=codes.device)
    ones = counts.new_ones(()).expand(num_codebooks, num_frames)
    return counts.scatter_add_(1, codes.t().long(), ones)


def entropies(counts: Tensor) -> Tensor:
    """Returns (N,) float64, in nats: those of the frequencies that counts (N, K) give; 0 for none.

    They are the cross-entropies of always answering with the frequencies.
    """
    exact = counts.double()
    shares = exact / exact.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.special.xlogy(shares, shares).sum(dim=1).abs()  # a minus, but no -0


def normalized_entropies(counts: Tensor) -> Tensor:
    """Returns (N,) float64: the entropy of counts (N, K) over log K; 1 where all are alike."""
    return entropies(counts) / math.log(counts.shape[1])
