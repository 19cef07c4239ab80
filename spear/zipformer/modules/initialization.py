"""Layers whose initial weights are scaled, so that modules begin with small contributions.

A residual branch that starts small leaves the path open; ScaledAdam learns the scale from there.
The biases are uniform within a tenth of the scale (icefall, scaling.py).
"""

import torch
from torch import nn


def scale_initial(layer: nn.Linear | nn.Conv1d | nn.Conv2d, initial_scale: float) -> None:
    """Multiplies the initial weight of a layer and redraws its bias in proportion."""
    with torch.no_grad():
        layer.weight *= initial_scale
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -0.1 * initial_scale, 0.1 * initial_scale)


def scaled_linear(
    in_features: int, out_features: int, initial_scale: float, bias: bool = True
) -> nn.Linear:
    """Returns a linear layer that begins at `initial_scale` times the usual size."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    scale_initial(layer, initial_scale)
    return layer
