"""The running average of the weights, in float64 from the first step to the last.

The average of all contributions since the start of a run is kept, as in icefall. From the
averages at two points a < b the average over the steps between them follows exactly:

    mean(a, b] = mean_b + (mean_b - mean_a) * n_a / (n_b - n_a)

with n the number of contributions. The factor is large late in a run, so a rounding to float32
anywhere on the way would be amplified: nothing here is ever narrower than float64.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spear.errors import CheckpointError


class RunningAverage:
    """Averages a model's floating-point state; other state is taken as it is.

    Args:
        model: Its state names what is averaged; values are kept on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.num_updates = 0
        self.values = {name: _widen(value) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the model's present weights to the average."""
        self.num_updates += 1
        for name, value in model.state_dict().items():
            mean = self.values[name]
            if mean.is_floating_point():
                mean.add_(value.to(mean) - mean, alpha=1.0 / self.num_updates)
            else:
                mean.copy_(value)

    def load(self, values: Mapping[str, Tensor], num_updates: int) -> None:
        """Continues from stored values.

        Raises:
            CheckpointError: A tensor is missing, or floating-point but not float64.
        """
        if set(values) != set(self.values):
            wrong = sorted(set(values) ^ set(self.values))
            raise CheckpointError(f"the stored average and the model differ in {wrong[:5]}")
        check_wide(values)
        for name, value in values.items():
            self.values[name].copy_(value)
        self.num_updates = num_updates


def mean_between(
    start: Mapping[str, Tensor], num_start: int, end: Mapping[str, Tensor], num_end: int
) -> dict[str, Tensor]:
    """Returns the average over the contributions num_start + 1 to num_end, in float64.

    Args:
        start: Average over the first `num_start`; ignored when that is 0.
        num_start: Contributions in `start`.
        end: Average over the first `num_end`.
        num_end: Contributions in `end`; more than `num_start`.
    """
    if num_end <= num_start:
        raise ValueError(f"no contribution between {num_start} and {num_end}")
    factor = num_start / (num_end - num_start)
    return {
        name: value + (value - start[name]) * factor
        if value.is_floating_point() and num_start > 0
        else value.clone()
        for name, value in end.items()
    }


def check_wide(values: Mapping[str, Tensor], path: Path | None = None) -> None:
    """Raises CheckpointError if an average was stored in anything narrower than float64."""
    narrow = [n for n, v in values.items() if v.is_floating_point() and v.dtype != torch.float64]
    if narrow:
        raise CheckpointError(
            f"{path or 'the stored average'}: {narrow[0]} is {values[narrow[0]].dtype}, not "
            "float64: averages between checkpoints would be wrong"
        )


def _widen(value: Tensor) -> Tensor:
    dtype = torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True)
