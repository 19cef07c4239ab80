"""Files appear whole or not at all."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spear.errors import ConfigError
from spear.system.files import (
    atomic_folder,
    atomic_path,
    partial_name,
    remove_partials,
    sha256_of,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n "old": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_others_may_read_what_a_private_writer_wrote(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    with atomic_path(tmp_path / "a") as partial:
        partial.touch(0o600)
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "within").mkdir()
        (folder / "within" / "c").touch(0o600)
    assert (tmp_path / "a").stat().st_mode == usual
    assert (tmp_path / "b" / "within" / "c").stat().st_mode == usual


def test_the_temporary_name_keeps_all_suffixes(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "cuts.000000.jsonl.gz") as partial:
        assert partial.name.endswith(".jsonl.gz")
        partial.write_bytes(b"x")
    assert (tmp_path / "cuts.000000.jsonl.gz").read_bytes() == b"x"


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["two"]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as folder:
        raise RuntimeError
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["two"]


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path, dead_pid: int) -> None:
    own = partial_name("x", ".frames.npy")
    assert own.startswith(".x.partial-") and own.endswith(f"-{os.getpid()}.frames.npy")
    (tmp_path / own).write_text("left by a process of the same number")
    (tmp_path / own.replace(f"-{os.getpid()}", f"-{dead_pid}")).write_text("half")
    (tmp_path / partial_name("b").replace(f"-{os.getpid()}", f"-{dead_pid}")).mkdir()
    (tmp_path / ".a.partial-12.tar").write_text("of nobody")
    (tmp_path / "a.tar").write_text("whole")
    remove_partials(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        neighbour = tmp_path / partial_name("x", ".tar").replace(
            f"-{os.getpid()}.", f"-{process.pid}."
        )
        fresh, old = tmp_path / ".y.partial-elsewhere-1.tar", tmp_path / ".z.partial-elsewhere-1"
        for path in (neighbour, fresh, old):
            path.write_text("half")
        os.utime(old, (0, 0))
        remove_partials(tmp_path)
        assert set(tmp_path.iterdir()) == {neighbour, fresh}
        process.communicate(b"\n")
    remove_partials(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh}


def test_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"spear" * 1000)
    assert sha256_of(tmp_path / "x", chunk_bytes=7) == hashlib.sha256(b"spear" * 1000).hexdigest()


OWNED = ("mark.json", "*.py", "parts")


@pytest.mark.parametrize("content", [[], ["mark.json"], ["mark.json", "a.py", "parts/b"]])
def test_a_folder_of_its_own_kind_is_replaced(tmp_path: Path, content: list[str]) -> None:
    fill(tmp_path / "out", content)
    with atomic_folder(tmp_path / "out", OWNED) as folder:
        (folder / "mark.json").write_text("new")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mark.json"]


@pytest.mark.parametrize("content", [["config.yaml"], ["a.py"], ["mark.json", "mine/precious"]])
def test_what_another_wrote_is_not_replaced(tmp_path: Path, content: list[str]) -> None:
    fill(tmp_path / "out", content)
    with (
        pytest.raises(ConfigError, match="is not replaced"),
        atomic_folder(tmp_path / "out", OWNED),
    ):
        raise AssertionError("it was opened")
    assert all((tmp_path / "out" / name).is_file() for name in content)


def test_no_folder_above_is_replaced_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, ["within/precious", "file"])
    monkeypatch.chdir(tmp_path / "within")
    for place, said in ((".", "not replaced"), ("..", "not replaced"), ("/", "not replaced")):
        with pytest.raises(ConfigError, match=said), atomic_folder(Path(place), OWNED):
            raise AssertionError("it was opened")
    for place in ("../file", "../file/below"):
        with pytest.raises(ConfigError, match="is a file"), atomic_folder(Path(place)):
            raise AssertionError("it was opened")
    assert (tmp_path / "within" / "precious").is_file() and (tmp_path / "file").is_file()


def fill(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
