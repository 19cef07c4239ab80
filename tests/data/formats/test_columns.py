"""Columns on disk: what was written comes back, in safetensors' own layout, and damage is found."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from spear.data.formats.columns import open_columns, write_columns
from spear.errors import DataError

SHAPES = {"a": ("U8", (3,)), "b": ("U64", (2, 2)), "none": ("U32", (0,)), "c": ("I64", (5,))}


def write(path, fill=7):
    with write_columns(path, SHAPES, {"who": "me"}) as columns:
        for name, column in columns.items():
            column[...] = np.arange(column.size).reshape(column.shape) + fill
            assert column.shape == SHAPES[name][1]
    return path


def test_columns_come_back_mapped_and_read_only(tmp_path):
    columns, metadata = open_columns(write(tmp_path / "x"))
    assert metadata == {"who": "me"}
    assert {name: column.dtype for name, column in columns.items()} == {
        "a": np.uint8,
        "b": np.uint64,
        "none": np.uint32,
        "c": np.int64,
    }
    assert columns["b"].tolist() == [[7, 8], [9, 10]] and columns["a"].tolist() == [7, 8, 9]
    assert isinstance(columns["b"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        columns["a"][0] = 1


def test_the_safetensors_package_reads_the_same(tmp_path):
    path = write(tmp_path / "x.safetensors")
    expected = load_file(path)
    for name, column in open_columns(path)[0].items():
        assert np.array_equal(column, expected[name])


def test_a_failing_writer_leaves_the_file_as_it_was(tmp_path):
    path = write(tmp_path / "x")
    with pytest.raises(RuntimeError), write_columns(path, SHAPES, {}) as columns:
        columns["a"][...] = 1
        raise RuntimeError("interrupted")
    assert open_columns(path)[0]["a"].tolist() == [7, 8, 9]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_reader_keeps_its_view_of_a_replaced_file(tmp_path):
    columns, _ = open_columns(write(tmp_path / "x"))
    write(tmp_path / "x", fill=100)
    assert columns["a"].tolist() == [7, 8, 9]
    assert open_columns(tmp_path / "x")[0]["a"].tolist() == [100, 101, 102]


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, keep):
    path = write(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a readable file of columns"):
        open_columns(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x"
    for content in (b"{}" * 100, (2).to_bytes(8, "little") + b"[]", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable file of columns"):
            open_columns(path)
    with pytest.raises(FileNotFoundError):
        open_columns(tmp_path / "y")
