"""The index of a shard folder: where every clip lies, how long it is, which tokens it has.

`clips.index` in a shard folder (or in the user's cache, where the folder cannot be written to)
holds a few numbers per cut in columns, some forty bytes with two teachers, memory-mapped: a run
over sixty million cuts opens it at once and reads a clip's audio and tokens with one seek each,
without walking through tar files. It names what it was made from; `FolderIndex.open` refuses an
index of other shards or tokens, and every read checks that the bytes found are of the cut that the
index means.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ, decode_audio
from spear.data.formats.columns import Column, open_columns
from spear.data.formats.shards import (
    SHARDS_RECORD,
    cuts_name,
    find_shard_ids,
    recording_name,
)
from spear.data.formats.tars import FileReader, index_pairs
from spear.data.formats.tokens import (
    Tokens,
    decode_tokens,
    find_teachers,
    sidecar_name,
    token_tar_name,
)
from spear.errors import DataError, TokenError
from spear.system.files import sha256_of

INDEX_NAME = "clips.index"
INDEX_VERSION = "1"
AUDIO = "audio"
"""Name of the audio among the fields; the others are teachers' tokens."""
BLOCK = 512
"""Bytes of a tar's block: members and their headers begin at multiples of it."""
MAX_OPEN = 256
"""Files that a worker keeps open: a window's shards, within the usual limit of 1,024."""


class StaleIndexError(DataError):
    """An index that was made from other files than those of its folder."""


