"""`report.md` of a run: tables of what was measured, whatever a line of metrics holds."""

import json
from pathlib import Path

from spear.training.logs.report import write_report
from spear.training.position import Position


def _report(folder: Path, records: list[dict[str, object]]) -> str:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    position = Position(step=120, epoch=2, audio_s=7200.0, schedule_unit_s=600.0)
    write_report(folder, position, 90.0, 3, folder / "checkpoints" / "step-00000120")
    return (folder / "report.md").read_text("utf-8")


def test_facts_and_tables(tmp_path: Path) -> None:
    text = _report(
        tmp_path,
        [
            {"step": 60, "epoch": 1, "train/loss": 3.25},
            {"step": 120, "epoch": 2, "train/loss": 2.5, "train/extra": 1.0},
            {"step": 120, "epoch": 2, "valid/loss": 2.25},
        ],
    )
    for row in (
        "| steps | 120 |",
        "| epochs begun | 3 |",
        "| audio seen | 2 h |",
        "| skipped steps (non-finite) | 3 |",
        "| last checkpoint | `checkpoints/step-00000120` |",
        "| step | extra | loss |",
        "| 60 |  | 3.25 |",
        "| 120 | 1 | 2.5 |",
        "| 120 | 2.25 |",
    ):
        assert row in text


def test_values_by_codebook_stay_out_of_the_tables(tmp_path: Path, pictures: None) -> None:
    text = _report(
        tmp_path,
        [
            {"step": 60, "train/loss": 3.0, "train/by_codebook": [1.0, 2.0]},
            {"step": 120, "valid/loss": 2.0, "valid/by_codebook": [1.0, 2.0]},
        ],
    )
    assert "by_codebook" not in text
    assert (tmp_path / "report.png").is_file()


def test_a_long_run_has_a_short_table(tmp_path: Path) -> None:
    records = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 1001)]
    rows = [
        line for line in _report(tmp_path, records).splitlines() if line[:3].strip("| ").isdigit()
    ]
    assert 10 <= len(rows) <= 12
    assert rows[0].startswith("| 1 |")
    assert rows[-1].startswith("| 1000 |")
