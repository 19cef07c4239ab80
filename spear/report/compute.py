"""The compute ledger of a page: `ledger.jsonl` read back, a process for each of its ids."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from spear.training.logs.curves import is_number

_BEATS_MISSED = 2.5
"""Lines that a process may be late with before it counts as dead."""
_SIGNALS = 128
"""A shell's status of a process that a signal ended, less the signal's number."""


@dataclass
class Process:
    """One process of a stage, as its last line in the ledger tells."""

    id: str = ""
    event: str = ""
    command: str = ""
    started: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    cpu: str = ""
    cpu_cores: float = 0.0
    gpu: str = ""
    num_gpus: float = 0.0
    gpu_hours: float = 0.0
    energy_wh: float = 0.0
    num_measured_gpus: float = 0.0
    audio_hours: float = 0.0
    num_ranks: float = 1.0
    exit_status: float = math.nan
    beat_s: float = 600.0
    spear_version: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Process":
        """Reads a line; fields of a wrong type are as if missing."""
        known = {
            name: record[name]
            for name, blank in vars(cls()).items()
            if isinstance(record.get(name), type(blank))
            or (isinstance(blank, float) and is_number(record.get(name)))
        }
        return cls(**known)

    @property
    def measured_gpu_hours(self) -> float:
        """Those of which the energy is known."""
        return self.gpu_hours * self.num_measured_gpus / self.num_gpus if self.num_gpus else 0.0

    @property
    def device(self) -> str:
        """What it ran on, without the name of a machine."""
        if self.gpu:
            return f"{self.num_gpus:g} x {self.gpu}"
        return f"{self.cpu}, {self.cpu_cores:g} cores"

    @property
    def state(self) -> str:
        """How it ended, "done" if well; "running" or "killed" where it did not say."""
        if self.event != "end":
            try:
                age_s = (_now() - datetime.fromisoformat(self.started)).total_seconds()
            except (TypeError, ValueError):
                return "killed"
            return "running" if age_s - self.wall_s < _BEATS_MISSED * self.beat_s else "killed"
        if self.exit_status > _SIGNALS:
            return f"stopped by signal {self.exit_status - _SIGNALS:g}"
        return "done" if self.exit_status == 0 else f"failed with status {self.exit_status:g}"


def read_processes(records: Iterable[Mapping[str, Any]]) -> list[Process]:
    """Returns a process for each id, by time."""
    last = {one.id: one for one in map(Process.read, records) if one.id and one.command}
    return sorted(last.values(), key=lambda one: one.started)


def _now() -> datetime:
    return datetime.now(timezone.utc)
