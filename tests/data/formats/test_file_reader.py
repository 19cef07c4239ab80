"""Byte ranges of files: whole whatever the system gives at once, refused when missing."""

import os
import pickle

import pytest

from spear.data.formats.tars import FileReader
from spear.errors import DataError


@pytest.fixture
def files(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes(range(number, number + 100)))
    return [tmp_path / str(number) for number in range(4)]


def test_a_range_is_whole_when_the_system_gives_it_in_pieces(files, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    assert FileReader().read(files[1], 10, 50) == bytes(range(11, 61))
    with pytest.raises(DataError, match="ends before byte 101"):
        FileReader().read(files[1], 99, 2)


def test_a_missing_file_is_named(files):
    with pytest.raises(DataError, match="missing: cannot be read"):
        FileReader().read(files[0].with_name("missing"), 0, 1)


def test_few_files_are_open_at_once_and_all_can_be_read(files):
    reader = FileReader(max_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, path in enumerate(files):
            assert reader.read(path, 0, 1) == bytes([number])
            assert len(os.listdir("/proc/self/fd")) <= before + 2
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.max_open == 2 and copy.read(files[3], 0, 1) == b"\x03"
    reader.close()
    copy.close()
    assert len(os.listdir("/proc/self/fd")) == before
