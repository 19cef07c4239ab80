"""Writes quantisers as state dicts of the package `multi_quantization` (0.1.1), the authors' own.

That package knows centres and classifiers and no channel statistics. Statistics with one scale for
all channels are multiplied in. A scale of its own for every channel cannot be: the package searches
for the centres that are nearest in the space of its frames, and stretching channels changes which
those are. Then its frames must be normalised by whoever calls it, as the authors do.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spear.errors import ConfigError

if TYPE_CHECKING:
    from spear.mvq.quantizers.quantizer import Quantizer

_ID_LENGTH = 8
# With 8 codes or fewer its search leaves out the shortlist that its merging needs, and fails.
_MIN_CODEBOOK_SIZE = 16


def export_state(
    quantizer: "Quantizer", *, of_normalized_frames: bool = False
) -> dict[str, Tensor]:
    """Translates a quantiser; the inverse of `reference_import.convert_state`.

    Args:
        quantizer: What to write.
        of_normalized_frames: The package will be given frames that are normalised already.

    Returns:
        `centers` (N, K, D), `to_logits.weight` (N * K, D), `to_logits.bias` (N * K,), the scalars
        `centers_scale` and `logits_scale` (0: a factor of 1), all float32 on the CPU, and
        `id_buf` (8,) uint8: the name the quantiser came with, or the first digits of its id.

    Raises:
        ConfigError: The package cannot hold such a quantiser.
    """
    _check(quantizer, of_normalized_frames)
    centers = quantizer.centers.double().cpu()
    weight, bias = _classifiers(quantizer)
    if not of_normalized_frames:
        mean = quantizer.channel_mean.double().cpu()
        scale = quantizer.channel_scale.double().cpu()[0]
        # x = scale * sum_n c_n + mean, every codebook with its share of the mean; and the logits of
        # (x - mean) / scale.
        centers = scale * centers + mean / quantizer.num_codebooks
        weight = weight / scale
        bias = bias - weight @ mean
    return {
        "centers": centers.float(),
        "to_logits.weight": weight.float(),
        "to_logits.bias": bias.float(),
        "centers_scale": torch.zeros(()),
        "logits_scale": torch.zeros(()),
        "id_buf": torch.tensor(list(_name(quantizer)), dtype=torch.uint8),
    }


def _classifiers(quantizer: "Quantizer") -> tuple[Tensor, Tensor]:
    """Returns weights (N * K, D) and biases (N * K,), float64, for normalised frames.

    A quantiser without classifiers gets those that choose the nearest centre of each codebook with
    the others at their means: |x - o_n - c|^2 = const - 2 (<x, c> - <o_n, c> - |c|^2 / 2).
    """
    if quantizer.has_classifiers:
        weight, bias = quantizer.classifier_weight, quantizer.classifier_bias
        return weight.double().cpu(), bias.double().cpu()
    centers = quantizer.centers.double().cpu()
    means = centers.mean(dim=1)
    others = means.sum(dim=0) - means  # (N, D): o_n
    bias = -torch.einsum("nd,nkd->nk", others, centers) - centers.square().sum(dim=2) / 2
    return centers.flatten(0, 1), bias.flatten()


def _check(quantizer: "Quantizer", of_normalized_frames: bool) -> None:
    sizes = (quantizer.num_codebooks, quantizer.codebook_size)
    if any(size & (size - 1) for size in sizes) or sizes[1] < _MIN_CODEBOOK_SIZE:
        raise ConfigError(
            f"multi_quantization wants powers of two, and codebooks of {_MIN_CODEBOOK_SIZE} codes "
            f"or more: {sizes[0]} codebooks of {sizes[1]} codes cannot be exported"
        )
    scale = quantizer.channel_scale
    if not of_normalized_frames and bool((scale != scale[0]).any()):
        raise ConfigError(
            f"multi_quantization has no channel statistics, and channels with scales from "
            f"{float(scale.min()):.3g} to {float(scale.max()):.3g} cannot be folded into a search "
            "for the nearest centres: export with of_normalized_frames=True, and give the package "
            "quantizer.normalize(frames)"
        )


def _name(quantizer: "Quantizer") -> bytes:
    """Returns the eight characters by which the package tells quantisers apart."""
    source = quantizer.metadata.get("source_id", "")
    is_name = len(source) == _ID_LENGTH and source.isascii()
    return (source if is_name else quantizer.id[:_ID_LENGTH]).encode("ascii")
