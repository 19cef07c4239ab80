"""Tar files in lhotse's Shar layout: for every cut its data, then a JSON manifest of the data.

`PairTarWriter` writes them with equal bytes for equal content, `index_pairs` finds where each
cut's data lies, and `FileReader` reads such places at random without keeping more than a few
files open.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from spear.errors import DataError
from spear.system.files import sha256_of


class TarPair(NamedTuple):
    """Where the data of one cut lies in a tar file."""

    id: str
    """Cut id."""
    offset: int
    """First byte of the data in the tar file."""
    size: int
    """Bytes of data."""
    manifest_offset: int
    """First byte of the JSON manifest."""
    manifest_size: int
    """Bytes of the JSON manifest."""


class PairTarWriter:
    """Writes (data, manifest) pairs; a context manager.

    Members carry no time, owner or mode of their own, so that the same cuts give the same file
    and a checksum can be compared between runs.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path` for writing; an existing file is replaced."""
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def add(self, cut_id: str, suffix: str, data: bytes, manifest: dict[str, Any]) -> None:
        """Appends one cut's data as `{cut_id}.{suffix}` and its manifest as `{cut_id}.json`."""
        self._add_member(f"{cut_id}.{suffix}", data)
        self._add_member(f"{cut_id}.json", (json.dumps(manifest) + "\n").encode("utf-8"))

    def _add_member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def __enter__(self) -> "PairTarWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()


def index_pairs(path: Path) -> list[TarPair]:
    """Lists the cuts of a tar file in their order, without reading the data.

    Raises:
        DataError: The file is missing, cut short, no tar file, or not made of pairs.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable tar file ({error}); make this shard again") from (
            error
        )
    if len(members) % 2:
        raise DataError(f"{path}: cut short after {members[-1].name}; make this shard again")
    if members and members[-1].offset_data + members[-1].size > path.stat().st_size:
        raise DataError(f"{path}: cut short in {members[-1].name}; make this shard again")
    pairs = zip(members[::2], members[1::2], strict=True)
    return [_pair(path, data, manifest) for data, manifest in pairs]


def _pair(path: Path, data: tarfile.TarInfo, manifest: tarfile.TarInfo) -> TarPair:
    cut_id, manifest_id = data.name.rpartition(".")[0], manifest.name.rpartition(".")[0]
    if cut_id != manifest_id:
        raise DataError(
            f"{path}: expected the manifest of {data.name!r}, found {manifest.name!r}; "
            "make this shard again"
        )
    return TarPair(cut_id, data.offset_data, data.size, manifest.offset_data, manifest.size)


def file_fingerprint(paths: Iterable[Path]) -> str:
    """Returns one SHA-256 over the names and contents of files, for small files such as cuts."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


class FileReader:
    """Reads byte ranges of many files, with at most `max_open` of them open.

    Reads do not move a file position (`pread`), so processes that a DataLoader forked may share
    the descriptors. A pickled copy opens its own.
    """

    def __init__(self, max_open: int = 32) -> None:
        """Creates a reader with no open files."""
        self.max_open = max_open
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Returns `size` bytes of `path` from `offset` on.

        Raises:
            DataError: The file is missing or ends earlier.
        """
        try:
            data = _pread(self._open(str(path)), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise DataError(f"{path}: ends before byte {offset + size}; make this shard again")
        return data

    def _open(self, path: str) -> int:
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        while len(self._descriptors) >= self.max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def close(self) -> None:
        """Closes every file; the next read opens what it needs."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        self.close()


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """Like `os.pread`, which gives less at once above 2 GiB and on some network file systems."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
