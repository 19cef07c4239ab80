"""Where a run stands: everything that schedules, data order and resuming depend on."""

from dataclasses import asdict, dataclass, replace
from typing import Any

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Position:
    """A point of a run, between two steps.

    Attributes:
        step: Steps done, over all epochs, skipped ones included.
        epoch: Index of the present epoch, from 0.
        step_in_epoch: Steps done in it.
        audio_s: Seconds of audio seen by all ranks together.
        schedule_unit_s: Seconds of audio that count as one unit of `schedule`.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    audio_s: float = 0.0
    schedule_unit_s: float = 600.0

    @property
    def schedule(self) -> float:
        """Position of schedules such as dropout: batches of `schedule_unit_s` seconds seen."""
        return self.audio_s / self.schedule_unit_s

    @property
    def audio_hours(self) -> float:
        """Hours of audio seen by all ranks together."""
        return self.audio_s / SECONDS_PER_HOUR

    def after_step(self, audio_s: float) -> "Position":
        """Returns the position after one more step with `audio_s` seconds over all ranks."""
        return replace(
            self,
            step=self.step + 1,
            step_in_epoch=self.step_in_epoch + 1,
            audio_s=self.audio_s + audio_s,
        )

    def next_epoch(self) -> "Position":
        """Returns the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, step_in_epoch=0)

    def to_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint stores; the schedule's unit belongs to the configuration."""
        content = asdict(self)
        del content["schedule_unit_s"]
        return content
