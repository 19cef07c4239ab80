"""What ScaledAdam remembers of one parameter, apart from how it is laid out for speed.

Saving, freezing and loading deal in these; a step deals in stacks and vectors that are formed from
them and split into them again.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from spear.optim.shards import local, local_part, sharded_like


@dataclass
class ParameterState:
    """The state of one parameter of shape (*S); of a sharded parameter, this process's shard.

    The last three do not exist for a parameter of one element, whose size is not learned.
    """

    step: Tensor
    """() int64: updates so far."""
    exp_avg_sq: Tensor
    """(*S) float32: decaying mean of the squared gradient."""
    delta: Tensor
    """(*S) float32: the update with momentum."""
    param_rms: Tensor | None = None
    """() float32: root mean square of the parameter when the size was last updated."""
    scale_grads: Tensor | None = None
    """(P,) float32: gradients with respect to the log of the size since then."""
    scale_exp_avg_sq: Tensor | None = None
    """() float32: decaying mean of their squares."""

    @classmethod
    def start(cls, parameter: Tensor, period: int) -> "ParameterState":
        """Returns the state before the first update; the first one finds `param_rms`."""
        own = local(parameter)
        zeros = torch.zeros(own.shape, dtype=torch.float32, device=own.device)
        step = torch.zeros((), dtype=torch.int64, device=own.device)
        state = cls(step, zeros, zeros.clone())
        if parameter.numel() > 1:
            state.param_rms = zeros.new_zeros(())
            state.scale_grads = zeros.new_zeros(period)
            state.scale_exp_avg_sq = zeros.new_zeros(())
        return state

    def to_dict(self, parameter: Tensor) -> dict[str, Tensor]:
        """Returns the fields that are set, copied; of a sharded parameter as DTensors."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        copies = {name: value.clone() for name, value in content.items() if value is not None}
        for name in ("exp_avg_sq", "delta"):
            copies[name] = sharded_like(copies[name], parameter)
        return copies

    @classmethod
    def from_dict(cls, content: dict[str, Any], parameter: Tensor) -> "ParameterState":
        """Inverse of `to_dict`, from whole tensors or from DTensors laid out as the parameter."""
        device = local(parameter).device
        # In older checkpoints the step is a plain number.
        moved = {
            name: torch.as_tensor(value).to(device, copy=True)
            for name, value in content.items()
            if name not in ("exp_avg_sq", "delta")
        }
        for name in ("exp_avg_sq", "delta"):
            moved[name] = local_part(content[name], parameter).to(device, copy=True)
        return cls(**moved)
