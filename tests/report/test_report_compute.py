"""The ledger read back: the last line of a process counts, and sums are by stage and device."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import Page, process

from spear.report.compute import ledger_section, read_processes
from spear.system import ledger
from spear.training.logs.metrics import read_jsonl

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
GPUS = {"gpu": "NVIDIA H200", "num_gpus": 8, "num_measured_gpus": 8}


def rows_of(*lines: dict[str, object]) -> list[list[str]]:
    """Returns the cells of the table of a ledger."""
    text = ledger_section(read_processes(lines)).replace("</td>", "</td>|")
    cells = "".join(Page(text).texts).split("|")
    cells = [cells[0].partition("audio (hours)")[2], *cells[1:-1]]
    return [cells[i : i + 9] for i in range(0, len(cells), 9)]


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


def test_sums_by_stage_and_device() -> None:
    rows = rows_of(
        process("a", "shard"),
        process("b", "shard", wall_s=1800.0),
        process("c", "pretrain", **GPUS, gpu_hours=8.0, energy_wh=5600.0, audio_hours=900.0),
        process("d", "pretrain", **GPUS, gpu_hours=8.0, energy_wh=4400.0, audio_hours=800.0),
    )
    assert rows == [
        ["shard", "A CPU, 16 cores", "2", "", "1 h 30 min", "4", "", "", "20"],
        ["pretrain", "8 x NVIDIA H200", "2", "", "2 h 0 min", "4", "16", "10", "1700"],
        ["all", "", "4", "", "3 h 30 min", "8", "16", "10", "1720"],
    ]


def test_an_empty_ledger_says_so() -> None:
    assert "No ledger" in ledger_section([])
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
def test_how_a_process_ended(fields: dict[str, object], state: str) -> None:
    (one,) = read_processes([process("a", "pretrain", **fields)])
    assert one.state(NOW) == state


def test_unfinished_processes_are_named_and_counted() -> None:
    lines = [
        process("a", "pretrain", event="running", **GPUS, gpu_hours=8.0),
        process("b", "shard"),
    ]
    text = Page(ledger_section(read_processes(lines))).text
    assert "pretrain of 2026-01-01T10:00:00+00:00: killed after 1 h 0 min." in text
    assert [row[3] for row in rows_of(*lines)] == ["1", "", "1"]


def test_energy_of_a_part_of_the_gpus_is_said_to_be_so() -> None:
    lines = [
        process("a", "pretrain", **GPUS, gpu_hours=30.0, energy_wh=100.0),
        process("b", "pretrain", **{**GPUS, "num_measured_gpus": 0}, gpu_hours=10.0),
    ]
    assert "measured in 75.0% of the GPU hours" in ledger_section(read_processes(lines))
    assert "measured in" not in ledger_section(read_processes(lines[:1]))


def test_what_the_ledger_writes_can_be_read(tmp_path: Path) -> None:
    with ledger.recording("shard", SimpleNamespace(out=str(tmp_path)), "out"):
        ledger.note(audio_hours=2.0, first_step=7)
    (one,) = read_processes(read_jsonl(tmp_path / ledger.FILE_NAME))
    assert (one.command, one.event, one.exit_status) == ("shard", "end", 0)
    assert (one.audio_hours, one.notes) == (2.0, {"first_step": 7})
    assert one.device.endswith(" cores")
    assert one.state(datetime.now(timezone.utc) + timedelta(days=9)) == "done"
