"""The compute ledger of a page: `ledger.jsonl` read back, and summed by stage and device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from spear.report.markup import Html, element, join, table
from spear.report.scales import short
from spear.report.series import is_number
from spear.training.logs.clock import format_duration

_BEATS_MISSED = 2.5
"""Lines that a process may be late with before it counts as dead."""
_SIGNALS = 128
"""A shell's status of a process that a signal ended, less the signal's number."""
_TEXTS = frozenset({"id", "event", "command", "started", "cpu", "gpu", "spear_version"})
"""Fields of a process that are text."""


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
    cpu_cores: float = 0
    gpu: str | None = None
    num_gpus: float = 0
    gpu_hours: float = 0.0
    energy_wh: float | None = None
    num_measured_gpus: float = 0
    audio_hours: float = 0.0
    num_ranks: float = 1
    exit_status: float | None = None
    beat_s: float = 600.0
    spear_version: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """What it ran on, without the name of a machine."""
        if self.gpu is not None:
            return f"{self.num_gpus:g} x {self.gpu}"
        return f"{self.cpu}, {self.cpu_cores:g} cores"

    def state(self, now: datetime) -> str:
        """Returns how it ended, "done" if well; "running" or "killed" where it did not say."""
        if self.event == "end":
            return _ending(self.exit_status)
        try:
            silent_s = (now - datetime.fromisoformat(self.started)).total_seconds() - self.wall_s
        except (TypeError, ValueError):
            return "killed"
        return "running" if silent_s < _BEATS_MISSED * self.beat_s else "killed"


def read_processes(records: Iterable[Mapping[str, Any]]) -> list[Process]:
    """Returns a process for each id, by time; fields of a wrong type are as if missing."""
    last: dict[str, Process] = {}
    for record in records:
        if isinstance(record.get("id"), str) and isinstance(record.get("command"), str):
            last[record["id"]] = _process(record)
    return sorted(last.values(), key=lambda one: one.started)


def ledger_section(processes: Sequence[Process]) -> Html:
    """Returns the table of what every stage cost on every device, and their sum."""
    if not processes:
        return element(
            "p",
            "No ledger: these stages ran before there was one, or their folders hold no ",
            element("code", "ledger.jsonl"),
            ".",
        )
    groups: dict[tuple[str, str], list[Process]] = {}
    for process in processes:
        groups.setdefault((process.command, process.device), []).append(process)
    now = datetime.now(timezone.utc)
    rows = [(*key, *_sums(group, now)) for key, group in groups.items()]
    rows.append(("all", "", *_sums(processes, now)))
    header = ("stage", "device", *_COLUMNS)
    sums = element("div", table(header, rows, "ll" + "r" * len(_COLUMNS)), class_="sums")
    return join([sums, *_remarks(processes, now)])


_COLUMNS = (
    "processes",
    "unfinished",
    "time",
    "CPU hours",
    "GPU hours",
    "energy (kWh)",
    "audio (hours)",
)


def _sums(group: Sequence[Process], now: datetime) -> tuple[str, ...]:
    measured = [one.energy_wh for one in group if one.energy_wh is not None]
    unfinished = sum(one.state(now) != "done" for one in group)
    return (
        str(len(group)),
        str(unfinished or ""),
        format_duration(sum(one.wall_s for one in group)),
        _number(sum(one.cpu_s for one in group) / 3600.0),
        _number(sum(one.gpu_hours for one in group)),
        _number(sum(measured) / 1000.0) if measured else "",
        _number(sum(one.audio_hours for one in group)),
    )


def _remarks(processes: Sequence[Process], now: datetime) -> list[Html]:
    """Returns what one has to know about the numbers."""
    texts = [
        "CPU hours are of the process and its workers (of rank 0 where there are several), GPU "
        "hours of all ranks. A process that was killed counts up to its last line."
    ]
    gpu_hours = sum(one.gpu_hours for one in processes)
    measured = sum(
        one.gpu_hours * one.num_measured_gpus / one.num_gpus for one in processes if one.num_gpus
    )
    if gpu_hours and measured < 0.999 * gpu_hours:
        texts.append(f"Energy was measured in {measured / gpu_hours:.1%} of the GPU hours.")
    for process in processes:
        state = process.state(now)
        if state not in {"done", "running"}:
            ran = format_duration(process.wall_s)
            texts.append(f"{process.command} of {process.started}: {state} after {ran}.")
    return [element("p", text, class_="remark") for text in texts]


def _ending(status: float | None) -> str:
    if status == 0:
        return "done"
    if status is not None and status > _SIGNALS:
        return f"stopped by signal {status - _SIGNALS:g}"
    return f"failed with status {status}"


def _number(value: float) -> str:
    return short(float(f"{value:.3g}")) if value else ""


def _process(record: Mapping[str, Any]) -> Process:
    known = [one.name for one in fields(Process) if _fits(one.name, record.get(one.name))]
    return Process(**{name: record[name] for name in known})


def _fits(name: str, value: object) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    return isinstance(value, dict) if name == "notes" else is_number(value)
