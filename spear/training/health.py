"""The health of a run: non-finite numbers, and requests to stop, agreed by all ranks.

One small all-reduce after each backward pass carries everything that the ranks must agree on, and
one read of it is the only time that a step waits for the device. A step with a non-finite loss or
gradient is skipped *before* the optimizer sees it, and its cuts are written down.
"""

import json
import os
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from spear.distributed import Ranks
from spear.errors import SpearError
from spear.progress import get_logger
from spear.training.position import Position

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_logger = get_logger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What all ranks agree on about a step.

    Attributes:
        is_finite: Whether every rank's loss and gradient are finite.
        stop_signal: The number of a signal that some rank received, or 0.
        audio_s: Seconds of audio of the step over all ranks.
    """

    is_finite: bool
    stop_signal: int
    audio_s: float


def agree(
    ranks: Ranks, loss: Tensor, grad_norm: Tensor, stop_signal: int, audio_s: Tensor
) -> Verdict:
    """Reaches the verdict on a step.

    Args:
        ranks: The processes of the run.
        loss: () this rank's loss.
        grad_norm: () norm of its gradient after DDP's averaging.
        stop_signal: Signal that this rank received, or 0.
        audio_s: () float64, seconds of audio over all ranks.
    """
    is_bad = ~(loss.detach().isfinite() & grad_norm.isfinite())
    signal_number = audio_s.new_tensor(float(stop_signal))
    flags = ranks.all_reduce(torch.stack([is_bad.to(audio_s), signal_number, audio_s]), "max")
    bad, agreed_signal, total_audio_s = flags.tolist()
    return Verdict(bad == 0.0, int(agreed_signal), total_audio_s)


def gradient_norm(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Returns the 2-norm of all gradients together, (); not finite if any element is not."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.zeros((), device=device)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


class BadBatches:
    """Writes down the cuts of skipped steps and stops a run that skips too many in a row.

    Args:
        path: `bad_batches.jsonl` of the run folder.
        max_in_a_row: Number of skipped steps in a row that ends the run.
        ranks: The processes of the run.
    """

    def __init__(self, path: Path, max_in_a_row: int, ranks: Ranks) -> None:
        self.path = path
        self.max_in_a_row = max_in_a_row
        self.ranks = ranks
        self.in_a_row = 0
        self.total = 0

    def good(self) -> None:
        """Notes a step that was fine."""
        self.in_a_row = 0

    def bad(self, position: Position, ids: list[str], loss: Tensor) -> None:
        """Notes a skipped step; every rank calls this.

        Args:
            position: Before the step.
            ids: Cuts of this rank's batch.
            loss: () this rank's loss: tells which rank's cuts are to blame.

        Raises:
            SpearError: It was the last of too many in a row.
        """
        self.in_a_row += 1
        self.total += 1
        record = {
            "step": position.step + 1,
            "epoch": position.epoch,
            "rank": self.ranks.rank,
            "loss_is_finite": bool(loss.detach().isfinite()),
            "ids": ids,
        }
        lines = self.ranks.gather_bytes(json.dumps(record, ensure_ascii=False).encode())
        if self.ranks.is_main:
            with open(self.path, "ab") as stream:
                stream.write(b"".join(line + b"\n" for line in lines))
        _logger.warning(
            "step %d skipped: its loss or gradient is not finite; cuts in %s",
            position.step + 1,
            self.path,
        )
        if self.in_a_row >= self.max_in_a_row:
            raise SpearError(
                f"step {position.step + 1}: {self.in_a_row} steps in a row had a non-finite loss "
                f"or gradient; their cuts are in {self.path}; lower optim.base_lr, or train with "
                "precision fp32"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counts."""
        self.in_a_row, self.total = state["in_a_row"], state["total"]


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 set `.signal` instead of ending the process.

    Outside the main thread Python cannot catch signals: nothing is caught there.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker inherited this: it just ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = number
