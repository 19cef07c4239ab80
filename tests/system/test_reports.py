"""What reports share: tables, files that are left alone, pictures with and without matplotlib."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear.system import markdown as reports
from spear.system.markdown import (
    code,
    draw_histograms,
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    write_markdown,
)

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_table_has_its_cells_and_its_sides() -> None:
    rows = [("train", "1,200"), ("a|b", "two\nlines")]
    assert markdown_table(("split", "cuts"), rows, "lr").splitlines() == [
        "| split | cuts |",
        "| --- | ---: |",
        "| train | 1,200 |",
        "| a\\|b | two lines |",
    ]
    assert markdown_table(("a", "b"), []).splitlines() == ["| a | b |", "| --- | --- |"]


def test_text_is_shown_as_it_is() -> None:
    assert [code("a*b*<unk>"), code("a`b"), code(" ")] == ["`a*b*<unk>`", "`` a`b ``", ""]
    assert embed_picture(Path("x/my data_report.png"), "all") == "![all](my%20data_report.png)"


def test_blocks_are_separated_and_the_same_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    write_markdown(path, ["# Title", "", "text"])
    assert path.read_text() == "# Title\n\ntext\n"
    stamp = path.stat()
    write_markdown(path, ["# Title", "text"])
    assert path.stat() == stamp
    write_markdown(path, ["# Other"])
    assert path.read_text() == "# Other\n"


@pytest.mark.usefixtures("pictures")
def test_a_figure_becomes_a_png_once_and_pyplot_knows_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    stamps = []
    for _ in range(2):
        figure = new_figure(2.0, 1.0)
        assert figure is not None
        figure.add_subplot().plot([1, 2])
        save_figure(figure, path)
        stamps.append((path.stat().st_ino, path.stat().st_mtime_ns))
    assert path.read_bytes().startswith(PNG)
    assert stamps[0] == stamps[1]
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_without_matplotlib_there_is_no_figure_and_one_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    assert new_figure(2.0, 1.0) is None
    assert [record.getMessage() for record in caplog.records] == [
        "report without a picture: the picture of a report needs matplotlib.figure"
    ]
    assert not draw_histograms(tmp_path / "a.png", {"a": np.ones(3)}, "x", "y")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, pictures: None) -> list[Any]:
    """The figures that are saved during a test."""
    figures: list[Any] = []

    def keep(figure: Any, path: Path) -> None:
        figures.append(figure)
        save_figure(figure, path)

    monkeypatch.setattr(reports, "save_figure", keep)
    return figures


def test_histograms_count_every_value_over_the_same_bins(drawn: list[Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    groups = {"$5 or $6": random.uniform(1, 9, 100), "none": np.zeros(0), "b": np.array([2.0, 12])}
    path = tmp_path / "a.png"
    assert draw_histograms(path, groups, "duration (s)", "cuts")
    assert path.read_bytes().startswith(PNG)
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("$5 or $6", "b")
    for axes, count in ((first, 100), (second, 2)):
        assert sum(patch.get_height() for patch in axes.patches) == count
        assert axes.get_xlim() == (pytest.approx(groups["$5 or $6"].min()), 12.0)
    assert second.get_xlabel() == "duration (s)"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (np.full(30, 10.0), "linear"),
        (np.array([1.0, 1.1, 1.2, 900.0]), "log"),
        (np.array([0.0, 1.0, 1.0, 900.0]), "linear"),
    ],
)
def test_histograms_of_equal_and_of_far_values(
    drawn: list[Any], tmp_path: Path, values: np.ndarray, scale: str
) -> None:
    assert draw_histograms(tmp_path / "a.png", {"a": values}, "x", "y")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == scale
    assert sum(patch.get_height() for patch in axes.patches) == len(values)


def test_nothing_to_draw(drawn: list[Any], tmp_path: Path) -> None:
    assert not draw_histograms(tmp_path / "a.png", {"a": np.zeros(0)}, "x", "y")
    assert drawn == []
