"""The parts that pages are made of: markup, axes, curves, pictures."""

import itertools
import json
import math
import xml.etree.ElementTree as ET

import pytest

from spear.report.codebook_chart import bar_chart, heat_map
from spear.report.drawing import BASE, LEFT, RIGHT, TOP, WIDTH
from spear.report.line_chart import Line, Mark, line_chart
from spear.report.markup import Html, element, table
from spear.report.panels import by_codebook, curves
from spear.report.scales import Scale, short
from spear.report.script import page_script
from spear.report.series import Series, Tag, collect

EVIL = '<script>alert("1")</script>&'


def test_plain_text_is_escaped_wherever_it_stands() -> None:
    made = element("td", EVIL, title=EVIL)
    assert "<script" not in made
    parsed = ET.fromstring(made)
    assert parsed.text == EVIL
    assert parsed.attrib["title"] == EVIL


def test_markup_and_attributes() -> None:
    made = element("p", element("b", "x"), 3, class_="a", hidden=True, id=None, data_y="1")
    assert made == '<p class="a" hidden data-y="1"><b>x</b>3</p>'
    assert element("rect", x=1) == '<rect x="1"/>'
    assert isinstance(made, Html)


def test_a_table_aligns_its_columns_and_escapes_its_cells() -> None:
    made = table(("name", EVIL), [("a", EVIL), ("b", 2)], "lr")
    parsed = ET.fromstring(made.replace("tabindex=", "t="))
    rows = parsed.findall(".//tbody/tr")
    assert [[cell.text for cell in row] for row in rows] == [["a", EVIL], ["b", "2"]]
    assert [cell.get("class") for cell in rows[0]] == [None, "right"]
    assert table(("name",), []) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 440), (2.59, 3.21), (0, 4e5), (-0.3, 0.2), (1e-9, 3e-9)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high).ticks()
    assert 3 <= len(ticks) <= 7
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in ticks)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert len(short(ticks[1])) <= 8


def test_a_logarithmic_axis() -> None:
    scale = Scale.around([0.01, 100.0], is_log=True)
    assert scale.is_log
    assert scale.place(1.0) == pytest.approx(0.5)
    assert scale.ticks() == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert not Scale.around([0.0, 1.0], is_log=True).is_log
    near = Scale.around([2.5, 3.2], is_log=True)
    assert near.is_log
    assert len(near.ticks()) >= 3


@pytest.mark.parametrize("values", [[], [math.nan], [5.0, 5.0], [0.0], [-2.0, math.inf]])
def test_every_axis_has_a_length(values: list[float]) -> None:
    scale = Scale.around(values, zero=True)
    assert scale.high > scale.low
    assert scale.ticks()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (440, "440"), (5000, "5000"), (400_000, "400k"), (2.5e6, "2.5M"), (2e-5, "2e-05")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory/max_reserved(GiB)", Tag("memory", "max_reserved", "GiB")),
        ("train/loss", Tag("train", "loss", "")),
        ("valid/a/b(%)", Tag("valid", "a/b", "%")),
        ("odd(", Tag("", "odd(", "")),
        ("", Tag("", "", "")),
    ],
)
def test_tags_are_taken_apart(text: str, expected: Tag) -> None:
    assert Tag.parse(text) == expected


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
    assert numbers["train/loss"].steps == [1.0, 2.0]
    assert numbers["train/loss"].values[0] == 2.0
    assert math.isnan(numbers["train/loss"].values[1])
    assert lists == {"valid/by_codebook": {2.0: [1.0, 2.5]}}


def test_thinning_loses_no_peak_and_no_gap() -> None:
    values = [math.sin(i / 50) for i in range(8000)]
    values[1234], values[4321], values[6000] = 9.0, -9.0, math.nan
    thin = Series([float(i) for i in range(8000)], values).thinned(600)
    assert len(thin.steps) <= 601
    assert thin.steps == sorted(thin.steps)
    assert (thin.steps[0], thin.steps[-1]) == (0.0, 7999.0)
    pairs = dict(zip(thin.steps, thin.values, strict=True))
    assert (pairs[1234.0], pairs[4321.0]) == (9.0, -9.0)
    assert math.isnan(pairs[6000.0])
    assert all(values[int(step)] == value for step, value in pairs.items() if step != 6000)


def test_a_short_curve_stays_whole() -> None:
    series = Series([1.0, 2.0], [3.0, 4.0])
    assert series.thinned() is series


def _svg(figure: str) -> ET.Element:
    found = ET.fromstring(figure).find("svg")
    assert found is not None
    return found


