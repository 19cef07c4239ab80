"""The tables of a run: skipped steps and their cuts, last values, checkpoints, configuration."""

from collections.abc import Mapping
from typing import Any

import yaml

from spear.report.markup import Html, details, element, join, table
from spear.report.panels import in_words
from spear.report.run_files import Run, in_hours
from spear.report.series import Series, is_number
from spear.training.logs.clock import format_duration

_MAX_SKIPPED = 50
_MAX_IDS = 8


def skipped(run: Run) -> Html:
    """Returns the cuts of skipped steps: of the ranks whose loss was bad, of all where none was."""
    by_step: dict[float, list[dict[str, Any]]] = {}
    for line in run.skipped:
        by_step.setdefault(float(line["step"]) if is_number(line.get("step")) else 0.0, []).append(
            line
        )
    rows = []
    for step, lines in sorted(by_step.items())[:_MAX_SKIPPED]:
        guilty = [line for line in lines if not line.get("loss_is_finite", True)]
        what = "loss not finite" if guilty else "gradient, or a spike"
        for line in guilty or lines:
            rows.append((f"{step:,.0f}", what, str(line.get("rank", "")), _ids(line)))
    more = len(by_step) - _MAX_SKIPPED
    remark = element("p", f"{more} more steps in bad_batches.jsonl.", class_="remark")
    shown = table(("step", "cause", "rank", "cuts"), rows, "rlr")
    title = element("h3", "Skipped steps") if rows else ""
    return join([title, shown, remark if more > 0 else ""])


def _ids(line: Mapping[str, Any]) -> str:
    found = line.get("ids")
    ids = [str(one) for one in found] if isinstance(found, list) else []
    more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
    return ", ".join(ids[:_MAX_IDS]) + more


def last_values(numbers: Mapping[str, Series]) -> Html:
    """Returns the last value of every curve, for those who want numbers."""
    rows = [
        (in_words(tag), f"{series.steps[-1]:,.0f}", f"{series.values[-1]:.6g}")
        for tag, series in sorted(numbers.items())
    ]
    return details("Last values", table(("value", "step", ""), rows, "lrr")) if rows else Html()


def checkpoints(run: Run) -> Html:
    """Returns what every checkpoint says of itself."""
    rows = []
    for name, state in run.states.items():
        position = state.get("position")
        place = position if isinstance(position, dict) else {}
        audio_s, elapsed_s = place.get("audio_s"), state.get("elapsed_s")
        rows.append(
            (
                name,
                str(place.get("epoch", "")),
                in_hours(audio_s / 3600) if is_number(audio_s) else "",
                format_duration(elapsed_s) if is_number(elapsed_s) else "",
                str(state.get("batches_in_step", "")),
            )
        )
    header = ("checkpoint", "epoch", "audio", "time", "batches in a step")
    return details("Checkpoints", table(header, rows, "lrrrr")) if rows else Html()


def configuration(run: Run) -> Html:
    """Returns the configuration that the run began with."""
    if not run.config:
        return Html()
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return details("Configuration", element("pre", text))
