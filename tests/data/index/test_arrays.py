"""Arrays on disk: what was written comes back, in numpy's own files, and damage is found."""

import numpy as np
import pytest

from spear.data.index import arrays as module
from spear.data.index.arrays import map_arrays, write_arrays
from spear.errors import DataError

ARRAYS = {
    "a": np.arange(3, dtype=np.uint8),
    "b": np.arange(4, dtype=np.uint64).reshape(2, 2),
    "none": np.zeros(0, np.uint32),
    "c": np.arange(5),
}


def test_arrays_come_back_mapped_and_read_only(tmp_path):
    write_arrays(tmp_path / "x", ARRAYS)
    found = map_arrays(tmp_path / "x", ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert np.array_equal(np.load(tmp_path / "x" / f"{name}.npy"), array)
    assert isinstance(found["b"].base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


def test_a_failing_writer_leaves_nothing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync", full)
    with pytest.raises(OSError, match="No space"):
        write_arrays(tmp_path / "x", ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_has_written_stays(tmp_path, monkeypatch):
    rename = module.os.rename

    def late(source, target):
        monkeypatch.setattr(module.os, "rename", rename)
        write_arrays(tmp_path / "x", {"a": ARRAYS["a"]})
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", late)
    names = iter((".1", ".2"))
    monkeypatch.setattr(module, "partial_name", lambda _: next(names))
    write_arrays(tmp_path / "x", {"a": np.zeros(3, np.uint8)})
    assert map_arrays(tmp_path / "x", "a")["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, keep):
    write_arrays(tmp_path / "x", ARRAYS)
    path = tmp_path / "x" / "b.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x: not readable .*; remove it"):
        map_arrays(tmp_path / "x", ["b"])


def test_other_files_are_refused(tmp_path):
    write_arrays(tmp_path / "x", ARRAYS)
    np.save(tmp_path / "x" / "objects.npy", np.array([None]), allow_pickle=True)
    for content, name in ((b"{}" * 100, "a"), (b"\xff" * 64, "b")):
        (tmp_path / "x" / f"{name}.npy").write_bytes(content)
    for name in ("a", "b", "objects", "missing"):
        with pytest.raises(DataError, match="not readable"):
            map_arrays(tmp_path / "x", [name])
