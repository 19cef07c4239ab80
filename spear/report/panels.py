"""Which curves share a chart, and in which group and order the charts stand.

Training and validation of the same value are one chart, for all runs that are laid over each other.
A value that only says how to read another, such as the accuracy of always guessing the most
frequent token, is drawn into the chart of that other, dotted.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from spear.report.charts import Chart
from spear.report.run_files import Run
from spear.training.logs.curves import Curve, Lists

LOSSES, _OPTIMISER, _MACHINE = "Losses", "Optimiser", "Speed, memory, data, health"
"""Titles of groups; each teacher has one, too."""
_TAG = re.compile(r"^(?:(?P<part>[^/]*)/)?(?P<name>.*?)(?:\((?P<unit>[^()]*)\))?$", re.DOTALL)
_SHARED = ("train", "valid")
_MACHINE_PARTS = ("speed", "memory", "data", "health")
_REFERENCES = {
    "masked_accuracy": "baseline_accuracy",
    "predicted_usage": "target_usage",
    "masked_loss": "unigram_entropy",
}
"""What a value is compared with, by the ends of their names; "un" may stand before the end."""

_T = TypeVar("_T", Curve, Lists)


@dataclass
class Group:
    """Charts below a title.

    Attributes:
        title: What they are about.
        charts: Curves that there is something to see of.
        zeros: Titles of those that are 0 throughout.
        codebooks: Values by codebook: bars for the last, a heat map for all steps.
    """

    title: str
    charts: list[Chart] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    codebooks: list[Chart] = field(default_factory=list)


def panel_groups(runs: Sequence[Run]) -> list[Group]:
    """Draws all that runs measured, laid over each other.

    Returns:
        Losses first, then each teacher's, what concerns the machine last.
    """
    teachers = list(dict.fromkeys(name for run in runs for name in run.teachers))
    lines = _charts([run.values[0] for run in runs], Chart.add_curve, "lines", teachers)
    bars = _charts([run.values[1] for run in runs], Chart.add_last, "bars", teachers)
    first, last = [LOSSES, *map(_teacher_title, teachers)], [_OPTIMISER, _MACHINE]
    usage = _usage_charts(runs)
    others = sorted({chart.group for chart in (*lines, *usage, *bars)} - {*first, *last})
    groups = {title: Group(title) for title in (*first, *others, *last)}
    for chart in (*lines, *usage):
        group = groups[chart.group]
        if chart.is_zero:
            group.zeros.append(chart.title)
        else:
            group.charts.append(chart)
    for chart in bars:
        groups[chart.group].codebooks += [chart, *chart.heat_maps([run.name for run in runs])]
    return [one for one in groups.values() if one.charts or one.zeros or one.codebooks]


def parse_tag(tag: str) -> tuple[str, str, str]:
    """Takes a tag apart: `memory/max_reserved(GiB)` is ("memory", "max_reserved", "GiB")."""
    found = _TAG.match(tag)
    assert found is not None  # the pattern takes any text
    return found["part"] or "", found["name"], found["unit"] or ""


def _charts(
    runs: Sequence[Mapping[str, _T]],
    add: Callable[[Chart, str, str, int | None, _T], None],
    kind: str,
    teachers: Sequence[str],
) -> list[Chart]:
    """Draws the values of all runs by what is measured, losses first.

    What others are compared with is drawn into these alone: validation's where there are both.
    """
    charts: dict[tuple[str, str], Chart] = {}
    for number, values in enumerate(runs):
        for tag in sorted(values):  # training before validation
            part, name, unit = parse_tag(tag)
            is_shared = part in _SHARED
            key = ("" if is_shared else part, name)
            chart = charts.setdefault(key, _new_chart(*key, unit, kind, teachers))
            role, label = "valid" if part == "valid" else "train", part if is_shared else ""
            add(chart, role, label, number if len(runs) > 1 else None, values[tag])
    drawn_elsewhere = set()
    for (part, name), chart in charts.items():
        end = next((end for end in _REFERENCES if name.endswith(end)), "")
        against = (part, name.removesuffix(end).removesuffix("un") + _REFERENCES.get(end, ""))
        if end and against in charts:
            label = charts[against].title.rpartition(": ")[2]
            newest = {trace["run"]: trace for trace in charts[against].traces}.values()
            chart.traces += [{**one, "role": "reference", "label": label} for one in newest]
            drawn_elsewhere.add(against)
    total = charts.get(("", "loss"), Chart("")).traces
    for key, chart in charts.items():
        if key[1] != "loss" and _is_loss(key[1]) and chart.traces == total:
            drawn_elsewhere.add(key)  # the only term of the loss: the same chart again
    order = sorted(charts, key=lambda key: (key[1] != "loss", not _is_loss(key[1]), key[1]))
    return [charts[key] for key in order if key not in drawn_elsewhere]


def _new_chart(part: str, name: str, unit: str, kind: str, teachers: Sequence[str]) -> Chart:
    fitting = [one for one in teachers if name.startswith(f"{one}_") and not part]
    owner = max(fitting, key=len, default="")
    title = name.removeprefix(f"{owner}_").removeprefix("codebook_").replace("_", " ")
    is_log = kind == "lines" and (_is_loss(name) or "norm" in name)  # bars begin at 0
    chart = Chart(title, unit, kind, "step" if kind == "lines" else "codebook", is_log)
    if part in _MACHINE_PARTS:
        chart.title, chart.group = f"{part}: {title}", _MACHINE
    elif part:
        chart.group = _OPTIMISER if part == "optim" else part.replace("_", " ").capitalize()
    else:
        chart.group = _teacher_title(owner) if owner else LOSSES
    return chart


def _is_loss(name: str) -> bool:
    return "loss" in name.split("_")


def _teacher_title(name: str) -> str:
    return f"Teacher {name}"


def _usage_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draws how often a student says each token, against how often its teacher does.

    `tables.json` has shares (N, K) by codebook and token. Tokens have no order of their own, so
    those of each codebook are put from the most to the least frequent, and codebooks are averaged:
    a student that only ever says a few tokens falls off where its teacher does not.

    Returns:
        A chart for each teacher; tables of another form are passed over.
    """
    found: dict[str, Chart] = {}
    for number, run in enumerate(runs):
        for what, role in (("predicted", "valid"), ("target", "reference")):
            for tag, table in sorted(run.tables.items()):
                curve = _ranked(table) if tag.endswith(f"_{what}_tokens") else None
                if curve is not None:
                    teacher = tag.removeprefix("valid/").removesuffix(f"_{what}_tokens")
                    new = Chart("use of tokens", "share of frames", x_name="token, by frequency")
                    new.is_log, new.group = True, _teacher_title(teacher)
                    chart = found.setdefault(teacher, new)
                    chart.add_curve(role, what, number if len(runs) > 1 else None, curve)
    return list(found.values())


def _ranked(table: Any) -> Curve | None:
    """Returns the mean share of the most frequent token, the second, ...; never is a gap."""
    rows = table.get("rows") if isinstance(table, dict) else None
    try:
        shares = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError):  # rows of unequal lengths, or no numbers
        return None
    if shares.ndim != 2 or shares.size == 0:
        return None
    mean = np.sort(shares, axis=1)[:, ::-1].mean(axis=0).tolist()
    return {float(rank): share or math.nan for rank, share in enumerate(mean, 1)}
