"""The parts that pages are made of: curves, charts, their groups, numbers in words."""

import math
from pathlib import Path

import pytest

from spear.report.charts import thinned
from spear.report.page import hours, number, short
from spear.report.panels import panel_groups, parse_tag
from spear.report.run_files import Run
from spear.training.logs.curves import collect


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, ""), (440, "440"), (5000, "5000"), (400_000, "400k"), (2.5e6, "2.5M"), (2e-5, "2e-05")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_numbers_of_files_are_shown_and_nothing_else() -> None:
    assert [number(1234567), number(0.5), number(0.123456, ".4g")] == ["1,234,567", "0.5", "0.1235"]
    assert [number(one) for one in (None, "x", True, math.nan, [1])] == [""] * 5
    assert [hours(3600), hours(7.2e6), hours("x")] == ["1 h", "2,000 h", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory/max_reserved(GiB)", ("memory", "max_reserved", "GiB")),
        ("train/loss", ("train", "loss", "")),
        ("valid/a/b(%)", ("valid", "a/b", "%")),
        ("odd(", ("", "odd(", "")),
        ("", ("", "", "")),
    ],
)
def test_tags_are_taken_apart(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_tag(text) == expected


def test_metrics_become_curves_and_lists() -> None:
    numbers, lists = collect(
        [
            {"step": 1, "epoch": 0, "train/loss": 2, "odd/flag": True, "odd/text": "x"},
            {"step": 2, "train/loss": math.nan, "valid/by_codebook": [1, 2.5]},
            {"train/loss": 7},
            {"step": "3", "train/loss": 7},
            {"step": 4, "valid/by_codebook": [], "valid/mixed": [1, "x"]},
        ]
    )
    assert list(numbers) == ["train/loss"]
    assert list(numbers["train/loss"]) == [1.0, 2.0]
    assert numbers["train/loss"][1.0] == 2.0
    assert math.isnan(numbers["train/loss"][2.0])
    assert lists == {"valid/by_codebook": {2.0: [1.0, 2.5]}}


def test_thinning_loses_no_peak_and_no_gap() -> None:
    values = [math.sin(i / 50) for i in range(8000)]
    values[1234], values[4321], values[6000] = 9.0, -9.0, math.nan
    pairs = thinned({float(i): value for i, value in enumerate(values)}, 600)
    steps = list(pairs)
    assert len(steps) <= 601
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0.0, 7999.0)
    assert (pairs[1234.0], pairs[4321.0]) == (9.0, -9.0)
    assert math.isnan(pairs[6000.0])
    assert all(values[int(step)] == value for step, value in pairs.items() if step != 6000)


def test_a_short_curve_stays_whole() -> None:
    curve = {1.0: 3.0, 2.0: 4.0}
    assert thinned(curve) is curve


def _run(curves: dict[str, list[float]], teachers: tuple[str, ...] = ()) -> Run:
    """Returns a run that measured these values at steps 1 and 2."""
    records = [{"step": n + 1, **{tag: v[n] for tag, v in curves.items()}} for n in range(2)]
    return Run(Path("run"), records=records, config={"teachers": {name: {} for name in teachers}})


def test_values_that_explain_others_are_drawn_with_them() -> None:
    run = _run(
        {
            "optim/learning_rate": [0.04, 0.04],
            "speed/step(s)": [0.3, 0.3],
            "train/dasheng_loss": [2.0, 2.0],
            "train/loss": [3.0, 3.0],
            "valid/loss": [2.5, 2.5],
            "train/wavlm_masked_accuracy": [0.1, 0.1],
            "train/wavlm_unmasked_accuracy": [0.2, 0.2],
            "train/wavlm_baseline_accuracy": [0.03, 0.03],
            "valid/wavlm_baseline_accuracy": [0.04, 0.04],
        },
        ("wavlm", "dasheng"),
    )
    groups = panel_groups([run])
    names = {group.title: [chart.title for chart in group.charts] for group in groups}
    assert names == {
        "Losses": ["loss"],
        "Teacher wavlm": ["masked accuracy", "unmasked accuracy"],
        "Teacher dasheng": ["loss"],
        "Optimiser": ["learning rate"],
        "Speed, memory, data, health": ["speed: step"],
    }
    assert [group.title for group in groups] == list(names)
    assert [trace["role"] for trace in groups[0].charts[0].traces] == ["train", "valid"]
    for chart in groups[1].charts:
        reference = chart.traces[-1]
        assert (reference["role"], reference["label"]) == ("reference", "baseline accuracy")
        assert reference["y"] == [0.04, 0.04]


def test_a_single_loss_is_shown_once() -> None:
    (group,) = panel_groups([_run({"train/loss": [3.0, 2.0], "train/ctc_loss": [3.0, 2.0]})])
    assert [chart.title for chart in group.charts] == ["loss"]


def test_lists_become_bars_and_heat_maps() -> None:
    records = [
        {
            "step": step,
            "valid/wavlm_codebook_masked_loss(nats)": [1.0 / step, 2.0 / step],
            "valid/wavlm_codebook_unigram_entropy(nats)": [5.0, 5.0],
        }
        for step in (1, 2)
    ]
    records.append({"step": 2, "train/other_list": [1.0]})
    run = Run(Path("run"), records=records, config={"teachers": {"wavlm": {}}})
    losses, wavlm = panel_groups([run])
    assert [chart.kind for chart in losses.codebooks] == ["bars"]
    bars, heat = wavlm.codebooks
    assert {one["label"]: one["y"] for one in bars.traces} == {
        "valid": [0.5, 1],
        "unigram entropy": [5, 5],
    }
    assert (heat.kind, heat.traces[0]["x"], heat.traces[0]["y"]) == (
        "heat", [1, 2], [[1, 0.5], [2, 1]],
    )  # fmt: skip


def test_a_heat_map_has_at_most_100_steps() -> None:
    records = [{"step": step, "valid/x": [step / 1000, 0.0]} for step in range(1, 1001)]
    (group,) = panel_groups([Run(Path("run"), records=records)])
    (heat,) = (chart.traces[0] for chart in group.codebooks if chart.kind == "heat")
    assert (len(heat["x"]), heat["x"][0], heat["x"][-1]) == (100, 1, 1000)
    assert heat["y"][0] == [step / 1000 for step in heat["x"]]