class FolderIndex:
    """The clips of one shard folder, as columns.

    Attributes:
        path: The folder.
        shard_ids: Numbers in the shards' file names, sorted.
        first: (num_shards + 1,) int64, number of each shard's first clip, and n.
        num_samples: (n,) uint32, samples at 16 kHz.
        is_audio: (n,) uint8, 1 for general audio, 0 for speech.
        hashes: (n,) uint64, `id_hash` of the cut ids.
        teachers: Names of the teachers whose tokens every clip has, sorted.
        fingerprint: Differs between folders of different content.
    """

    def __init__(self, path: Path, file: Path) -> None:
        """Maps the index `file` of the folder `path`, whatever it was made from: see `open`."""
        columns, metadata = open_columns(file)
        if metadata.get("version") != INDEX_VERSION:
            raise StaleIndexError(f"{file}: of another version; run `spear index`")
        self.path = Path(path)
        self.file = file
        self.shard_ids: list[int] = columns["shard_ids"].tolist()
        self.first = np.asarray(columns["first"])
        self.num_samples = columns["num_samples"]
        self.is_audio = columns["is_audio"]
        self.hashes = columns["hashes"]
        self.teachers = sorted(
            name.removeprefix("offset/") for name in columns if name.startswith("offset/")
        )
        self.teachers.remove(AUDIO)
        self.fingerprint = metadata["content"]
        self.sources = {
            name.removeprefix("source/"): text
            for name, text in metadata.items()
            if name.startswith("source/")
        }
        self._columns = columns
        self._reader = FileReader(MAX_OPEN)
        self._ids_by_offset: dict[Path, dict[int, str]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "FolderIndex":
        """Opens a folder's index.

        Raises:
            FileNotFoundError: There is none.
            StaleIndexError: It is of another version, or the shards or tokens have changed.
            DataError: It is broken.
        """
        folder = Path(folder)
        own, cached = index_files(folder)
        index = cls(folder, cached if cached.is_file() and not own.is_file() else own)
        for field, found in fingerprints(folder).items():
            if index.sources.get(field) != found:
                raise StaleIndexError(
                    f"{index.file}: {field} changed since; run `spear index` again"
                )
        return index

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.num_samples)

    def __getstate__(self) -> dict[str, Any]:
        # A data worker maps the file itself; the columns would travel as gigabytes.
        return {"path": self.path, "file": self.file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def field(self, name: str) -> tuple[Column, Column]:
        """Returns the (n,) uint32 offsets, in blocks of a tar, and sizes in bytes of a field."""
        return self._columns[f"offset/{name}"], self._columns[f"size/{name}"]

    def shard_of(self, number: int) -> int:
        """Returns the position of a clip's shard in the folder."""
        return int(np.searchsorted(self.first, number, side="right")) - 1

    def duration_s(self, number: int) -> float:
        """Returns the seconds of a clip."""
        return float(self.num_samples[number]) / SAMPLE_RATE_HZ

    def id(self, number: int) -> str:
        """Reads the id of a clip from its shard.

        Raises:
            DataError: The shard's tar is broken, or holds another cut there.
        """
        offset = int(self.field(AUDIO)[0][number])
        path = self._tar(AUDIO, number)
        header = self._reader.read(path, (offset - 1) * BLOCK, BLOCK)
        return self._checked_id(path, header, offset, number)

    def audio(self, number: int) -> tuple[str, NDArray[np.float32]]:
        """Reads the audio of a clip.

        Returns:
            The cut's id, and (S,) float32 at 16 kHz.

        Raises:
            DataError: The shard's tar is broken, or holds another cut there.
            AudioError: The recording cannot be decoded.
        """
        cut_id, data = self._read(AUDIO, number)
        return cut_id, decode_audio(data, f"{self._tar(AUDIO, number)}: cut {cut_id}")

    def tokens(self, number: int, teacher: str) -> Tokens:
        """Reads a teacher's tokens of a clip: (T', N) uint8 or uint16.

        Raises:
            TokenError: There are none, or the tar is broken or holds other cuts.
        """
        if teacher not in self.teachers:
            raise TokenError(f"{self.path}: no tokens of teacher {teacher!r} in {INDEX_NAME}")
        try:
            cut_id, data = self._read(teacher, number)
        except DataError as error:
            raise TokenError(f"{error} (with `spear extract-tokens`)") from error
        return decode_tokens(data, f"{self._tar(teacher, number)}: cut {cut_id}")

    def _tar(self, field: str, number: int) -> Path:
        shard = self.shard_ids[self.shard_of(number)]
        return self.path / field_tar_name(field, shard)

    def _read(self, field: str, number: int) -> tuple[str, bytes]:
        """Returns id and data of a clip's member, read with the header before it."""
        offsets, sizes = self.field(field)
        offset, size = int(offsets[number]), int(sizes[number])
        path = self._tar(field, number)
        member = self._reader.read(path, (offset - 1) * BLOCK, BLOCK + size)
        return self._checked_id(path, member[:BLOCK], offset, number), member[BLOCK:]

    def _checked_id(self, path: Path, header: bytes, offset: int, number: int) -> str:
        cut_id = member_id(header)
        if cut_id is None or id_hash(cut_id) != self.hashes[number]:
            cut_id = self._long_id(path, offset)  # a name that does not fit into one header
        if cut_id is None or id_hash(cut_id) != self.hashes[number]:
            raise DataError(
                f"{path}: holds another cut than {INDEX_NAME} says at byte {offset * BLOCK}; "
                "run `spear index` again, or make this shard again"
            )
        return cut_id

    def _long_id(self, path: Path, offset: int) -> str | None:
        if path not in self._ids_by_offset:
            pairs = index_pairs(path)
            self._ids_by_offset[path] = {pair.offset // BLOCK: pair.id for pair in pairs}
        return self._ids_by_offset[path].get(offset)


def index_files(folder: Path) -> tuple[Path, Path]:
    """Returns where the index of a folder may be: in it, or in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return folder / INDEX_NAME, cache / "spear" / f"{name[:32]}.index"


def member_id(header: bytes) -> str | None:
    """Returns the cut id in a member's tar header, None where the block is no plain header."""
    if header[257:262] != b"ustar":
        return None
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return name.rpartition(".")[0]


def id_hash(cut_id: str) -> int:
    """Returns 64 bits of a cut id's BLAKE2b hash."""
    data = cut_id.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def field_tar_name(field: str, shard: int) -> str:
    """Returns the file name of a shard's audio or of a teacher's tokens."""
    return recording_name(shard) if field == AUDIO else token_tar_name(field, shard)


def fingerprints(folder: Path) -> dict[str, str]:
    """Returns what the index of a folder depends on, by field, without reading the shards.

    The records that stages leave hold the checksums of all shards, so theirs stand for them. A
    Shar folder of another program has none: names and sizes of its files do.
    """
    record = folder / SHARDS_RECORD
    if record.is_file():
        found = {AUDIO: sha256_of(record)}
    else:
        names = [f(shard) for shard in find_shard_ids(folder) for f in (cuts_name, recording_name)]
        sizes = [
            (name, (folder / name).stat().st_size) for name in names if (folder / name).is_file()
        ]
        found = {AUDIO: hashlib.sha256(repr(sizes).encode()).hexdigest()}
    for teacher in find_teachers(folder):
        found[teacher] = sha256_of(folder / sidecar_name(teacher))
    return found
