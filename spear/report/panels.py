"""Which curves share a picture, and in which group and order the pictures stand.

Training and validation of the same value are one picture. A value that only says how to read
another, such as the accuracy of always guessing the most frequent token, is drawn into the
picture of that other, dotted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spear.report.codebook_chart import bar_chart, heat_map
from spear.report.line_chart import Line, Mark, line_chart
from spear.report.markup import Html
from spear.report.series import Series, Tag

_SHARED = ("train", "valid")
_REFERENCES = {
    "masked_accuracy": "baseline_accuracy",
    "unmasked_accuracy": "baseline_accuracy",
    "predicted_usage": "target_usage",
    "masked_loss": "unigram_entropy",
    "unmasked_loss": "unigram_entropy",
}
"""What a value is compared with, by the ends of their names."""
_GROUPS = {"optim": "Optimiser"}
LOSSES, _MACHINE = "Losses", "Speed, memory, data, health"
_LAST = ("Optimiser", _MACHINE)
_MACHINE_PARTS = ("speed", "memory", "data", "health")


@dataclass
class Panel:
    """The curves of one value."""

    part: str
    """What it is about, e.g. "speed"; empty for what training and validation share."""
    name: str
    unit: str
    lines: dict[str, Series] = field(default_factory=dict)
    """By part: "train", "valid", or another one alone."""
    reference: Series | None = None
    reference_name: str = ""
    owner: str = ""
    """The teacher whose tokens it is about; pictures stand below its name."""

    @property
    def title(self) -> str:
        """The name in words."""
        words = in_words(self.name.removeprefix(f"{self.owner}_"))
        return f"{self.part}: {words}" if self.part in _MACHINE_PARTS else words

    @property
    def is_zero(self) -> bool:
        """Whether there is nothing to see: every value is 0."""
        return all(value == 0.0 for series in self.lines.values() for value in series.values)

    def draw(self, marks: Sequence[Mark] = ()) -> Html:
        """Returns the picture."""
        lines = [
            Line(part if part in _SHARED else self.title, series, _look(part))
            for part, series in sorted(self.lines.items())
        ]
        if self.reference is not None:
            label = in_words(self.reference_name.removeprefix(f"{self.owner}_"))
            lines.append(Line(label, self.reference, "reference"))
        return line_chart(self.title, lines, self.unit, is_log=self._is_log, marks=marks)

    @property
    def _is_log(self) -> bool:
        if "loss" in self.name.split("_"):
            return True
        values = [v for s in self.lines.values() for v in s.values if math.isfinite(v)]
        return "norm" in self.name and bool(values) and max(values) > 20.0 * min(values)


def curves(numbers: Mapping[str, Series], teachers: Iterable[str]) -> dict[str, list[Panel]]:
    """Sorts curves into panels, and panels into groups.

    Args:
        numbers: Curves by tag.
        teachers: Names that begin the names of values; each is a group.

    Returns:
        Panels by the title of their group: losses first, what concerns the machine last.
    """
    panels: dict[tuple[str, str], Panel] = {}
    for text, series in numbers.items():
        tag = Tag.parse(text)
        key = ("" if tag.part in _SHARED else tag.part, tag.name)
        panels.setdefault(key, Panel(*key, tag.unit)).lines[tag.part] = series
    for key in list(panels):
        if _is_only_term(panels, key) or _move_reference(panels, key):
            del panels[key]
    groups: dict[str, list[Panel]] = {}
    known = list(teachers)
    for (part, name), panel in sorted(panels.items(), key=lambda item: _rank(item[0][1])):
        panel.owner = "" if part else _owner(name, known)
        groups.setdefault(_group(part, panel.owner), []).append(panel)
    return {title: groups[title] for title in sorted(groups, key=lambda t: _place(t, known))}


def by_codebook(
    lists: Mapping[str, Mapping[float, Sequence[float]]], teachers: Iterable[str]
) -> dict[str, list[Html]]:
    """Draws lists by codebook: the last of each as bars, all steps as a heat map.

    Args:
        lists: Values (N,) by tag and step.
        teachers: As for `curves`.

    Returns:
        Pictures by the title of their group.
    """
    tags = {Tag.parse(text): by_step for text, by_step in lists.items()}
    names = sorted({(tag.name, tag.unit) for tag in tags})
    drawn: dict[str, list[Html]] = {}
    for name, unit in names:
        own = {tag.part: by_step for tag, by_step in tags.items() if tag.name == name}
        compared = _reference_of(name)
        others = [by_step for tag, by_step in tags.items() if tag.name == compared]
        if any(_reference_of(other) == name for other, _ in names):
            continue  # drawn into the other's
        owner = _owner(name, list(teachers))
        title, against = (
            in_words(text.removeprefix(f"{owner}_").removeprefix("codebook_"))
            for text in (name, compared or "")
        )
        reference = (against, _last(others[-1])) if others else None
        shown = own.get("valid") or next(iter(own.values()))
        bars = {_look(part): _last(by_step) for part, by_step in sorted(own.items())}
        pictures = [bar_chart(title, bars, unit, reference)]
        if len(shown) > 1:
            pictures.append(heat_map(f"{title} over steps", shown, unit))
        drawn.setdefault(_group("", owner), []).extend(pictures)
    return drawn


def group_of(teacher: str) -> str:
    """Returns the title of the group of a teacher."""
    return f"Teacher {teacher}"


def in_words(name: str) -> str:
    """Returns a name without underscores."""
    return name.replace("_", " ")


def _last(by_step: Mapping[float, Sequence[float]]) -> Sequence[float]:
    return by_step[max(by_step)]


def _look(part: str) -> str:
    return "valid" if part == "valid" else "train"


def _reference_of(name: str) -> str | None:
    """Returns the name of what a value is compared with."""
    for end, other in _REFERENCES.items():
        if name.endswith(end) and not name.endswith(f"un{end}"):
            return name.removesuffix(end) + other
    return None


def _is_only_term(panels: Mapping[tuple[str, str], Panel], key: tuple[str, str]) -> bool:
    """Whether a loss is all of the total loss, so that two pictures would be the same."""
    total = panels.get(("", "loss"))
    is_term = key[1] != "loss" and "loss" in key[1].split("_")
    return is_term and total is not None and panels[key].lines == total.lines


def _move_reference(panels: Mapping[tuple[str, str], Panel], key: tuple[str, str]) -> bool:
    """Draws a panel into those that are compared with it; says whether there is any."""
    wanting = [p for p in panels.values() if _reference_of(p.name) == key[1] and p.name != key[1]]
    lines = panels[key].lines
    for panel in wanting:
        panel.reference = lines.get("valid") or next(iter(lines.values()))
        panel.reference_name = key[1]
    return bool(wanting)


def _owner(name: str, teachers: Sequence[str]) -> str:
    """Returns the teacher whose name a value's name begins with, the longest that fits, or ""."""
    return max((one for one in teachers if name.startswith(f"{one}_")), key=len, default="")


def _group(part: str, owner: str) -> str:
    if part in _MACHINE_PARTS:
        return _MACHINE
    if part:
        return _GROUPS.get(part, in_words(part).capitalize())
    return group_of(owner) if owner else LOSSES


def _place(title: str, teachers: Sequence[str]) -> tuple[int, str]:
    order = [LOSSES, *map(group_of, teachers)]
    if title in order:
        return order.index(title), title
    return len(order) + (1 + _LAST.index(title) if title in _LAST else 0), title


def _rank(name: str) -> tuple[bool, bool, str]:
    return name != "loss", "loss" not in name.split("_"), name
