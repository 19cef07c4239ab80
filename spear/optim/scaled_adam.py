"""ScaledAdam: Adam whose update of a tensor is proportional to the tensor's own size.

Each update is Adam's, multiplied by the root mean square of the parameter; the size itself is
learned as one more number per tensor; gradients are clipped by the median of past norms. The
algorithm is that of icefall's `zipformer/optim.py` (Yao et al., Zipformer, arXiv 2310.11230,
section 3.5), agreeing with it number by number.

The state belongs to each parameter by its name and begins at the first step in which the parameter
has a gradient: a parameter that was frozen starts as fresh as it would have in a new run.

A step is two passes over the elements: three sums of each tensor (`add_sums`), which give norms,
clipping and sizes, all of them small; then the update. Parameters may be shards (FSDP2), and then
the sums of all are added up over the processes in one message.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from spear.optim.active import ActiveParameters
from spear.optim.clipping import MedianClipper
from spear.optim.shards import RowSums, local
from spear.optim.state import ParameterState

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
        self._forget_layout()
        self._resting: dict[str, ParameterState] = {}
        devices = [local(group["params"][0]).device for group in self.param_groups]
        self._norms = [torch.zeros((), device=device) for device in devices]
        self._factors = [torch.ones((), device=device) for device in devices]
        self._plain_norm = torch.zeros((), device=devices[0])
        self._happened = torch.ones((), dtype=torch.bool, device=devices[0])

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
        indexes = [index for index in range(len(self.param_groups)) if self._lay_out(index)]
        if not indexes:
            return loss
        sums = self._global_sums(indexes)
        for index, own in zip(indexes, sums, strict=True):
            self._norms[index] = self._laid_out(index).sizes.grad_norm(
                own, self.param_groups[index]
            )
        good = torch.stack([self._norms[index] for index in indexes]).isfinite().all()
        if is_good is not None:
            good = good & is_good
        self._happened = good
        self._plain_norm = torch.cat(list(sums))[:, 0].sum().sqrt().float()
        for index, own in zip(indexes, sums, strict=True):
            factor = self._clippers[index].scale(self._norms[index], good)
            self._laid_out(index).update(own, factor, good, self.param_groups[index])
            self._factors[index] = factor
        return loss

    @property
    def grad_norm_tensor(self) -> Tensor:
        """() float32: norm of the last step's gradient, each tensor scaled by its own size."""
        return torch.stack(self._norms).square().sum().sqrt()

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
        return torch.stack(self._factors).min()

    @property
    def clipped_fraction_tensor(self) -> Tensor:
        """() float32: share of clipped steps since the last threshold, of the worst group."""
        return torch.stack([clipper.clipped_fraction for clipper in self._clippers]).max()

    def state_dict(self) -> dict[str, Any]:
        """Returns plain dicts, numbers and tensors; `torch.load(weights_only=True)` reads them.

        Of sharded parameters the two large tensors are DTensors. After `load_state_dict` the same
        gradients give the same bits as without the break.
        """
        parameters = self._parameters()
        return {
            "parameters": {
                name: state.to_dict(parameters[name]) for name, state in self._states().items()
            },
            "clipping": [clipper.state_dict() for clipper in self._clippers],
            "lrs": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`, matching parameters by name.

        Raises:
            ValueError: A name is unknown here, a shape differs, or the number of groups does.
        """
        parameters = self._parameters()
        _check_loadable(state_dict, parameters, len(self.param_groups))
        self._resting = {
            name: ParameterState.from_dict(state, parameters[name])
            for name, state in state_dict["parameters"].items()
        }
        self._forget_layout()
        for clipper, state in zip(self._clippers, state_dict["clipping"], strict=True):
            clipper.load_state_dict(state)
        for group, lr in zip(self.param_groups, state_dict["lrs"], strict=True):
            group["lr"] = lr

    def _parameters(self) -> dict[str, Tensor]:
        """Returns all parameters by their names."""
        return {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }

    def _forget_layout(self) -> None:
        """Lets every group be laid out anew at the next step."""
        self._active: list[list[bool]] = [[] for _ in self.param_groups]
        self._groups: list[ActiveParameters | None] = [None for _ in self.param_groups]
        self._reduce: RowSums | None = None
        self._reduced: list[int] = []

    def _lay_out(self, index: int) -> bool:
        """Lays out those parameters of a group that take part in this step; tells whether any do.

        When a parameter takes part for the first time, past norms say nothing about the new sum:
        the group's clipping begins anew too, as in a fresh run.
        """
        group = self.param_groups[index]
        active = [p.requires_grad and p.grad is not None for p in group["params"]]
        if active == self._active[index] or not any(active):
            return any(active)
        laid_out = self._groups[index]
        if laid_out is not None:
            self._resting.update(laid_out.states())
        period = group["size_update_period"]
        names = list(compress(group["names"], active))
        parameters = list(compress(group["params"], active))
        if not self._resting.keys() >= set(names):
            self._clippers[index] = _new_clipper(group)
        states = []
        for name, parameter in zip(names, parameters, strict=True):
            resting = self._resting.pop(name, None)
            states.append(resting or ParameterState.start(parameter, period))
        self._groups[index] = ActiveParameters(names, parameters, states, period)
        self._active[index] = active
        self._reduce = None
        return True

    def _laid_out(self, index: int) -> ActiveParameters:
        group = self._groups[index]
        assert group is not None
        return group

    def _global_sums(self, indexes: list[int]) -> Sequence[Tensor]:
        """Returns the groups' sums over all processes; sharded parameters take one message."""
        groups = [self._laid_out(index) for index in indexes]
        if self._reduce is None or self._reduced != indexes:
            self._reduce = RowSums([p for group in groups for p in group.parameters])
            self._reduced = indexes
        table = self._reduce(torch.cat([group.sums() for group in groups]))
        return table.split([len(group.names) for group in groups])

    def _states(self) -> dict[str, ParameterState]:
        states = dict(self._resting)
        for group in self._groups:
            states.update({} if group is None else group.states())
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
        group["clipping_scale"], group["clipping_update_period"], local(group["params"][0]).device
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
