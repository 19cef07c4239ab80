"""Where the time of a run goes: waiting for data, steps, and how long it will still take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

FBANK_FRAMES_PER_S = 100.0


@dataclass
class Interval:
    """What happened between two lines of metrics.

    Attributes:
        steps: Steps done.
        audio_s: Seconds of audio over all ranks.
        wait_s: Seconds that this rank waited for data.
        busy_s: Seconds of waiting and steps, without validation and saving.
    """

    steps: int = 0
    audio_s: float = 0.0
    wait_s: float = 0.0
    busy_s: float = 0.0

    def values(self) -> dict[str, float]:
        """Returns the speed tags; empty when nothing was timed."""
        if self.busy_s <= 0 or self.steps == 0:
            return {}
        return {
            "speed/audio_s_per_s": self.audio_s / self.busy_s,
            "speed/frames_per_s": self.audio_s * FBANK_FRAMES_PER_S / self.busy_s,
            "speed/step(s)": self.busy_s / self.steps,
            "data/wait(%)": 100.0 * self.wait_s / self.busy_s,
        }


class Clock:
    """Times steps.

    Args:
        elapsed_s: Seconds that earlier parts of the run took.
    """

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self._started = time.monotonic() - elapsed_s
        self._mark = time.monotonic()
        self._interval = Interval()
        self._total = Interval()

    @property
    def elapsed_s(self) -> float:
        """Seconds of the whole run, over all its restarts."""
        return time.monotonic() - self._started

    def resume(self) -> None:
        """Starts timing: what went before (validation, saving) is not counted."""
        self._mark = time.monotonic()

    def data_arrived(self) -> None:
        """Ends the wait for a batch."""
        waited = self._lap()
        for interval in (self._interval, self._total):
            interval.wait_s += waited
            interval.busy_s += waited

    def step_done(self, audio_s: float) -> None:
        """Ends a step that saw `audio_s` seconds over all ranks."""
        took = self._lap()
        for interval in (self._interval, self._total):
            interval.busy_s += took
            interval.audio_s += audio_s
            interval.steps += 1

    def take_interval(self) -> Interval:
        """Returns what happened since the last call."""
        interval, self._interval = self._interval, Interval()
        return interval

    def eta(self, steps_left: int) -> str:
        """Returns the time that `steps_left` steps will take, as text."""
        if self._total.steps == 0:
            return "unknown"
        return format_duration(steps_left * self._total.busy_s / self._total.steps)

    def _lap(self) -> float:
        now = time.monotonic()
        took, self._mark = now - self._mark, now
        return took


def format_duration(seconds: float) -> str:
    """Returns seconds as text: 59 s, 12 min 3 s, 5 h 20 min, 3 d 4 h."""
    whole = round(seconds)
    for big, small, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            rest = whole % size // (size // {"d": 24, "h": 60, "min": 60}[big])
            return f"{whole // size} {big} {rest} {small}"
    return f"{whole} s"


def _new_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


class GpuIdle:
    """Measures how long a GPU had nothing to do between steps, by events on its own timeline.

    Two events a step, before its first and behind its last operation, cost nothing and are read
    when a line of metrics is due. What lies between one step's last and the next one's first is
    time in which the GPU waited for data or for the host. Without a GPU it measures nothing.

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
