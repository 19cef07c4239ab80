"""From and to state dicts of the Python package `multi_quantization` (0.1.1), the authors' own.

Its scales are exp(10 * parameter), for centres and for the frames that its classifiers see; they
are multiplied in on import, and 1 in what is exported.

That package knows centres and classifiers and no channel statistics. Statistics with one scale for
all channels are multiplied in. A scale of its own for every channel cannot be: the package searches
for the centres that are nearest in the space of its frames, and stretching channels changes which
those are. Then its frames must be normalised by whoever calls it, as the authors do.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from spear.errors import CheckpointError, ConfigError

_SCALE_SPEED = 10.0
_REQUIRED = ("centers", "to_logits.weight", "to_logits.bias", "centers_scale", "logits_scale")
_NAME = "id_buf"
_NAME_LENGTH = 8
# With 8 codes or fewer its search leaves out the shortlist that its merging needs, and fails.
_MIN_CODEBOOK_SIZE = 16


def import_state(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Translates a state dict of the package.

    Args:
        state_dict: `centers` (N, K, D), `to_logits.weight` (N * K, D), `to_logits.bias` (N * K,),
            scalars `centers_scale` and `logits_scale`, and perhaps `id_buf`, its name as bytes.

    Returns:
        Tensors by the names of `Quantizer`'s arguments, and metadata that says where they are from.

    Raises:
        CheckpointError: Keys are missing or unknown, or shapes do not fit.
    """
    missing = sorted(set(_REQUIRED) - set(state_dict))
    unknown = sorted(set(state_dict) - {*_REQUIRED, _NAME})
    if missing or unknown:
        raise CheckpointError(
            f"not a multi_quantization state dict: missing keys {missing}, unknown keys {unknown}"
        )
    centers = state_dict["centers"]
    weight, bias = state_dict["to_logits.weight"], state_dict["to_logits.bias"]
    codes = centers.shape[0] * centers.shape[1] if centers.dim() == 3 else -1
    if tuple(weight.shape) != (codes, centers.shape[-1]) or tuple(bias.shape) != (codes,):
        raise CheckpointError(
            f"multi_quantization state dict: centers {tuple(centers.shape)} do not fit classifiers "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    metadata = {"source": "multi_quantization"}
    if _NAME in state_dict:
        metadata["source_id"] = bytes(state_dict[_NAME].tolist()).decode("ascii", "replace")
    tensors = {
        "centers": centers.float() * _factor(state_dict["centers_scale"]),
        "classifier_weight": weight.float() * _factor(state_dict["logits_scale"]),
        "classifier_bias": bias.float(),
    }
    return tensors, metadata


def export_state(
    tensors: Mapping[str, Tensor], names: tuple[str, str], *, of_normalized_frames: bool
) -> dict[str, Tensor]:
    """Translates to the package; the inverse of `import_state`.

    Args:
        tensors: A quantiser's, by the names of `Quantizer`'s arguments.
        names: What the package shall call it, if that has eight characters; else the first eight
            of the second.
        of_normalized_frames: The package will be given frames that are normalised already.

    Returns:
        `centers` (N, K, D), `to_logits.weight` (N * K, D), `to_logits.bias` (N * K,), the scalars
        `centers_scale` and `logits_scale` (0: a factor of 1), all float32 on the CPU, and
        `id_buf` (8,) uint8.

    Raises:
        ConfigError: The package cannot hold such a quantiser.
    """
    exact = {key: tensor.double().cpu() for key, tensor in tensors.items()}
    centers, mean, scale = exact["centers"], exact["channel_mean"], exact["channel_scale"]
    _check_sizes(*centers.shape[:2])
    weight, bias = exact["classifier_weight"], exact["classifier_bias"]
    if len(weight) == 0:
        weight, bias = _nearest_centers(centers)
    if not of_normalized_frames:
        _check_scale(scale)
        # x = scale * sum_n c_n + mean, every codebook with its share of the mean; and the logits of
        # (x - mean) / scale.
        centers = scale[0] * centers + mean / len(centers)
        weight = weight / scale[0]
        bias = bias - weight @ mean
    is_name = len(names[0]) == _NAME_LENGTH and names[0].isascii()
    name = names[0] if is_name else names[1][:_NAME_LENGTH]
    return {
        "centers": centers.float(),
        "to_logits.weight": weight.float(),
        "to_logits.bias": bias.float(),
        "centers_scale": torch.zeros(()),
        "logits_scale": torch.zeros(()),
        _NAME: torch.tensor(list(name.encode("ascii")), dtype=torch.uint8),
    }


def _factor(parameter: Tensor) -> Tensor:
    return (parameter.float() * _SCALE_SPEED).exp()


def _nearest_centers(centers: Tensor) -> tuple[Tensor, Tensor]:
    """Makes classifiers, which the package needs, for a quantiser (N, K, D) without.

    They choose the nearest centre of each codebook with the others at their means:
    |x - o_n - c|^2 = const - 2 (<x, c> - <o_n, c> - |c|^2 / 2).

    Returns:
        Weights (N * K, D) and biases (N * K,).
    """
    means = centers.mean(dim=1)
    others = means.sum(dim=0) - means  # (N, D): o_n
    bias = -torch.einsum("nd,nkd->nk", others, centers) - centers.square().sum(dim=2) / 2
    return centers.flatten(0, 1), bias.flatten()


def _check_sizes(num_codebooks: int, codebook_size: int) -> None:
    is_odd = any(size & (size - 1) for size in (num_codebooks, codebook_size))
    if is_odd or codebook_size < _MIN_CODEBOOK_SIZE:
        raise ConfigError(
            f"multi_quantization wants powers of two, and codebooks of {_MIN_CODEBOOK_SIZE} codes "
            f"or more: {num_codebooks} codebooks of {codebook_size} codes cannot be exported"
        )


def _check_scale(scale: Tensor) -> None:
    if bool((scale != scale[0]).any()):
        raise ConfigError(
            f"multi_quantization has no channel statistics, and channels with scales from "
            f"{float(scale.min()):.3g} to {float(scale.max()):.3g} cannot be folded into a search "
            "for the nearest centres: export with of_normalized_frames=True, and give the package "
            "quantizer.normalize(frames)"
        )
