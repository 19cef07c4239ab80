"""The ledger tells what a process cost, also of one that was killed, and never stops a stage."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spear import __version__
from spear.errors import DataError
from spear.system import ledger
from spear.system.ledger import FILE_NAME, append_line, output_folder, recording


@dataclass
class Section:
    output_dir: str = ""


@dataclass
class Config:
    output_dir: str = ""
    output: str = ""
    shards: list[str] = field(default_factory=list)
    train: Section = field(default_factory=Section)
    job: int = 0
    num_jobs: int = 1


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text("utf-8").splitlines()]


def test_a_stage_leaves_its_cost(tmp_path: Path) -> None:
    with recording("shard", Config(str(tmp_path)), "output_dir"):
        begun = time.process_time()
        while time.process_time() < begun + 0.05:
            pass
        ledger.note(audio_hours=1.5)
        ledger.note(audio_hours=0.25, first_step=100)
        ledger.note(last_step=120)
    first, last = lines_of(tmp_path)
    assert (first["event"], last["event"]) == ("begin", "end")
    assert first["id"] == last["id"]
    assert first["exit_status"] is None
    assert last["exit_status"] == 0
    assert last["command"] == "shard"
    assert last["audio_hours"] == 1.75
    assert last["notes"] == {"first_step": 100, "last_step": 120}
    assert 0.05 <= float(str(last["cpu_s"])) < 5
    assert 0.05 <= float(str(last["wall_s"])) < 5
    assert last["spear_version"] == __version__
    assert last["cpu"]
    assert int(str(last["cpu_cores"])) >= 1
    assert (last["gpu"], last["num_gpus"], last["energy_wh"]) == (None, 0, None)


def test_nothing_names_the_machine(tmp_path: Path) -> None:
    with recording("shard", Config(str(tmp_path)), "output_dir"):
        pass
    text = (tmp_path / FILE_NAME).read_text("utf-8")
    assert f'"{socket.gethostname()}"' not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("broken"), 2),
        (ValueError("a bug"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(None), 0),
        (SystemExit("words"), 1),
    ],
)
def test_the_status_is_the_one_of_the_process(
    error: BaseException, status: int, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), recording("embed", Config(str(tmp_path)), "output_dir"):
        raise error
    assert lines_of(tmp_path)[-1]["exit_status"] == status


def test_jobs_say_which_they_are(tmp_path: Path) -> None:
    config = Config(str(tmp_path), job=2, num_jobs=4)
    with recording("extract-tokens", config, "output_dir"):
        pass
    assert lines_of(tmp_path)[-1]["notes"] == {"job": 2, "num_jobs": 4}


def test_a_long_stage_writes_now_and_then(tmp_path: Path) -> None:
    with recording("pretrain", Config(str(tmp_path)), "output_dir", beat_s=0.02):
        deadline = time.monotonic() + 10
        while len(lines_of(tmp_path)) < 4 and time.monotonic() < deadline:
            ledger.note(audio_hours=0.5)
            time.sleep(0.01)
    found = lines_of(tmp_path)
    assert [line["event"] for line in found[:2]] == ["begin", "running"]
    assert found[-1]["event"] == "end"
    hours = [float(str(line["audio_hours"])) for line in found]
    assert hours == sorted(hours)
    assert hours[-2] > 0


def test_a_killed_process_keeps_what_it_had_written(tmp_path: Path) -> None:
    code = (
        "import sys, time; from types import SimpleNamespace\n"
        "from spear.system.ledger import recording\n"
        "with recording('pretrain', SimpleNamespace(out=sys.argv[1]), 'out', beat_s=0.02):\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 30
    while not (tmp_path / FILE_NAME).is_file() or len(lines_of(tmp_path)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = lines_of(tmp_path)[-1]
    assert last["event"] == "running"
    assert float(str(last["wall_s"])) > 0


def test_a_folder_that_the_stage_makes_late(tmp_path: Path) -> None:
    folder = tmp_path / "late"
    with recording("shard", Config(str(folder)), "output_dir"):
        folder.mkdir()
    assert [line["event"] for line in lines_of(folder)] == ["end"]


def test_no_folder_is_made_for_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "mistyped"
    with pytest.raises(DataError), recording("shard", Config(str(folder)), "output_dir"):
        raise DataError("no such folder")
    assert not folder.exists()


@pytest.mark.parametrize("obstacle", ["folder", "full disk"])
def test_what_cannot_be_written_is_one_warning(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle == "folder":
        (tmp_path / FILE_NAME).mkdir()
    else:
        (tmp_path / FILE_NAME).symlink_to("/dev/full")
    done = False
    stage = recording("shard", Config(str(tmp_path)), "output_dir", beat_s=0.01)
    with caplog.at_level(logging.WARNING), stage:
        time.sleep(0.05)
        done = True
    assert done
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with recording("pretrain", Config(str(tmp_path)), "output_dir"):
        ledger.note(audio_hours=1.0)
    assert not (tmp_path / FILE_NAME).exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with recording("pretrain", Config(str(tmp_path)), "output_dir"):
        pass
    assert lines_of(tmp_path)[-1]["num_ranks"] == 8


def test_notes_without_a_stage_go_nowhere() -> None:
    ledger.note(audio_hours=1.0, step=3)
    assert ledger._open == []


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("output_dir", "a/shards"),
        ("output/..", "b"),
        ("shards", "c/1"),
        ("train.output_dir", "d/run"),
        ("", None),
    ],
)
def test_the_folder_of_a_stage(output: str, expected: str | None) -> None:
    config = Config("a/shards", "b/q.safetensors", ["c/1", "c/2"], Section("d/run"))
    assert output_folder(config, output) == (Path(expected) if expected else None)
    assert output_folder(Config(), output) is None


def test_lines_of_processes_do_not_mix(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_append_many, [(tmp_path / FILE_NAME, number) for number in range(4)]))
    found = lines_of(tmp_path)
    assert len(found) == 4 * 50
    for number in range(4):
        own = [line["count"] for line in found if line["writer"] == number]
        assert own == list(range(50))
    assert all(line["filling"] == "x" * 3000 for line in found)


def _append_many(arguments: tuple[Path, int]) -> None:
    path, number = arguments
    for count in range(50):
        append_line(path, {"writer": number, "count": count, "filling": "x" * 3000})


def test_half_a_line_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('{"id": "half')
    append_line(path, {"id": "whole"})
    half, whole = path.read_text("utf-8").splitlines()
    assert half == '{"id": "half'
    assert json.loads(whole) == {"id": "whole"}


def test_recordings_leave_no_thread(tmp_path: Path) -> None:
    with recording("shard", Config(str(tmp_path)), "output_dir"):
        assert "spear-ledger" in _threads()
    assert "spear-ledger" not in _threads()


def _threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


def test_stages_may_be_nested(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    os.makedirs(outer)
    os.makedirs(inner)
    with recording("a", Config(str(outer)), "output_dir"):
        with recording("b", Config(str(inner)), "output_dir"):
            ledger.note(audio_hours=1.0)
        ledger.note(audio_hours=2.0)
    assert lines_of(inner)[-1]["audio_hours"] == 1.0
    assert lines_of(outer)[-1]["audio_hours"] == 2.0
