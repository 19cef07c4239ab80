"""Use of tokens: shares sorted by frequency and averaged over codebooks."""

import json
from pathlib import Path

import pytest
from run_folders import Page, make_run

from spear.report.command import make_page
from spear.report.token_usage import usage_pictures

TARGET = [[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]
PREDICTED = [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
TABLES = {
    "valid/wavlm_predicted_tokens": {"step": 60, "rows": PREDICTED},
    "valid/wavlm_target_tokens": {"step": 60, "rows": TARGET},
}


def test_tokens_are_sorted_by_frequency() -> None:
    points = Page(usage_pictures(TABLES)["wavlm"]).points("use of tokens")
    assert points["target"] == [[1, 0.6], [2, 0.25], [3, 0.15]]
    assert points["predicted"] == [[1, 0.75], [2, 0.25], [3, None]]


@pytest.mark.parametrize(
    "table",
    [None, 5, {}, {"rows": None}, {"rows": []}, {"rows": [[]]}, {"rows": [[1], [1, 2]]}],
)
def test_tables_of_another_form_are_passed_over(table: object) -> None:
    assert usage_pictures({"valid/wavlm_target_tokens": table}) == {}
    assert usage_pictures({"valid/other": {"rows": TARGET}}) == {}


def test_the_picture_stands_with_its_teacher(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "tables.json").write_text(json.dumps(TABLES))
    (folder / "hang-00003.txt").write_text("a stack")
    page = Page(make_page(folder))
    labels = [svg["aria-label"] for svg in page.all("svg")]
    (number,) = [i for i, label in enumerate(labels) if label.startswith("use of tokens")]
    assert "by token, by frequency: predicted ends at" in labels[number]
    assert labels[number - 1].startswith(("masked accuracy", "masked loss", "information"))
    assert "The run hung at least once; what it was doing: hang-00003.txt." in page.text
