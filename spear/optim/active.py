"""The parameters of one group that take part in a step, laid out for speed.

A parameter takes part while it requires a gradient and has one. When that changes, the states are
taken out by name and the group is laid out anew.
"""

from typing import Any

import torch
from torch import Tensor

from spear.optim.shards import local
from spear.optim.sizes import Sizes
from spear.optim.stack import ParameterStack, form_stacks
from spear.optim.state import ParameterState
from spear.system.numba_functions import is_installed


class ActiveParameters:
    """Some parameters with their state.

    Args:
        names: Of the parameters.
        parameters: In an order that is the same on every process.
        states: Theirs.
        period: Steps between two updates of the sizes.
    """

    def __init__(
        self,
        names: list[str],
        parameters: list[Tensor],
        states: list[ParameterState],
        period: int,
    ) -> None:
        self.names, self.parameters = names, parameters
        self.device = local(parameters[0]).device
        self.sizes = Sizes([p.numel() for p in parameters], period, self.device)
        for row, state in enumerate(states):
            self._take(row, state)
        self._stacks = list(form_stacks(parameters, states))
        self._workers = _workers(self._stacks)

    def sums(self) -> Tensor:
        """Returns (n, 3) float64: sums of g^2, p g and p^2 over each parameter's elements here."""
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=self.device)
        for worker in self._workers:
            worker.add_sums(sums)
        return sums

    def update(
        self, sums: Tensor, factor: Tensor, is_good: Tensor, options: dict[str, Any]
    ) -> None:
        """Does one step.

        Args:
            sums: As `sums`, over all processes.
            factor: () float32, by which the gradients are clipped.
            is_good: () bool; where False, nothing changes.
            options: Of the parameter group.
        """
        coefficients = self.sizes.advance(sums, factor, is_good, options)
        for worker in self._workers:
            worker.update(coefficients, factor, is_good, options["betas"], options["eps"])

    def states(self) -> dict[str, ParameterState]:
        """Returns the state of each parameter by its name, as views."""
        sizes = self.sizes
        elements = {
            row: (stack.exp_avg_sq[place], stack.delta[place])
            for stack in self._stacks
            for place, row in enumerate(stack.rows)
        }
        states = {}
        for row, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            if row not in elements:  # no element of it is here
                nothing = torch.zeros(local(parameter).shape, device=self.device)
                elements[row] = (nothing, nothing)
            state = ParameterState(sizes.step[row], *elements[row])
            if parameter.numel() > 1:
                state.param_rms = sizes.param_rms[row]
                state.scale_grads = sizes.scale_grads[row]
                state.scale_exp_avg_sq = sizes.scale_exp_avg_sq[row]
            states[name] = state
        return states

    def _take(self, row: int, state: ParameterState) -> None:
        """Copies the numbers of one parameter into the vectors."""
        self.sizes.step[row] = state.step
        for name in ("param_rms", "scale_grads", "scale_exp_avg_sq"):
            number = getattr(state, name)
            if number is not None:
                getattr(self.sizes, name)[row] = number


def _workers(stacks: list[ParameterStack]) -> list[Any]:
    """Returns what does the work of the stacks: compiled loops where these serve."""
    if not is_installed():
        return list(stacks)
    from spear.optim.loops import StackLoops

    fitting = [stack for stack in stacks if StackLoops.fits(stack)]
    others: list[Any] = [stack for stack in stacks if stack not in fitting]
    return [StackLoops(fitting), *others] if fitting else others
