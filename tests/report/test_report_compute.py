"""The ledger read back: the last line of a process counts, and sums are by stage and device."""

from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import Page, process, write_lines

from spear.report import compute
from spear.report.command import make_page
from spear.report.compute import read_processes
from spear.system import ledger
from spear.training.logs.metrics import read_jsonl

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
GPUS = {"gpu": "NVIDIA H200", "num_gpus": 8, "num_measured_gpus": 8}


def page_of(folder: Path, *lines: dict[str, object]) -> Page:
    """Returns the page about a ledger."""
    write_lines(folder / ledger.FILE_NAME, list(lines))
    return Page(make_page([folder]))


def test_the_last_line_of_a_process_counts() -> None:
    found = read_processes(
        [
            process("a", "shard", event="begin", wall_s=0.0),
            process("b", "embed", event="begin", started="2025-12-31T10:00:00+00:00"),
            process("a", "shard", event="end", wall_s=50.0),
        ]
    )
    assert [(one.command, one.event, one.wall_s) for one in found] == [
        ("embed", "begin", 3600.0),
        ("shard", "end", 50.0),
    ]


def test_sums_by_stage_and_device(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        process("a", "shard"),
        process("b", "shard", wall_s=1800.0),
        process("c", "pretrain", **GPUS, gpu_hours=8.0, energy_wh=5600.0, audio_hours=900.0),
        process("d", "pretrain", **GPUS, gpu_hours=8.0, energy_wh=4400.0, audio_hours=800.0),
    )
    assert page.rows("stage") == [
        ["shard", "A CPU, 16 cores", "2", "", "1 h 30 min", "4", "", "", "20"],
        ["pretrain", "8 x NVIDIA H200", "2", "", "2 h 0 min", "4", "16", "10", "1700"],
        ["all", "", "4", "", "3 h 30 min", "8", "16", "10", "1720"],
    ]


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    assert "No ledger" in page_of(tmp_path).text
    assert read_processes([{}, {"id": 5, "command": "x"}]) == []


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "done"),
        ({"exit_status": 2}, "failed with status 2"),
        ({"exit_status": 143}, "stopped by signal 15"),
        ({"event": "running", "wall_s": 7000.0}, "running"),
        ({"event": "running", "wall_s": 3600.0}, "killed"),
        ({"event": "begin", "wall_s": 0.0}, "killed"),
        ({"event": "begin", "started": "?"}, "killed"),
        ({"event": "begin", "started": "2026-01-01T10:00:00"}, "killed"),
    ],
)
def test_how_a_process_ended(
    fields: dict[str, object], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_now", lambda: NOW)
    (one,) = read_processes([process("a", "pretrain", **fields)])
    assert one.state == state


def test_unfinished_processes_are_named_and_counted(tmp_path: Path) -> None:
    lines = [
        process("a", "pretrain", event="running", **GPUS, gpu_hours=8.0),
        process("b", "shard"),
    ]
    page = page_of(tmp_path, *lines)
    assert "pretrain of 2026-01-01T10:00:00+00:00: killed after 1 h 0 min." in page.text
    assert [row[3] for row in page.rows("stage")] == ["1", "", "1"]


def test_energy_of_a_part_of_the_gpus_is_said_to_be_so(tmp_path: Path) -> None:
    lines = [
        process("a", "pretrain", **GPUS, gpu_hours=30.0, energy_wh=100.0),
        process("b", "pretrain", **{**GPUS, "num_measured_gpus": 0}, gpu_hours=10.0),
    ]
    assert "measured in 75.0% of the GPU hours" in page_of(tmp_path, *lines).text
    assert "measured in" not in page_of(tmp_path, lines[0]).text


def test_what_the_ledger_writes_can_be_read(tmp_path: Path) -> None:
    with ledger.recording("shard", SimpleNamespace(out=str(tmp_path)), "out"):
        ledger.note(audio_hours=2.0, first_step=7)
    (one,) = read_processes(read_jsonl(tmp_path / ledger.FILE_NAME))
    assert (one.command, one.event, one.exit_status) == ("shard", "end", 0)
    assert (one.audio_hours, one.notes) == (2.0, {"first_step": 7})
    assert one.device.endswith(" cores")
    assert one.state == "done"
