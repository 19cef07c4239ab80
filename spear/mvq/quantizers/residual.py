"""Residual vector quantisation: every codebook is k-means on what the ones before it left.

The quantiser of SoundStream (Zeghidour et al., arXiv 2107.03312), and the natural rival of the
multi-codebook one: as many bytes a frame, but an order among the codebooks. The first carry most of
the signal, the last ones a residual that a student can hardly predict, and the codes are chosen
greedily, not jointly.
"""

import torch
from torch import Tensor

from spear.mvq.quantizers.codebooks import Assign, CodebookQuantizer
from spear.mvq.quantizers.kmeans import NearestCenter, lloyd
from spear.system.progress import progress

_BLOCK_FRAMES = 4096


class ResidualQuantizer(CodebookQuantizer):
    """Turns frames (*, D) into tokens (*, N), one stage after the other.

    Stage n takes the centre nearest to what the stages before it left, the first of equals. The
    arguments are `CodebookQuantizer`'s, with N from 1 to 64 and K from 2 to 256.
    """

    kind = "residual"
    id_prefix = b"residual\n"

    def _assigner(self) -> Assign:
        stages = [(NearestCenter(centers), centers) for centers in self.centers]

        def assign(padded: Tensor, count: int) -> Tensor:
            residual, codes = padded, []
            for nearest, centers in stages:
                codes.append(nearest(residual))
                residual = residual - centers[codes[-1]]
            return torch.stack(codes, dim=1)[:count]

        return assign


def residual_centers(
    points: Tensor,
    num_codebooks: int,
    codebook_size: int,
    generator: torch.Generator,
    num_iterations: int,
) -> Tensor:
    """Trains the stages in turn.

    Args:
        points: (F, D) float32, F at least K; only the residual is left in it.
        num_codebooks: N.
        codebook_size: K.
        generator: A CPU generator.
        num_iterations: Most passes of each stage's k-means.

    Returns:
        (N, K, D) float32.
    """
    stages = []
    for _ in range(num_codebooks):
        centers = lloyd(
            points, codebook_size, generator, progress(range(num_iterations), "k-means")
        )
        nearest = NearestCenter(centers)
        for block in points.split(_BLOCK_FRAMES):
            block.sub_(centers[nearest(block)])  # a view: the points themselves change
        stages.append(centers)
    return torch.stack(stages)