def test_a_curve_lies_where_its_numbers_say() -> None:
    train = Line("train", Series([0, 10, 20, 30], [1.0, math.nan, 10.0, 100.0]), "train")
    valid = Line("valid", Series([20], [5.0]), "valid")
    svg = _svg(line_chart("loss", [train, valid], is_log=True))
    path, other = svg.findall("path")
    assert json.loads(path.attrib["data-points"]) == [[0, 1], [10, None], [20, 10], [30, 100]]
    first, second = path.attrib["d"].split(" ")  # a gap at step 10
    assert first.startswith(f"M{float(LEFT)},")
    (x2, y2), (x3, y3) = ([float(n) for n in p.split(",")] for p in second[1:].split("L"))
    low, high, is_log = json.loads(svg.attrib["data-y"])
    assert is_log
    assert y2 == pytest.approx(
        BASE - (BASE - TOP) * math.log(10 / low) / math.log(high / low), abs=0.06
    )
    assert y3 < y2
    assert LEFT < x2 < x3 <= WIDTH - RIGHT
    dots = svg.findall("circle")
    assert [dot.attrib["class"] for dot in dots] == ["dot train", "dot valid"]
    assert other.attrib["data-label"] == "valid"


def test_marks_inside_the_picture_are_drawn() -> None:
    line = Line("train", Series([0, 100], [1.0, 2.0]), "train")
    marks = [Mark(50, "restart", "on <b>"), Mark(60, "skip", "step 60"), Mark(500, "skip", "later")]
    svg = _svg(line_chart("loss", [line], marks=marks))
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["on <b>", "step 60"]


def test_bars_and_levels_by_codebook() -> None:
    made = bar_chart("loss", {"valid": [1.0, 2.0, math.nan]}, "nats", ("entropy", [5.0, 5.0, 5.0]))
    svg = _svg(made)
    assert [t.text for t in svg.iter("title")] == [
        "valid, codebook 0: 1",
        "valid, codebook 1: 2",
        *(f"entropy, codebook {k}: 5" for k in range(3)),
    ]
    low, high = (float(bar.attrib["height"]) for bar in svg.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.2)


def test_a_heat_map_has_a_cell_for_each_codebook_and_step() -> None:
    by_step = {float(step): [step / 100, step / 50] for step in range(100)}
    made = heat_map("accuracy", by_step)
    cells = list(_svg(made).iter("rect"))
    assert len(cells) == 40 * 2
    strength = [float(cell.attrib["fill-opacity"]) for cell in cells]
    assert strength[0] == min(strength)
    assert strength[-1] == max(strength)
    assert "0 (faint) to 1.98 (strong)" in made


def _constant(value: float) -> Series:
    return Series([1.0, 2.0], [value, value])


def test_values_that_explain_others_are_drawn_with_them() -> None:
    groups = curves(
        {
            "optim/learning_rate": _constant(0.04),
            "speed/step(s)": _constant(0.3),
            "train/dasheng_loss": _constant(2.0),
            "train/loss": _constant(3.0),
            "valid/loss": _constant(2.5),
            "train/wavlm_masked_accuracy": _constant(0.1),
            "train/wavlm_unmasked_accuracy": _constant(0.2),
            "train/wavlm_baseline_accuracy": _constant(0.03),
            "valid/wavlm_baseline_accuracy": _constant(0.04),
        },
        ["wavlm", "dasheng"],
    )
    names = {title: [panel.title for panel in panels] for title, panels in groups.items()}
    assert names == {
        "Losses": ["loss"],
        "Teacher wavlm": ["masked accuracy", "unmasked accuracy"],
        "Teacher dasheng": ["loss"],
        "Optimiser": ["learning rate"],
        "Speed, memory, data, health": ["speed: step"],
    }
    assert list(groups) == list(names)
    assert set(groups["Losses"][0].lines) == {"train", "valid"}
    assert all(panel.reference == _constant(0.04) for panel in groups["Teacher wavlm"])


def test_a_single_loss_is_shown_once() -> None:
    groups = curves({"train/loss": _constant(3.0), "train/ctc_loss": _constant(3.0)}, [])
    assert [panel.name for panel in groups["Losses"]] == ["loss"]


def test_lists_become_bars_and_heat_maps() -> None:
    lists = {
        "valid/wavlm_codebook_masked_loss(nats)": {10.0: [1.0, 2.0], 20.0: [0.5, 1.5]},
        "valid/wavlm_codebook_unigram_entropy(nats)": {10.0: [5.0, 5.0], 20.0: [5.0, 5.0]},
        "train/other_list": {10.0: [1.0]},
    }
    drawn = by_codebook(lists, ["wavlm"])
    assert {title: len(pictures) for title, pictures in drawn.items()} == {
        "Teacher wavlm": 2,
        "Losses": 1,
    }
    bars, heat = drawn["Teacher wavlm"]
    assert "valid, codebook 1: 1.5" in bars
    assert "unigram entropy, codebook 0: 5" in bars
    assert "step 10, codebook 1: 2" in heat


def test_the_script_knows_the_margins() -> None:
    script = page_script()
    assert "@" not in script
    assert f"left = {LEFT}, right = {WIDTH} - {RIGHT}, top_ = {TOP}, base = {BASE}" in script
