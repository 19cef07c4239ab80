"""The random-projection quantiser of BEST-RQ (Chiu et al., ICML 2022, arXiv 2202.01855).

A frame, normalised per channel, is projected by a frozen random matrix to a few dimensions; its
code is the nearest of K random unit vectors by cosine. Nothing is trained. Several independent ones
give several codebooks, as in the multi-softmax variant of Google USM (arXiv 2303.01037).

Such codes have no decoding. The one here is fitted afterwards, on training frames: the vectors that
in least squares add up best to the frames. With one codebook these are the means of the frames of
each code. It makes the relative error comparable with that of other quantisers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spear.errors import ConfigError
from spear.mvq.quantizers.codebooks import Assign, CodebookQuantizer

# The fit holds a square table of so many rows: 2 GB.
_MAX_CODES = 1 << 14


class RandomProjectionQuantizer(CodebookQuantizer):
    """Turns frames (*, D) into tokens (*, N) by N random projections.

    Args:
        centers: (N, K, D) float32, the fitted decoding; N from 1 to 64, K from 2 to 8192 and
            N * K at most 16,384.
        projection: (N, P, D) float32.
        directions: (N, K, P) float32, unit vectors.
        channel_mean: (D,) subtracted from frames; zeros by default.
        channel_scale: (D,) that frames are divided by; ones by default.
        metadata: Text about where the quantiser comes from.

    Raises:
        ConfigError: Shapes do not fit, or a number is out of range.
    """

    kind = "random-projection"
    id_prefix = b"random-projection\n"
    tensor_names = CodebookQuantizer.tensor_names | {"projection", "directions"}
    codebook_size_range = (2, 8192)

    projection: Tensor
    directions: Tensor

    def __init__(
        self,
        centers: Tensor,
        *,
        projection: Tensor,
        directions: Tensor,
        channel_mean: Tensor | None = None,
        channel_scale: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            centers, channel_mean=channel_mean, channel_scale=channel_scale, metadata=metadata
        )
        projected_dim = projection.shape[1] if projection.dim() == 3 else 0
        books, size, dim = centers.shape
        self._add_tensor("projection", projection, (books, projected_dim, dim), centers.device)
        self._add_tensor("directions", directions, (books, size, projected_dim), centers.device)

    @classmethod
    def check_sizes(cls, num_codebooks: int, codebook_size: int) -> None:
        """See `CodebookQuantizer.check_sizes`."""
        super().check_sizes(num_codebooks, codebook_size)
        if num_codebooks * codebook_size > _MAX_CODES:
            raise ConfigError(
                f"{num_codebooks} codebooks of {codebook_size} are more than {_MAX_CODES:,} codes: "
                "their decoding cannot be fitted; choose fewer codebooks or a smaller "
                "codebook_size"
            )

    def _assigner(self) -> Assign:
        def assign(padded: Tensor, count: int) -> Tensor:
            codes = []
            for projection, directions in zip(self.projection, self.directions, strict=True):
                # The length of what is projected changes no order, so it need not be 1.
                codes.append((padded @ projection.t() @ directions.t()).argmax(dim=1))
            return torch.stack(codes, dim=1)[:count]

        return assign


def random_projections(
    dim: int, num_codebooks: int, codebook_size: int, projected_dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws projections and codes as the paper does.

    Args:
        dim: D, channels of a frame.
        num_codebooks: N.
        codebook_size: K.
        projected_dim: P, dimensions after the projection; 16 in the paper.
        generator: A CPU generator.

    Returns:
        (N, P, D) by Xavier's uniform initialisation, and (N, K, P) standard normal vectors brought
        to length 1; float32.
    """
    bound = (6 / (dim + projected_dim)) ** 0.5
    uniform = torch.rand(num_codebooks, projected_dim, dim, generator=generator)
    normal = torch.randn(num_codebooks, codebook_size, projected_dim, generator=generator)
    return bound * (2 * uniform - 1), torch.nn.functional.normalize(normal, dim=2)
