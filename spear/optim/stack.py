"""One stack of ScaledAdam: parameters of equal shape and age, and their state, in single tensors.

A stack's tensors have a leading dimension over its parameters, so one kernel updates them all.
Outside of a stack each parameter's state is a `ParameterState` of its own: stacks are formed
from these and split into them again, which is all that saving, freezing and loading need.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class ParameterState:
    """What ScaledAdam remembers of one parameter of shape (*S); all tensors float32.

    The last three tensors do not exist for a parameter of one element, whose size is not learned.
    """

    step: int
    """Updates so far."""
    exp_avg_sq: Tensor
    """(*S): decaying mean of the squared gradient."""
    delta: Tensor
    """(*S): the update with momentum."""
    param_rms: Tensor | None = None
    """(): root mean square of the parameter when the size was last updated."""
    scale_grads: Tensor | None = None
    """(P,): gradients with respect to the log of the size since then."""
    scale_exp_avg_sq: Tensor | None = None
    """(): decaying mean of their squares."""

    @classmethod
    def start(cls, parameter: Tensor, size_update_period: int) -> "ParameterState":
        """Returns the state before the first update."""
        zeros = torch.zeros_like(parameter, dtype=torch.float32)
        state = cls(step=0, exp_avg_sq=zeros, delta=zeros.clone())
        if parameter.numel() > 1:
            state.param_rms = _rms(parameter.detach().unsqueeze(0))[0]
            state.scale_grads = zeros.new_zeros(size_update_period)
            state.scale_exp_avg_sq = zeros.new_zeros(())
        return state

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields that are set; tensors are copied, free of their stack."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in content.items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], device: torch.device) -> "ParameterState":
        """Inverse of `to_dict`; the tensors are copied to `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, copy=True) if isinstance(value, Tensor) else value
            for name, value in content.items()
        }
        return cls(**moved)


class ParameterStack:
    """Updates n parameters of one shape together.

    Args:
        members: Name, parameter and state of each; shapes, types and steps agree.
    """

    def __init__(self, members: list[tuple[str, Tensor, ParameterState]]) -> None:
        self.names = [name for name, _, _ in members]
        self.parameters = [parameter for _, parameter, _ in members]
        states = [state for _, _, state in members]
        self.step = states[0].step
        self.is_scalar = self.parameters[0].numel() == 1
        self.exp_avg_sq = torch.stack([state.exp_avg_sq for state in states])
        self.delta = torch.stack([state.delta for state in states])
        if not self.is_scalar:
            self.param_rms = _stack([state.param_rms for state in states])
            self.scale_grads = _stack([state.scale_grads for state in states])
            self.scale_exp_avg_sq = _stack([state.scale_exp_avg_sq for state in states])

    def split(self) -> dict[str, ParameterState]:
        """Returns the state of each parameter by its name, as views of the stack."""
        states = {
            name: ParameterState(self.step, self.exp_avg_sq[i], self.delta[i])
            for i, name in enumerate(self.names)
        }
        if not self.is_scalar:
            for i, state in enumerate(states.values()):
                state.param_rms = self.param_rms[i]
                state.scale_grads = self.scale_grads[i]
                state.scale_exp_avg_sq = self.scale_exp_avg_sq[i]
        return states

    def gradients(self) -> Tensor:
        """Returns the gradients as one float32 tensor (n, *S); only a stack of one is a view."""
        grads = [parameter.grad for parameter in self.parameters]
        return _stack(grads).float()

    def scaled_square(self, grad: Tensor, scalar_lr_scale: float) -> Tensor:
        """Returns the squared norm, (), of the gradient (n, *S) as the update will weigh it."""
        if self.is_scalar:
            return grad.square().sum() * scalar_lr_scale**2
        return (grad * self._per_tensor(self.param_rms)).square().sum()

    def update(self, grad: Tensor, group: dict[str, Any]) -> None:
        """Does one step with gradient (n, *S) and the options of `group`."""
        delta = self._adam_direction(grad, group)
        if not self.is_scalar:
            values = _stack([parameter.detach() for parameter in self.parameters])
            delta = self._scale(delta, values, grad, group)
        beta1 = group["betas"][0]
        # No bias correction: the first ten or so updates are smaller, which is welcome.
        self.delta.mul_(beta1).add_(delta, alpha=1 - beta1)
        torch._foreach_add_(self.parameters, list(self.delta.unbind(0)))
        if self.is_scalar:
            limit = group["scalar_max"]
            torch._foreach_clamp_min_(self.parameters, -limit)
            torch._foreach_clamp_max_(self.parameters, limit)
        self.step += 1

    def _adam_direction(self, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's update without momentum: the gradient over its root mean square, times -lr."""
        beta2 = group["betas"][1]
        self.exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        bias_correction = 1 - beta2 ** (self.step + 1)
        mean_square = self.exp_avg_sq
        if bias_correction < 0.99:  # beyond that it changes nothing worth a kernel
            mean_square = mean_square * (1.0 / bias_correction)
        denominator = mean_square.sqrt().add_(group["eps"])
        lr = group["lr"] * (group["scalar_lr_scale"] if self.is_scalar else 1.0)
        return (grad * -lr).div_(denominator)

    def _scale(self, delta: Tensor, values: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """Makes the update proportional to each tensor's size; at times adds that of the size."""
        period = group["size_update_period"]
        phase = self.step % period
        self.scale_grads[:, phase] = (values * grad).flatten(1).sum(dim=1)
        if phase == period - 1:
            self.param_rms.copy_(_rms(values))
        delta.mul_(self._per_tensor(self.param_rms.clamp(min=group["param_min_rms"])))
        if phase == period - 1 and self.step > 0:
            delta.addcmul_(values, self._per_tensor(self._size_step(group)))
        return delta

    def _size_step(self, group: dict[str, Any]) -> Tensor:
        """Returns the relative change of each tensor's size, (n,): Adam on the log of the size."""
        period = group["size_update_period"]
        beta2 = group["betas"][1] ** period  # this happens once in `period` steps
        self.scale_exp_avg_sq.mul_(beta2).add_(
            self.scale_grads.square().mean(dim=1), alpha=1 - beta2
        )
        bias_correction = 1 - beta2 ** ((self.step + 1) // period)
        lr = group["lr"] * group["scalar_lr_scale"]
        denominator = self.scale_exp_avg_sq.sqrt() + group["eps"]
        change = -lr * bias_correction**0.5 * self.scale_grads.sum(dim=1) / denominator
        change = change.masked_fill(self.param_rms < group["param_min_rms"], 0.0)
        change = change.clamp(min=-0.1, max=0.1)
        headroom = (group["param_max_rms"] - self.param_rms) / self.param_rms
        return torch.minimum(change, headroom)

    def _per_tensor(self, numbers: Tensor) -> Tensor:
        """Gives (n,) the trailing dimensions of the stack, so that it broadcasts."""
        return numbers.view(-1, *[1] * (self.delta.dim() - 1))


def _stack(tensors: list[Any]) -> Tensor:
    """Stacks tensors; one alone is only viewed, which spares a copy of the largest matrices."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _rms(values: Tensor) -> Tensor:
    """Returns the root mean square of each tensor of a stack: (n, *S) to (n,) float32."""
    return values.float().square().flatten(1).mean(dim=1).sqrt()
