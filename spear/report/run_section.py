"""The section of a run: where it stands, its curves, and tables below them."""

from collections.abc import Sequence

from spear.report.line_chart import Mark
from spear.report.markup import Html, details, element, join, table
from spear.report.panels import LOSSES, Panel, by_codebook, curves, group_of
from spear.report.run_files import Run, facts, values_of
from spear.report.run_tables import checkpoints, configuration, last_values, skipped
from spear.report.series import collect, is_number
from spear.report.token_usage import usage_pictures


def run_section(run: Run) -> Html:
    """Returns all that there is to see of a run."""
    numbers, lists = collect(run.records)
    groups = curves(numbers, run.teachers)
    pictures = by_codebook(lists, run.teachers)
    marks = [*_restarts(run), *_skips(run)]
    losses = _group("", groups.pop(LOSSES, []), pictures.pop(LOSSES, []), marks)
    state = element("div", table(("", ""), facts(run)), *losses, class_="beside")
    parts: list[Html] = [state, *_missing(run), *_legend_of(marks)]
    usage = {group_of(name): picture for name, picture in usage_pictures(run.tables).items()}
    for title in dict.fromkeys([*groups, *usage, *pictures]):
        drawn = [usage[title]] if title in usage else []
        parts += _group(title, groups.get(title, []), pictures.get(title, []), marks, drawn)
    parts += [skipped(run), last_values(numbers), checkpoints(run), configuration(run)]
    return join(parts)


def _missing(run: Run) -> list[Html]:
    """Says which parts are not there, and whether the run hung."""
    absent = [
        name
        for name, there in (
            ("metrics.jsonl (no curves)", run.records),
            ("config.yaml (no configuration)", run.config),
            ("checkpoints", run.states),
        )
        if not there
    ]
    hung = sorted(path.name for path in run.folder.glob("hang-*.txt"))
    texts = [f"Not there: {', '.join(absent)}."] if absent else []
    texts += [f"The run hung at least once; what it was doing: {', '.join(hung)}."] if hung else []
    return [element("p", text, class_="remark") for text in texts]


def _restarts(run: Run) -> list[Mark]:
    """Returns marks where a later process went on with the run."""
    found = []
    for process in run.processes:
        step = process.notes.get("first_step")
        if is_number(step) and step > 0:
            words = f"started again at step {step:g}, {process.started}, on {process.device}"
            found.append(Mark(float(step), "restart", words))
    return found


def _skips(run: Run) -> list[Mark]:
    steps = sorted(set(values_of(run.skipped, "step")))
    return [Mark(step, "skip", f"step {step:g} was skipped") for step in steps]


def _legend_of(marks: Sequence[Mark]) -> list[Html]:
    looks = {mark.look for mark in marks}
    words = {
        "restart": "broken upright lines: the run was started again there",
        "skip": "triangles: steps that were skipped; the table below has their cuts",
    }
    found = [text for look, text in words.items() if look in looks]
    if not found:
        return []
    return [element("p", f"In the pictures: {'; '.join(found)}.", class_="remark")]


def _group(
    title: str,
    panels: Sequence[Panel],
    pictures: Sequence[Html],
    marks: Sequence[Mark],
    more: Sequence[Html] = (),
) -> list[Html]:
    """Returns a group of pictures below its title; what is 0 throughout is one sentence."""
    drawn = [*(panel.draw(marks) for panel in panels if not panel.is_zero), *more]
    zero = [panel.title for panel in panels if panel.is_zero]
    remark = f"0 throughout: {', '.join(zero)}."
    return [
        element("h3", title) if title else Html(),
        element("div", *drawn, class_="charts") if drawn else Html(),
        element("p", remark, class_="remark") if zero else Html(),
        details("By codebook", element("div", *pictures, class_="charts")) if pictures else Html(),
    ]
