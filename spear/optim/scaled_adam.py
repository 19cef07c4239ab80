"""ScaledAdam: Adam whose update of a tensor is proportional to the tensor's own size.

Each update is Adam's, multiplied by the root mean square of the parameter; the size itself is
learned as one more number per tensor; gradients are clipped by the median of past norms. The
algorithm is that of icefall's `zipformer/optim.py` (Yao et al., Zipformer, arXiv 2310.11230,
section 3.5), agreeing with it number by number.

Parameters of one shape and one age are updated together as one stack. The state belongs to each
parameter by its name and begins at the first step in which the parameter has a gradient: a
parameter that was frozen starts as fresh as it would have in a new run.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from spear.optim.clipping import MedianClipper
from spear.optim.stack import ParameterStack, ParameterState

NamedParameter: TypeAlias = tuple[str, Tensor]


class ScaledAdam(Optimizer):
    """Implements ScaledAdam with batched updates.

    A parameter whose `grad` is None, or that does not require a gradient, is left out of a step:
    neither its value nor its state changes.

    Args:
        params: (name, parameter) pairs, parameters, or groups: dicts with "named_params" or
            "params", optionally "lr", "lr_scale" (multiplies the rate) and any option below.
        lr: Learning rate; of the order of 0.045, far above Adam's.
        clipping_scale: Clip each group's gradient at this many medians of past norms; None: never.
        betas: Decay of the momentum and of the mean squared gradient.
        scalar_lr_scale: Factor on the rate for parameters of one element, and for learning sizes.
        eps: Added to the root mean squared gradient.
        param_min_rms: A tensor counts as at least this large, and is not shrunk below it.
        param_max_rms: A tensor is not grown above this root mean square by the learned size.
        scalar_max: Largest absolute value of a parameter of one element.
        size_update_period: Steps between two updates of the sizes.
        clipping_update_period: Steps between two clipping thresholds, and length of their window.

    Raises:
        ValueError: Two parameters share a name, or an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[NamedParameter] | Iterable[dict[str, Any]],
        lr: float = 3e-2,
        clipping_scale: float | None = 2.0,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        scalar_lr_scale: float = 0.1,
        eps: float = 1.0e-8,
        param_min_rms: float = 1.0e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_update_period: int = 100,
    ) -> None:
        defaults = {
            "lr": lr,
            "clipping_scale": clipping_scale,
            "betas": tuple(betas),
            "scalar_lr_scale": scalar_lr_scale,
            "eps": eps,
            "param_min_rms": param_min_rms,
            "param_max_rms": param_max_rms,
            "scalar_max": scalar_max,
            "size_update_period": size_update_period,
            "clipping_update_period": clipping_update_period,
        }
        _check_options(defaults)
        super().__init__(_named_groups(list(params), lr), defaults)
        _check_names([name for group in self.param_groups for name in group["names"]])
        self._clippers = [_new_clipper(group) for group in self.param_groups]
        self._stacks: list[list[ParameterStack]] = [[] for _ in self.param_groups]
        self._active: list[list[bool]] = [[] for _ in self.param_groups]
        self._resting: dict[str, ParameterState] = {}
        devices = [group["params"][0].device for group in self.param_groups]
        self._norms = [torch.zeros((), device=device) for device in devices]
        self._factors = [torch.ones((), device=device) for device in devices]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: Recomputes the loss, as for any torch optimiser; rarely of use.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            active = [p.requires_grad and p.grad is not None for p in group["params"]]
            if any(active):
                self._step_group(index, group, active)
        return loss

    @property
    def grad_norm_tensor(self) -> Tensor:
        """() float32: norm of the last step's gradient, each tensor scaled by its own size."""
        return torch.stack(self._norms).square().sum().sqrt()

    @property
    def clip_factor_tensor(self) -> Tensor:
        """() float32: the smallest factor that a group's last gradient was scaled with."""
        return torch.stack(self._factors).min()

    @property
    def clipped_fraction_tensor(self) -> Tensor:
        """() float32: share of clipped steps since the last threshold, of the worst group."""
        return torch.stack([clipper.clipped_fraction for clipper in self._clippers]).max()

    def state_dict(self) -> dict[str, Any]:
        """Returns plain dicts, numbers and tensors; `torch.load(weights_only=True)` reads them.

        After `load_state_dict` the same gradients give the same bits as without the break.
        """
        return {
            "parameters": {name: state.to_dict() for name, state in self._states().items()},
            "clipping": [clipper.state_dict() for clipper in self._clippers],
            "lrs": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`, matching parameters by name.

        Raises:
            ValueError: A name is unknown here, a shape differs, or the number of groups does.
        """
        parameters = {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        _check_loadable(state_dict, parameters, len(self.param_groups))
        self._resting = {
            name: ParameterState.from_dict(state, parameters[name].device)
            for name, state in state_dict["parameters"].items()
        }
        self._stacks = [[] for _ in self.param_groups]
        self._active = [[] for _ in self.param_groups]
        for clipper, state in zip(self._clippers, state_dict["clipping"], strict=True):
            clipper.load_state_dict(state)
        for group, lr in zip(self.param_groups, state_dict["lrs"], strict=True):
            group["lr"] = lr

    def _step_group(self, index: int, group: dict[str, Any], active: list[bool]) -> None:
        if active != self._active[index]:
            self._restack(index, group, active)
        stacks = self._stacks[index]
        grads = [stack.gradients() for stack in stacks]
        squares = [
            stack.scaled_square(grad, group["scalar_lr_scale"])
            for stack, grad in zip(stacks, grads, strict=True)
        ]
        norm = torch.stack(squares).sum().sqrt()
        factor = self._clippers[index].scale(norm)
        self._norms[index], self._factors[index] = norm, factor
        for stack, grad in zip(stacks, grads, strict=True):
            # A factor of 0 means a norm that is not finite: 0 * inf must become 0, not NaN.
            clipped = (grad * factor).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            stack.update(clipped, group)

    def _restack(self, index: int, group: dict[str, Any], active: list[bool]) -> None:
        """Forms new stacks of the active parameters by shape, type and age.

        When a parameter takes part for the first time, past norms say nothing about the new sum:
        the group's clipping begins anew too, as in a fresh run.
        """
        for stack in self._stacks[index]:
            self._resting.update(stack.split())
        by_key: dict[tuple[Any, ...], list[tuple[str, Tensor, ParameterState]]] = {}
        has_new = False
        for name, parameter, is_active in zip(group["names"], group["params"], active, strict=True):
            if not is_active:
                continue
            state = self._resting.pop(name, None)
            if state is None:
                has_new = True
                state = ParameterState.start(parameter, group["size_update_period"])
            key = (str(parameter.dtype), *parameter.shape)
            by_key.setdefault((key, state.step), []).append((name, parameter, state))
        self._stacks[index] = [ParameterStack(by_key[key]) for key in sorted(by_key)]
        self._active[index] = active
        if has_new:
            self._clippers[index] = _new_clipper(group)

    def _states(self) -> dict[str, ParameterState]:
        states = dict(self._resting)
        for stacks in self._stacks:
            for stack in stacks:
                states.update(stack.split())
        return states


def _named_groups(params: Sequence[Any], lr: float) -> list[dict[str, Any]]:
    """Turns every accepted form into groups with "params", "names" and "lr"."""
    if params and not isinstance(params[0], dict):
        params = [{"named_params" if isinstance(params[0], tuple) else "params": params}]
    groups = []
    unnamed = 0
    for given in params:
        group = dict(given)
        pairs = group.pop("named_params", None)
        if pairs is None:
            tensors = list(group.pop("params"))
            pairs = [(f"parameter.{unnamed + i}", tensor) for i, tensor in enumerate(tensors)]
            unnamed += len(tensors)
        pairs = list(pairs)
        if not pairs:
            continue
        group["names"] = [name for name, _ in pairs]
        group["params"] = [parameter for _, parameter in pairs]
        group["lr"] = group.get("lr", lr) * group.pop("lr_scale", 1.0)
        groups.append(group)
    return groups


def _new_clipper(group: dict[str, Any]) -> MedianClipper:
    return MedianClipper(
        group["clipping_scale"], group["clipping_update_period"], group["params"][0].device
    )


def _check_options(options: dict[str, Any]) -> None:
    beta1, beta2 = options["betas"]
    if not (0.0 <= beta1 < 1.0 and 0.0 < beta2 < 1.0):
        raise ValueError(f"betas must lie in [0, 1), not {options['betas']}")
    for name in ("size_update_period", "clipping_update_period"):
        if options[name] < 1:
            raise ValueError(f"{name} must be at least 1, not {options[name]}")


def _check_names(names: list[str]) -> None:
    if len(set(names)) != len(names):
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two parameters have the same name: {', '.join(doubled[:5])}")


def _check_loadable(state: dict[str, Any], parameters: dict[str, Tensor], num_groups: int) -> None:
    if len(state["clipping"]) != num_groups:
        raise ValueError(
            f"the saved optimiser has {len(state['clipping'])} groups, this one {num_groups}"
        )
    for name, saved in state["parameters"].items():
        if name not in parameters:
            raise ValueError(f"the saved optimiser has a parameter {name!r} that is not here")
        if saved["delta"].shape != parameters[name].shape:
            raise ValueError(
                f"the saved state of {name!r} has shape {tuple(saved['delta'].shape)}, "
                f"the parameter {tuple(parameters[name].shape)}"
            )
