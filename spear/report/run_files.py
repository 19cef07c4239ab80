"""A run folder read: metrics, configuration, checkpoints, skipped steps; where the run stands."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from spear.report.compute import Process
from spear.report.page import duration, hours, number
from spear.report.sources import Reader
from spear.training.checkpoints.checkpoint import list_checkpoints
from spear.training.logs.curves import Curve, Lists, collect, is_number

KINDS = {
    "pre-training": "teachers",
    "fine-tuning": "tokenizer",
    "tagging": "pooling",
    "training": "",
}
"""What is trained, and the key of the configuration that tells it."""


@dataclass
class Run:
    """What the files of a run folder say; what is missing is empty.

    Attributes:
        folder: Where they lie.
        name: What the page calls it.
        records: Lines of `metrics.jsonl`.
        config: `config.yaml`.
        states: `state.json` of every checkpoint, by its folder's name, ascending.
        skipped: Lines of `bad_batches.jsonl`.
        tables: `tables.json`, the newest tables by codebook and token.
        processes: Those of the run in its ledger, by time.
    """

    folder: Path
    name: str = ""
    records: Sequence[Mapping[str, Any]] = ()
    config: dict[str, Any] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, Any]] = ()
    tables: dict[str, Any] = field(default_factory=dict)
    processes: Sequence[Process] = ()

    @classmethod
    def read(cls, folder: Path, name: str, reader: Reader, processes: Sequence[Process]) -> "Run":
        """Reads a run folder."""
        return cls(
            folder,
            name,
            reader.lines(folder / "metrics.jsonl"),
            reader.mapping(folder / "config.yaml", yaml.safe_load),
            {p.name: reader.mapping(p / "state.json") for p in list_checkpoints(folder)},
            reader.lines(folder / "bad_batches.jsonl"),
            reader.mapping(folder / "tables.json"),
            [one for one in processes if "train" in one.command or "finetune" in one.command],
        )

    @cached_property
    def values(self) -> tuple[dict[str, Curve], dict[str, Lists]]:
        """Numbers and lists, by tag and step."""
        return collect(self.records)

    @property
    def kind(self) -> str:
        """What was trained."""
        return next((kind for kind, key in KINDS.items() if key in self.config), "training")

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers whose tokens are predicted."""
        found = self.config.get("teachers")
        return [str(name) for name in found] if isinstance(found, dict) else []

    @property
    def config_text(self) -> str:
        """The configuration as YAML."""
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    @property
    def facts(self) -> dict[str, str]:
        """The state of the run by name, without what nothing tells."""
        state = next(iter(reversed(self.states.values())), {})
        train = self.config.get("train")
        most = train.get("max_steps") if isinstance(train, dict) else None
        step, of = self._last("step"), f" of {most:,.0f}" if is_number(most) else ""
        end = " (not complete)" if is_number(most) and step < most else ""
        ranks = ((one, f"{one.num_ranks:g} processes, ") for one in self.processes)
        places = (text * (one.num_ranks > 1) + one.device for one, text in ranks)
        starts = len(self.processes) or len(list(self.folder.glob("tensorboard/events.out.*")))
        found = {
            "steps": number(step, ",.0f") and f"{step:,.0f}{of}{end}",
            "epochs begun": number(self._last("epoch") + 1, "g"),
            "audio seen": hours(3600 * self._last("data/audio(hours)")),
            "time": duration(self._last("elapsed_s")),
            "skipped steps": number(self._last("health/skipped_steps"), "g"),
            "batches in a step": str(state.get("batches_in_step", "")),
            "torch": str(state.get("torch_version", "")),
            "ran on": ", then ".join(dict.fromkeys(places)),
            "started": {0: "", 1: "once"}.get(starts, f"{starts} times"),
            "last checkpoint": next(reversed(self.states), ""),
            "hung": ", ".join(sorted(path.name for path in self.folder.glob("hang-*.txt"))),
        }
        return {name: text for name, text in found.items() if text}

    @property
    def marks(self) -> dict[str, dict[float, str]]:
        """What happened at which step: "restart" by a later process, or "skip"."""
        starts = ((one, one.notes.get("first_step")) for one in self.processes)
        skips = sorted({line["step"] for line in self.skipped if is_number(line.get("step"))})
        return {
            "restart": {
                step: f"started again at step {step:g}, {one.started}, on {one.device}"
                for one, step in starts
                if is_number(step) and step > 0
            },
            "skip": {step: f"step {step:g} was skipped" for step in skips},
        }

    def skips(self) -> Iterator[tuple[str, str, Any, list[Any]]]:
        """Yields step, cause, rank and cuts of skipped steps.

        Those of the ranks whose loss was bad, of all ranks where none was.
        """
        lines = [(number(line.get("step"), "g"), line) for line in self.skipped]
        guilty = {step for step, line in lines if not line.get("loss_is_finite", True)}
        for step, line in lines:
            if step not in guilty or not line.get("loss_is_finite", True):
                cause = "loss not finite" if step in guilty else "gradient, or a spike"
                ids = line.get("ids")
                yield step, cause, line.get("rank", ""), ids if isinstance(ids, list) else []

    def _last(self, key: str) -> float:
        """Returns the last finite number that lines of metrics have under a key, else NaN."""
        found = [r[key] for r in self.records if is_number(r.get(key)) and math.isfinite(r[key])]
        return float(found[-1]) if found else math.nan


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the fields of configurations that are not the same in all runs, a value for each."""
    flat = [dict(_fields(run.config)) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    rows = {name: [fields.get(name, "") for fields in flat] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}".removeprefix("."))
    else:
        yield name, yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
