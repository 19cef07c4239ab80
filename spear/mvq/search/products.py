"""Inner products of all centres: what the search looks up instead of computing.

The squared error of a frame x under codes z is, apart from |x|^2, one number for every chosen code
(`unary`, a matrix product per frame) and one for every pair of chosen codes (`cross`, computed
once): |x - sum_n c_n|^2 = |x|^2 + sum_n (|c_n|^2 - 2 <x, c_n>) + sum_{n < m} 2 <c_n, c_m>.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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

    def unary(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (B, N * K): |c|^2 - 2 <x - offset, c> for every centre c; frames are (B, D)."""
        products = inner_products(frames - self.offset, self.centered, dtype)
        return products.mul_(-2.0).add_(self.squared_norms)

    def scores(self, unary: Tensor, codes: Tensor) -> Tensor:
        """Returns (B, N * K): what every code costs in its codebook, the others as in `codes`.

        Only differences within a codebook mean something. `unary` is (B, N * K), `codes` (B, N).
        """
        coupling = F.embedding_bag(codes + self.first_rows, self.cross, mode="sum")
        return coupling.add_(unary)


def inner_products(x: Tensor, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns (B, M) float32: <x, y> of every row of x (B, D) with every row of y (M, D).

    With another `dtype` both are rounded to it first, and summed up in float32: on a GPU by its
    tensor cores (torch 2.8 or newer), elsewhere with the same result and no gain.
    """
    if dtype == torch.float32:
        return x @ y.t()
    x, y = x.to(dtype), y.to(dtype)
    if x.device.type == "cuda":
        return torch.mm(x, y.t(), out_dtype=torch.float32)
    return x.float() @ y.float().t()
