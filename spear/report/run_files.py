"""A run folder read: metrics, configuration, checkpoints, skipped steps; where the run stands."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spear.report.compute import Process
from spear.report.series import is_number
from spear.report.sources import Reader
from spear.training.checkpoints.checkpoint import list_checkpoints
from spear.training.logs.clock import format_duration


@dataclass
class Run:
    """What the files of a run folder say.

    Attributes:
        folder: Where they lie.
        records: Lines of `metrics.jsonl`.
        config: `config.yaml`.
        states: `state.json` of every checkpoint, by its folder's name, ascending.
        skipped: Lines of `bad_batches.jsonl`.
        tables: `tables.json`, the newest tables by codebook and token.
        processes: Those of the run in its ledger, by time.
    """

    folder: Path
    records: list[dict[str, Any]]
    config: dict[str, Any]
    states: dict[str, dict[str, Any]]
    skipped: list[dict[str, Any]]
    tables: dict[str, Any]
    processes: Sequence[Process] = ()

    @classmethod
    def read(cls, folder: Path, reader: Reader, processes: Sequence[Process]) -> "Run":
        """Reads a run folder; what is missing is empty."""
        paths = list_checkpoints(folder)
        return cls(
            folder,
            reader.lines(folder / "metrics.jsonl"),
            reader.yaml_object(folder / "config.yaml"),
            {path.name: reader.json_object(path / "state.json") for path in paths},
            reader.lines(folder / "bad_batches.jsonl"),
            reader.json_object(folder / "tables.json"),
            [one for one in processes if "train" in one.command or "finetune" in one.command],
        )

    @property
    def kind(self) -> str:
        """What was trained."""
        if self.teachers:
            return "pre-training"
        return "fine-tuning" if "tokenizer" in self.config else "training"

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers whose tokens are predicted."""
        found = self.config.get("teachers")
        return [str(name) for name in found] if isinstance(found, dict) else []

    @property
    def last_step(self) -> float:
        """The last step that anything says."""
        return max([0.0, *values_of(self.records, "step")])

    @property
    def max_steps(self) -> float | None:
        """Steps after which the run is complete, as its configuration says."""
        found = self.config.get("train")
        steps = found.get("max_steps") if isinstance(found, dict) else None
        return float(steps) if is_number(steps) else None

    @property
    def is_complete(self) -> bool:
        """Whether it went to its end."""
        return self.max_steps is not None and self.last_step >= self.max_steps


def facts(run: Run) -> list[tuple[str, str]]:
    """Returns the state of a run as rows of name and value; what nothing tells is left out."""
    state = next(iter(reversed(run.states.values())), {})
    of = "" if run.max_steps is None else f" of {run.max_steps:,.0f}"
    end = "" if run.max_steps is None or run.is_complete else " (not complete)"
    rows = [("steps", f"{run.last_step:,.0f}{of}{end}")] if run.records else []
    rows += _row("epochs begun", run.records, "epoch", lambda value: f"{value + 1:g}")
    rows += _row("audio seen", run.records, "data/audio(hours)", in_hours)
    rows += _row("time", run.records, "elapsed_s", format_duration)
    rows += _row("skipped steps", run.records, "health/skipped_steps", lambda value: f"{value:g}")
    for name, key in (("batches in a step", "batches_in_step"), ("torch", "torch_version")):
        if key in state:
            rows.append((name, str(state[key])))
    devices = list(dict.fromkeys(_place_of(process) for process in run.processes))
    if devices:
        rows.append(("ran on", ", then ".join(devices)))
    starts = len(run.processes) or len(list(run.folder.glob("tensorboard/events.out.*")))
    if starts:
        rows.append(("started", "once" if starts == 1 else f"{starts} times"))
    if run.states:
        rows.append(("last checkpoint", list(run.states)[-1]))
    return rows


def _row(
    name: str, records: Sequence[Mapping[str, Any]], key: str, words: Callable[[float], str]
) -> list[tuple[str, str]]:
    values = [value for value in values_of(records, key) if math.isfinite(value)]
    return [(name, words(values[-1]))] if values else []


def _place_of(process: Process) -> str:
    ranks = f"{process.num_ranks:g} processes, " if process.num_ranks > 1 else ""
    return ranks + process.device


def in_hours(hours: float) -> str:
    """Returns hours as text."""
    return f"{hours:,.0f} h" if hours >= 1000 else f"{hours:.4g} h"


def values_of(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Returns the numbers that lines have under a key."""
    return [float(record[key]) for record in records if is_number(record.get(key))]
