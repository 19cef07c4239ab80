"""ScaledAdam: Adam whose update of a tensor is proportional to the tensor's own size.

Each update is Adam's, multiplied by the root mean square of the parameter; the size itself is
learned as one more number per tensor; gradients are clipped by the median of past norms. The
algorithm is that of icefall's `zipformer/optim.py` (Yao et al., Zipformer, arXiv 2310.11230,
section 3.5), agreeing with it number by number.

The state belongs to each parameter by its name and begins at the first step in which the parameter
has a gradient: a parameter that was frozen starts as fresh as it would have in a new run.

A step is two passes over the elements: three sums of each tensor, which give norms, clipping
(`clipping`) and sizes (`sizes`), all of them a few numbers per tensor; then the update. Both passes
exist twice: `stack` in torch's operations, `loops` compiled for CPUs. Parameters may be shards
(FSDP2, `shards`); the sums of all are then added up over the processes in one message.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from spear.optim.group import GroupState
from spear.optim.shards import add_up, shard_groups

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
        self._groups = [GroupState(group) for group in self.param_groups]
        self._shard_groups = shard_groups([p for group in self._groups for p in group.parameters])
        device = self._groups[0].device
        self._plain_norm = torch.zeros((), device=device)
        self._happened = torch.ones((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, is_good: Tensor | None = None
    ) -> float | None:
        """Updates every parameter that has a gradient.

        A step whose gradient is not finite, in any group, does not happen: no parameter, no state
        and no count changes by a bit. The decision is taken on the device.

        Args:
            closure: Recomputes the loss, as for any torch optimiser; rarely of use.
            is_good: () bool on the parameters' device; where False, the step does not happen. The
                same on every process. None stands for True.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._groups:
            group.lay_out()
        if not any(group.is_active for group in self._groups):
            return loss
        table = torch.cat([group.sums() for group in self._groups])
        add_up(table, self._shard_groups)
        sums = table.split([len(group.parameters) for group in self._groups])
        active = [pair for pair in zip(self._groups, sums, strict=True) if pair[0].is_active]
        for group, own in active:
            group.norm = group.sizes.grad_norm(own, group.options)
        good = torch.stack([group.norm for group, _ in active]).isfinite().all()
        self._happened = good if is_good is None else good & is_good
        self._plain_norm = table[:, 0].sum().sqrt().float()
        for group, own in active:
            group.update(own, self._happened)
        return loss

    @property
    def grad_norm_tensor(self) -> Tensor:
        """() float32: norm of the last step's gradient, each tensor scaled by its own size."""
        return torch.stack([group.norm for group in self._groups]).square().sum().sqrt()

    @property
    def plain_grad_norm_tensor(self) -> Tensor:
        """() float32: norm of the last step's gradient as it came, over all processes."""
        return self._plain_norm

    @property
    def happened_tensor(self) -> Tensor:
        """() bool: whether the last step happened: its gradient was finite, and it was good."""
        return self._happened

    @property
    def clip_factor_tensor(self) -> Tensor:
        """() float32: the smallest factor that a group's last gradient was scaled with."""
        return torch.stack([group.factor for group in self._groups]).min()

    def state_dict(self) -> dict[str, Any]:
        """Returns plain dicts, numbers and tensors; `torch.load(weights_only=True)` reads them.

        Of sharded parameters the two large tensors are DTensors. After `load_state_dict` the same
        gradients give the same bits as without the break.
        """
        parameters: dict[str, Any] = {}
        for group in self._groups:
            parameters |= group.state_dict()
        return {
            "parameters": parameters,
            "clipping": [group.clipper.state_dict() for group in self._groups],
            "lrs": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`, matching parameters by name.

        Raises:
            ValueError: A name is unknown here, a shape differs, or the number of groups does.
        """
        _check_loadable(state_dict, self._groups)
        for group, clipping, lr in zip(
            self._groups, state_dict["clipping"], state_dict["lrs"], strict=True
        ):
            group.load_state_dict(state_dict["parameters"])
            group.clipper.load_state_dict(clipping)
            group.options["lr"] = lr


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


def _check_loadable(state: dict[str, Any], groups: Sequence[GroupState]) -> None:
    if len(state["clipping"]) != len(groups):
        raise ValueError(
            f"the saved optimiser has {len(state['clipping'])} groups, this one {len(groups)}"
        )
    shapes = {
        name: parameter.shape
        for group in groups
        for name, parameter in zip(group.options["names"], group.parameters, strict=True)
    }
    for name, saved in state["parameters"].items():
        if name not in shapes:
            raise ValueError(f"the saved optimiser has a parameter {name!r} that is not here")
        if saved["delta"].shape != shapes[name]:
            raise ValueError(
                f"the saved state of {name!r} has shape {tuple(saved['delta'].shape)}, "
                f"the parameter {tuple(shapes[name])}"
            )
