"""Files appear whole or not at all."""

import hashlib
from pathlib import Path

import pytest

from spear.files import atomic_folder, atomic_path, remove_partials, sha256_of, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n "old": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


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


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.partial-12.tar").write_text("half")
    (tmp_path / ".b.partial-13").mkdir()
    (tmp_path / "a.tar").write_text("whole")
    remove_partials(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"spear" * 1000)
    assert sha256_of(tmp_path / "x", chunk_bytes=7) == hashlib.sha256(b"spear" * 1000).hexdigest()
