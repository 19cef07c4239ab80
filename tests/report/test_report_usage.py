"""Use of tokens: shares sorted by frequency and averaged over codebooks."""

import json
from pathlib import Path

import pytest
from run_folders import Page, make_run

from spear.report.command import make_page
from spear.report.panels import panel_groups
from spear.report.run_files import Run

TARGET = [[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]
PREDICTED = [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
TABLES = {
    "valid/wavlm_predicted_tokens": {"step": 60, "rows": PREDICTED},
    "valid/wavlm_target_tokens": {"step": 60, "rows": TARGET},
}


def test_tokens_are_sorted_by_frequency(tmp_path: Path) -> None:
    (group,) = panel_groups([Run(tmp_path, tables=TABLES)])
    assert group.title == "Teacher wavlm"
    (chart,) = group.charts
    points = {one["label"]: (one["role"], one["x"], one["y"]) for one in chart.traces}
    assert points == {
        "target": ("reference", [1, 2, 3], [0.6, 0.25, 0.15]),
        "predicted": ("valid", [1, 2, 3], [0.75, 0.25, None]),
    }


@pytest.mark.parametrize(
    "table",
    [None, 5, {}, {"rows": None}, {"rows": []}, {"rows": [[]]}, {"rows": [[1], [1, 2]]}],
)
def test_tables_of_another_form_are_passed_over(table: object, tmp_path: Path) -> None:
    assert panel_groups([Run(tmp_path, tables={"valid/wavlm_target_tokens": table})]) == []
    assert panel_groups([Run(tmp_path, tables={"valid/other": {"rows": TARGET}})]) == []


def test_the_picture_stands_with_its_teacher(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "tables.json").write_text(json.dumps(TABLES))
    (folder / "hang-00003.txt").write_text("a stack")
    page = Page(make_page([folder]))
    labels = list(page.charts)
    (number,) = [i for i, label in enumerate(labels) if label.startswith("use of tokens")]
    assert "by token, by frequency: predicted ends at" in labels[number]
    assert labels[number - 1].startswith(("masked accuracy", "masked loss", "information"))
    assert "The run hung at least once; what it was doing: hang-00003.txt." in page.text
