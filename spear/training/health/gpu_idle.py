"""How long the GPU had nothing to do between steps, by events on its own timeline.

Two events a step, before its first and behind its last operation, cost nothing and are read when a
line of metrics is due. What lies between one step's last and the next one's first event is time in
which the GPU waited for data or for the host.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def _new_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


class GpuIdle:
    """Measures idle time between steps; without a GPU it measures nothing.

    Args:
        device: Where the steps are computed.
        new_event: Makes an event with `record`, `synchronize` and `elapsed_time` (milliseconds).
    """

    def __init__(self, device: torch.device, new_event: Callable[[], Any] | None = None) -> None:
        self._new_event = new_event or (_new_event if device.type == "cuda" else None)
        self._steps: list[tuple[Any, Any]] = []
        self._begin: Any = None

    def begin_step(self) -> None:
        """Marks the point before a step's first operation."""
        if self._new_event is not None:
            self._begin = self._new_event()
            self._begin.record()

    def end_step(self) -> None:
        """Marks the point behind a step's last operation."""
        if self._new_event is not None:
            end = self._new_event()
            end.record()
            self._steps.append((self._begin, end))

    def take(self) -> dict[str, float]:
        """Returns `speed/gpu_idle(%)` of the steps since the last call, or nothing."""
        steps, self._steps = self._steps, []
        if len(steps) < 2:
            return {}
        steps[-1][1].synchronize()
        whole_ms = steps[0][0].elapsed_time(steps[-1][1])
        idle_ms = sum(before[1].elapsed_time(after[0]) for before, after in pairwise(steps))
        return {"speed/gpu_idle(%)": 100.0 * idle_ms / whole_ms} if whole_ms > 0 else {}
