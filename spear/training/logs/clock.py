"""Where the time of a run goes: waiting for data, steps, and how long it will still take."""

import time
from dataclasses import dataclass

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
