"""Byte ranges of files: whole whatever the system gives at once, counted, refused when missing."""

import os
import pickle

import pytest

from spear.data.formats.tars import FileReader, ReadTotal
from spear.errors import DataError


@pytest.fixture
def files(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes(range(number, number + 100)))
    return [tmp_path / str(number) for number in range(4)]


@pytest.fixture(autouse=True)
def total(monkeypatch):
    monkeypatch.setattr(FileReader, "total", ReadTotal())
    return FileReader.total


def test_a_range_is_whole_when_the_system_gives_it_in_pieces(files, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    assert FileReader().read(files[1], 10, 50) == bytes(range(11, 61))
    with pytest.raises(DataError, match="ends before byte 101"):
        FileReader().read(files[1], 99, 2)


def test_bytes_and_seconds_of_all_readers_are_added_up(files, total):
    first, second = FileReader(), FileReader()
    first.read(files[0], 0, 30)
    second.read(files[1], 50, 50)
    assert total.num_bytes == 80 and 0 < total.seconds < 1
    with pytest.raises(DataError, match="cannot be read"):
        first.read(files[0].with_name("missing"), 0, 1)
    assert total.num_bytes == 80


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
