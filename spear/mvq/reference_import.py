"""Reads quantisers of the Python package `multi_quantization` (0.1.1), the authors' own.

Its scales are exp(10 * parameter), for centres and for the frames that its classifiers see; they
are multiplied in here, so that the imported quantiser needs none.
"""

from collections.abc import Mapping

from torch import Tensor

from spear.errors import CheckpointError

_SCALE_SPEED = 10.0
_REQUIRED = ("centers", "to_logits.weight", "to_logits.bias", "centers_scale", "logits_scale")
_OPTIONAL = ("id_buf",)


def convert_state(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Translates a state dict.

    Args:
        state_dict: `centers` (N, K, D), `to_logits.weight` (N * K, D), `to_logits.bias` (N * K,),
            scalars `centers_scale` and `logits_scale`, and perhaps `id_buf`, its name as bytes.

    Returns:
        Tensors by the names of `Quantizer`'s arguments, and metadata that says where they are from.

    Raises:
        CheckpointError: Keys are missing or unknown, or shapes do not fit.
    """
    missing = sorted(set(_REQUIRED) - set(state_dict))
    unknown = sorted(set(state_dict) - set(_REQUIRED) - set(_OPTIONAL))
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
    if "id_buf" in state_dict:
        metadata["source_id"] = bytes(state_dict["id_buf"].tolist()).decode("ascii", "replace")
    tensors = {
        "centers": centers.float() * _scale(state_dict["centers_scale"]),
        "classifier_weight": weight.float() * _scale(state_dict["logits_scale"]),
        "classifier_bias": bias.float(),
    }
    return tensors, metadata


def _scale(parameter: Tensor) -> Tensor:
    return (parameter.float() * _SCALE_SPEED).exp()
