"""Whether a step may reach the weights: decided on the device, read by the host a step later.

A loss or gradient that is not finite on any rank, or (where it is asked for) a loss far above the
recent ones, makes all ranks skip the step: the optimiser takes the verdict as a tensor and changes
nothing. So no step waits for the device. The host reads the verdict while the next step is under
way, writes down the cuts of a skipped one and stops a run that skips too many in a row.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spear.system.distributed import Ranks
from spear.training.health.health import BadBatches
from spear.training.position import Position

WINDOW = 128
"""Losses of good steps whose median a spike is measured against."""
MIN_LOSSES = 32
"""Good steps before which nothing counts as a spike."""


class SpikeFinder:
    """Says whether a loss is far above the median of the recent good ones, without a host read.

    Args:
        factor: A loss above `factor` medians is a spike; 0 finds none.
        device: Where the losses are.
    """

    def __init__(self, factor: float, device: torch.device) -> None:
        self.factor = factor
        self.losses = torch.full((WINDOW,), float("nan"), device=device)

    def is_fine(self, loss: Tensor) -> Tensor:
        """Returns () bool: whether a loss, () over all ranks, is no spike."""
        if self.factor <= 0:
            return torch.ones((), dtype=torch.bool, device=self.losses.device)
        is_early = self.losses.isfinite().sum() < MIN_LOSSES
        return is_early | (loss <= self.factor * self.losses.nanmedian())

    def note(self, loss: Tensor, is_good: Tensor) -> None:
        """Adds the loss of a step to the window, if the step was good."""
        if self.factor > 0:
            shifted = torch.cat([self.losses[1:], loss.reshape(1)])
            self.losses = torch.where(is_good, shifted, self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Returns the window, as JSON."""
        return {"losses": self.losses[self.losses.isfinite()].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the window."""
        self.losses.fill_(float("nan"))
        losses = torch.tensor(state["losses"], dtype=self.losses.dtype)
        if len(losses):
            self.losses[-len(losses) :] = losses.to(self.losses)


class _Pending(NamedTuple):
    """A verdict on its way to the host, and what belongs to it."""

    flags: Tensor
    """(2,) on the host once `ready`: all ranks' verdict, whether this rank's loss is finite."""
    ready: Any
    position: Position
    ids: list[str]


class Verdicts:
    """Reaches the verdict on each step, and acts on it one step later.

    Args:
        ranks: The processes of the run.
        bad_batches: Where skipped steps are noted.
        spike_factor: See `SpikeFinder`.
    """

    def __init__(self, ranks: Ranks, bad_batches: BadBatches, spike_factor: float) -> None:
        self.ranks = ranks
        self.bad_batches = bad_batches
        self.spikes = SpikeFinder(spike_factor, ranks.device)
        self._pending: _Pending | None = None
        self._loss = self._whole = torch.zeros((), device=ranks.device)

    def judge(self, loss: Tensor) -> Tensor:
        """Returns the verdict of all ranks on the loss of a step, () bool on the device.

        The verdict on the step before is read here, when this one's work is under way and no
        weight has changed yet.

        Args:
            loss: () this rank's loss; its mean over ranks is the loss of the step.

        Raises:
            SpearError: Too many steps in a row were bad.
        """
        self._loss = loss.detach().float()
        self._whole = self._loss
        if self.spikes.factor > 0:
            self._whole = self.ranks.all_reduce(self._loss.clone()) / self.ranks.world_size
        verdict = (self._loss.isfinite() & self.spikes.is_fine(self._whole)).to(torch.uint8)
        is_good = self.ranks.all_reduce(verdict, "min").bool()
        self.read()
        return is_good

    def settle(self, happened: Tensor, position: Position, ids: list[str]) -> None:
        """Notes whether the step that was judged last happened, without a look.

        Args:
            happened: () bool, the same on all ranks: the loss was good and the gradient finite.
            position: Before the step.
            ids: Cuts of this rank.
        """
        self.spikes.note(self._whole, happened)
        self._pending = self._send(torch.stack([happened, self._loss.isfinite()]), position, ids)

    def read(self) -> None:
        """Reads the verdict that is under way; every rank calls this at the same steps.

        Raises:
            SpearError: Too many steps in a row were bad.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.ready is not None:
            pending.ready.synchronize()
        is_good, loss_is_finite = pending.flags.tolist()
        if is_good:
            self.bad_batches.good()
        else:
            self.bad_batches.bad(pending.position, pending.ids, bool(loss_is_finite))

    def _send(self, flags: Tensor, position: Position, ids: list[str]) -> _Pending:
        """Starts the copy to the host; on a GPU the present work goes on meanwhile."""
        if flags.device.type != "cuda":
            return _Pending(flags, None, position, ids)
        there = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        there.copy_(flags, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return _Pending(there, ready, position, ids)
