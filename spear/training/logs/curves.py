"""The curves of a run: `metrics.jsonl` as one value over steps for each tag.

What reads a run reads it so: the run's own `report.md`, the results of a command, `spear report`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from spear.training.logs.metrics import read_jsonl

Curve = dict[float, float]
"""Values by step, ascending; NaN and infinities are kept."""
Lists = dict[float, list[float]]
"""Lists of values by step, e.g. one value for each codebook."""


def read_curves(run_folder: Path) -> dict[str, Curve]:
    """Returns the numbers that a run wrote down, by tag; none where it has no `metrics.jsonl`."""
    return collect(read_jsonl(run_folder / "metrics.jsonl"))[0]


def collect(records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Curve], dict[str, Lists]]:
    """Turns lines of metrics into curves.

    Args:
        records: Objects with a `step`; a value is a number, or a list of numbers.

    Returns:
        Numbers and lists, both by tag and step. What is neither is passed over, as are lines
        without a step and the facts of a line (`epoch`, `elapsed_s`), whose names have no "/".
    """
    numbers: dict[str, Curve] = {}
    lists: dict[str, Lists] = {}
    for record in records:
        step = record.get("step")
        if not is_number(step):
            continue
        for tag, value in record.items():
            if "/" not in tag:
                continue
            if is_number(value):
                numbers.setdefault(tag, {})[float(step)] = float(value)
            elif isinstance(value, list) and value and all(map(is_number, value)):
                lists.setdefault(tag, {})[float(step)] = [float(one) for one in value]
    return numbers, lists


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from JSON is a number, be it NaN; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def evenly(steps: list[float], most: int) -> list[float]:
    """Returns at most so many steps at even distances, the first and the last among them."""
    count = len(steps)
    return steps if count <= most else [steps[i * (count - 1) // (most - 1)] for i in range(most)]
