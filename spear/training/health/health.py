"""The health of a run: skipped steps are written down, and signals stop it in good order."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from spear.errors import SpearError
from spear.system.distributed import Ranks
from spear.system.progress import get_logger
from spear.training.logs.metrics import JsonLines
from spear.training.position import Position

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_S = 2.0
_logger = get_logger(__name__)


class BadBatches:
    """Writes down the cuts of skipped steps and stops a run that skips too many in a row.

    Args:
        path: `bad_batches.jsonl` of the run folder.
        max_in_a_row: Number of skipped steps in a row that ends the run.
        ranks: The processes of the run.
    """

    def __init__(self, path: Path, max_in_a_row: int, ranks: Ranks) -> None:
        self.path, self.lines = path, JsonLines(path)
        self.max_in_a_row = max_in_a_row
        self.ranks = ranks
        self.in_a_row = 0
        self.total = 0

    def good(self) -> None:
        """Notes a step that was fine."""
        self.in_a_row = 0

    def bad(self, position: Position, ids: list[str], loss_is_finite: bool) -> None:
        """Notes a skipped step; every rank calls this.

        Args:
            position: Before the step.
            ids: Cuts of this rank's batch.
            loss_is_finite: Whether this rank's loss was: tells which rank's cuts are to blame.

        Raises:
            SpearError: It was the last of too many in a row.
        """
        self.in_a_row += 1
        self.total += 1
        record = {
            "step": position.step + 1,
            "epoch": position.epoch,
            "rank": self.ranks.rank,
            "loss_is_finite": loss_is_finite,
            "ids": ids,
        }
        records = map(json.loads, self.ranks.gather_bytes(json.dumps(record).encode()))
        if self.ranks.is_main:
            self.lines.write(*records)
        _logger.warning(
            "step %d skipped: its loss or gradient is not finite, or a spike; cuts in %s",
            position.step + 1,
            self.path,
        )
        if self.in_a_row >= self.max_in_a_row:
            raise SpearError(
                f"step {position.step + 1}: {self.in_a_row} steps in a row had a non-finite loss "
                f"or gradient, or a spike; their cuts are in {self.path}; lower optim.base_lr, or "
                "train with precision fp32"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counts."""
        self.in_a_row, self.total = state["in_a_row"], state["total"]


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 set `.signal` instead of ending the process.

    A second one ends the process at once, with status 128 + signal. Signals within
    `SAME_REQUEST_S` are one request: a scheduler and torchrun may both pass it on. Outside the
    main thread Python cannot catch signals: nothing is caught there.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker inherited this: it just ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.signal and now - self._since > SAME_REQUEST_S:
            os.write(2, b"spear: second signal: ending at once, without a checkpoint\n")
            os._exit(128 + number)
        if not self.signal:
            self.signal, self._since = number, now
