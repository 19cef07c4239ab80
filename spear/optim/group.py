"""One group of ScaledAdam's parameters: what is remembered of them, and their part in a step.

A parameter takes part in a step while it requires a gradient and has one. What is remembered of it
begins with its first step, as fresh as in a new run, and rests while it takes no part.
"""

from collections.abc import Iterator
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from spear.optim.clipping import MedianClipper
from spear.optim.shards import local, local_part, sharded_like
from spear.optim.sizes import Sizes
from spear.optim.stack import Moments, ParameterStack, group_by_shape
from spear.system.numba_functions import is_installed


class GroupState:
    """The state of a group of n parameters.

    Args:
        options: The group as torch's `Optimizer` keeps it: "params", "names" and options.

    Attributes:
        is_active: Whether any parameter takes part in the present step.
        norm: () float32, of the last step's gradient as the update weighs it.
        factor: () float32, by which that gradient was clipped.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.parameters: list[Tensor] = options["params"]
        self.device = local(self.parameters[0]).device
        self.norm = torch.zeros((), device=self.device)
        self.factor = torch.ones((), device=self.device)
        self.is_active = False
        self._moments: dict[int, Moments] = {}
        self._laid_out: list[bool] = []
        self._passes: list[Any] = []
        self._new_clipper()
        self._start_anew()

    def lay_out(self) -> None:
        """Finds the parameters that take part in this step, and how they are updated.

        When one does so for the first time, past norms say nothing about the new sum: the group's
        clipping begins anew, too.
        """
        active = [p.requires_grad and p.grad is not None for p in self.parameters]
        self.is_active = any(active)
        if not self.is_active or active == self._laid_out:
            return
        rows = list(compress(range(len(active)), active))
        new = [row for row in rows if row not in self._moments]
        for row in new:
            zeros = torch.zeros(local(self.parameters[row]).shape, device=self.device)
            self._moments[row] = Moments(zeros, zeros.clone())
        if new:
            self._new_clipper()
        self.sizes.takes_part = torch.tensor(active, device=self.device)
        self._passes = list(self._make_passes(rows))
        self._laid_out = active

    def sums(self) -> Tensor:
        """Returns (n, 3) float64: sums of g^2, p g and p^2 over each parameter's elements here."""
        sums = torch.zeros(len(self.parameters), 3, dtype=torch.float64, device=self.device)
        for each in self._passes if self.is_active else ():
            each.add_sums(sums)
        return sums

    def update(self, sums: Tensor, is_good: Tensor) -> None:
        """Does one step.

        Args:
            sums: As `sums`, over all processes.
            is_good: () bool; where False, nothing changes.
        """
        self.factor = self.clipper.scale(self.norm, is_good)
        coefficients = self.sizes.advance(sums, self.factor, is_good, self.options)
        for each in self._passes:
            each.update(coefficients, self.options)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Returns copies by the name of each parameter that ever took part.

        `exp_avg_sq` and `delta` as in `Moments`, DTensors where the parameter is one; the rest as
        in `Sizes`.
        """
        states = {}
        for row, moments in sorted(self._moments.items()):
            parameter = self.parameters[row]
            names = Sizes.NAMES if parameter.numel() > 1 else Sizes.NAMES[:1]
            state = {name: getattr(self.sizes, name)[row].clone() for name in names}
            for name, value in moments._asdict().items():
                state[name] = sharded_like(value.clone(), parameter)
            states[self.options["names"][row]] = state
        return states

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Continues from a `state_dict`, of whole tensors or of DTensors laid out as here."""
        self._start_anew()
        for row, name in enumerate(self.options["names"]):
            if name not in states:
                continue
            state, parameter = states[name], self.parameters[row]
            for key in Sizes.NAMES:
                if key in state:
                    getattr(self.sizes, key)[row] = state[key]
            parts = (local_part(state[key], parameter) for key in Moments._fields)
            self._moments[row] = Moments(*(part.to(self.device, copy=True) for part in parts))

    def _start_anew(self) -> None:
        sizes = [parameter.numel() for parameter in self.parameters]
        self.sizes = Sizes(sizes, self.options["size_update_period"], self.device)
        self._moments, self._laid_out, self._passes = {}, [], []

    def _new_clipper(self) -> None:
        self.clipper = MedianClipper(
            self.options["clipping_scale"], self.options["clipping_update_period"], self.device
        )

    def _make_passes(self, rows: list[int]) -> Iterator[Any]:
        """Yields what updates the parameters of some rows: compiled loops where these serve."""
        if is_installed():
            from spear.optim import loops

            fitting = [row for row in rows if loops.fits(self.parameters[row])]
            rows = [row for row in rows if row not in fitting]
            if fitting:
                yield loops.CompiledPasses(*self._of(fitting))
        for places in group_by_shape([self.parameters[row] for row in rows]):
            some = [rows[place] for place in places]
            stack = ParameterStack(*self._of(some))
            for row, *moments in zip(some, *stack.moments, strict=True):
                self._moments[row] = Moments(*moments)
            yield stack

    def _of(self, rows: list[int]) -> tuple[list[int], list[Tensor], list[Moments]]:
        return rows, [self.parameters[r] for r in rows], [self._moments[r] for r in rows]
