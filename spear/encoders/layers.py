"""The layers of an encoder by their numbers: 0 is what the front end made, L the last layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spear.errors import ConfigError
from spear.zipformer.modules.resampling import match_channels


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuses numbers that no layer has.

    Raises:
        ConfigError: A number is below 0 or above `num_layers`.
    """
    unknown = [layer for layer in layers if not 0 <= layer <= num_layers]
    if unknown:
        raise ConfigError(
            f"layers {unknown} do not exist: the model has 0 (the front end) to {num_layers}"
        )


def uniform_layers(output: Mapping[str, Any], num_channels: int) -> list[Tensor]:
    """Returns all layers of an encoder's output in one shape, as weighted sums of them need.

    Stacks of a model may differ in width; what a narrow one lacks is zero, as between stacks.

    Args:
        output: As `SpearEncoder.forward` returns it.
        num_channels: D of the result; the width of the model.

    Returns:
        One (B, T, D) float at 50 Hz for the front end and each layer.
    """
    layers = (output["embeddings"], *output["hidden_states"])
    return [match_channels(layer, num_channels) for layer in layers]
