"""Random access to a shard folder: every cut's facts, audio and teacher tokens by its number.

`ShardFolder` works on an index: a few numbers per cut in arrays, some forty bytes with two
teachers, which are memory-mapped. A run over sixty million cuts opens it at once, holds no object
per cut, and reads a clip's audio or tokens with one seek, without walking through tar files.

The index lies in `clips.index` in the folder (or in the user's cache, where the folder cannot be
written to), one folder of arrays for each Shar field. Its name says what the arrays were made from:
those of other shards or tokens are not found, and made anew. Every read checks that the bytes found
are of the cut that the index means.
"""

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ, decode_audio
from spear.data.formats.shards import (
    RECORDING,
    SHARDS_RECORD,
    CutInfo,
    check_shards,
    cuts_name,
    id_hash,
    read_cuts,
    recording_name,
    tar_name,
)
from spear.data.formats.tars import FileReader, index_pairs
from spear.data.formats.tokens import (
    Tokens,
    TokenSidecar,
    decode_tokens,
    find_teachers,
    sidecar_name,
    token_field,
)
from spear.data.index.arrays import map_arrays, write_arrays
from spear.data.index.build import BLOCK, CUTS, PLACES, Arrays, scan_field, scan_recordings
from spear.errors import DataError, TokenError
from spear.system.files import remove_partials, sha256_of
from spear.system.progress import get_logger

log = get_logger(__name__)

INDEX_NAME = "clips.index"
INDEX_VERSION = "2"
MAX_OPEN = 256
"""Files that a reader keeps open: a window's shards, within the usual limit of 1,024."""
KEPT_SHARDS = 8
"""Shards whose cuts a reader keeps in memory."""


class ShardFolder:
    """A folder of shards.

    Can be pickled into data workers: what travels is where the arrays lie.

    Attributes:
        path: The folder.
        shard_ids: Numbers in the shards' file names, sorted; usually 0, 1, 2, ...
        first: (num_shards + 1,) int64, number of each shard's first cut, and n.
        num_samples: (n,) uint32, samples at 16 kHz.
        is_audio: (n,) uint8, 1 for general audio, 0 for speech.
        hashes: (n,) uint64, `id_hash` of the cut ids.
    """

    def __init__(self, path: str | Path, num_jobs: int = 1) -> None:
        """Opens the index of the folder, made now where there is none of its present content.

        Args:
            path: The folder.
            num_jobs: Processes that make the index.

        Raises:
            DataError: The folder is missing, empty or unfinished, a shard is broken or lacks its
                audio, or two cuts share an id.
        """
        self.path = Path(path)
        shard_ids = check_shards(self.path)
        place = self._find(RECORDING, _recordings_fingerprint(self.path, shard_ids))
        if not place.is_dir():
            arrays = scan_recordings(self.path, shard_ids, RECORDING, num_jobs)
            place = _store(self.path, place, arrays)
        self._map({RECORDING: place})

    def _map(self, places: dict[str, Path]) -> None:
        self._places = places
        self._fields = {field: map_arrays(place, PLACES) for field, place in places.items()}
        cuts = map_arrays(places[RECORDING], CUTS)
        self.shard_ids: list[int] = cuts["shard_ids"].tolist()
        self.first = np.asarray(cuts["first"])
        self.num_samples = cuts["num_samples"]
        self.is_audio = cuts["is_audio"]
        self.hashes = cuts["hashes"]
        self._reader = FileReader(MAX_OPEN)
        self._kept: OrderedDict[int, list[CutInfo]] = OrderedDict()
        self._ids_by_offset: dict[Path, dict[int, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_places": self._places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._map(state["_places"])

    def __len__(self) -> int:
        """Returns the number of cuts."""
        return len(self.num_samples)

    def __iter__(self) -> Iterator[CutInfo]:
        """Yields every cut in order, read shard by shard."""
        for position in range(self.num_shards):
            yield from self.cuts(position)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_ids)

    @property
    def fingerprint(self) -> str:
        """Differs between folders of different cuts, audio or opened tokens."""
        names = sorted(place.name for place in self._places.values())
        return hashlib.sha256("/".join(names).encode()).hexdigest()

    def shard_of(self, number: int) -> int:
        """Returns the position of a cut's shard in the folder."""
        return int(np.searchsorted(self.first, number, side="right")) - 1

    @property
    def duration_s(self) -> float:
        """Seconds of audio in all cuts."""
        return int(np.sum(self.num_samples, dtype=np.uint64)) / SAMPLE_RATE_HZ

    @property
    def longest_s(self) -> float:
        """Seconds of the longest cut; 0 without any."""
        return int(self.num_samples.max(initial=0)) / SAMPLE_RATE_HZ

    def cuts(self, position: int) -> Sequence[CutInfo]:
        """Returns the cuts of the shard at a position, in order; the last few shards are kept.

        Raises:
            DataError: The shard's manifest is broken, or not the one that was indexed.
        """
        if position not in self._kept:
            begin, end = self.first[position : position + 2].tolist()
            shard = self.shard_ids[position]
            cuts = read_cuts(self.path, shard, position, begin)
            if [id_hash(cut.id) for cut in cuts] != self.hashes[begin:end].tolist():
                raise DataError(
                    f"{self.path / cuts_name(shard)}: holds other cuts than {INDEX_NAME} says; "
                    f"remove {INDEX_NAME}, or run `spear shard` again"
                )
            while len(self._kept) >= KEPT_SHARDS:
                self._kept.popitem(last=False)
            self._kept[position] = cuts
        return self._kept[position]

    def cut(self, number: int) -> CutInfo:
        """Returns a cut by its number within the folder; reads its shard's manifest.

        Raises:
            IndexError: There is no such cut.
            DataError: As `cuts`.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: no cut {number}, there are {len(self)}")
        position = self.shard_of(number)
        return self.cuts(position)[number - int(self.first[position])]

    def id(self, number: int) -> str:
        """Reads the id of a cut from its shard's audio.

        Raises:
            DataError: The shard's tar is broken, or holds another cut there.
        """
        offset = int(self._fields[RECORDING]["offset"][number])
        path = self._tar(RECORDING, number)
        header = self._reader.read(path, (offset - 1) * BLOCK, BLOCK)
        return self._checked_id(path, header, offset, number)

    def clip(self, number: int) -> tuple[str, NDArray[np.float32]]:
        """Reads id and audio of a cut with one seek.

        Returns:
            The cut's id, and (S,) float32 at 16 kHz.

        Raises:
            DataError: The shard's tar is broken, or holds another cut there.
            AudioError: The recording cannot be decoded.
        """
        cut_id, data = self._read(RECORDING, number)
        return cut_id, decode_audio(data, f"{self._tar(RECORDING, number)}: cut {cut_id}")

    def audio(self, cut: int | CutInfo) -> NDArray[np.float32]:
        """Reads the (S,) float32 audio of a cut, given by its number or facts; see `clip`."""
        return self.clip(_number(cut))[1]

    def tokens(self, cut: int | CutInfo, teacher: str) -> Tokens:
        """Reads a teacher's tokens of a cut.

        Returns:
            (T', N) uint8, or uint16 where codebooks have more than 256 codes.

        Raises:
            TokenError: There are none, or the tar is broken or holds other cuts.
        """
        number, field = _number(cut), token_field(teacher)
        if field not in self._fields:
            self.open_tokens([teacher])
        try:
            cut_id, data = self._read(field, number)
        except DataError as error:
            raise TokenError(f"{error} (with `spear extract-tokens`)") from error
        return decode_tokens(data, f"{self._tar(field, number)}: cut {cut_id}")

    def teachers(self) -> list[str]:
        """Returns the names of the teachers that have a sidecar here, sorted."""
        return find_teachers(self.path)

    def sidecar(self, teacher: str) -> TokenSidecar:
        """Loads a teacher's sidecar.

        Raises:
            TokenError: There is none, it is broken, or it lacks shards of this folder.
        """
        if teacher not in self.teachers():
            raise TokenError(
                f"{self.path}: no tokens of teacher {teacher!r} (there: "
                f"{', '.join(self.teachers()) or 'none'}); first run: spear extract-tokens "
                f"--shards+ {self.path} --teacher.name {teacher} --teacher.path MODEL "
                "--quantizer QUANTIZER_FILE"
            )
        path = self.path / sidecar_name(teacher)
        sidecar = TokenSidecar.load(path)
        missing = [shard for shard in self.shard_ids if shard not in sidecar.shards]
        if missing:
            raise TokenError(
                f"{path}: no tokens for shard {missing[0]:06d} ({len(missing)} of "
                f"{self.num_shards} shards); run `spear extract-tokens` again"
            )
        return sidecar

    def open_tokens(self, teachers: Iterable[str], num_jobs: int = 1) -> None:
        """Opens the index of teachers' tokens, made now where there is none of the present ones.

        `tokens` does the same by itself; a folder that goes to data workers does it before.

        Raises:
            TokenError: A teacher has no tokens, or its tars are broken or of other cuts.
        """
        for teacher in teachers:
            self.sidecar(teacher)
            field = token_field(teacher)
            place = self._find(field, sha256_of(self.path / sidecar_name(teacher)))
            if not place.is_dir():
                try:
                    hashes = np.split(self.hashes, self.first[1:-1])
                    arrays = scan_field(self.path, self.shard_ids, field, hashes, num_jobs)
                except DataError as error:
                    raise TokenError(f"{error} (with `spear extract-tokens`)") from error
                place = _store(self.path, place, arrays)
            self._places[field], self._fields[field] = place, map_arrays(place, PLACES)

    def shar_fields(self, teachers: Iterable[str] = ()) -> dict[str, list[str]]:
        """Returns the files by field, for `lhotse.CutSet.from_shar(fields=...)`.

        The form with `in_dir=` takes every file of a folder for a field and stumbles over the
        sidecars; this one names the fields.
        """
        fields = {"cuts": self.cut_files()}
        for field in (RECORDING, *map(token_field, teachers)):
            fields[field] = [self.path / tar_name(field, shard) for shard in self.shard_ids]
        return {field: list(map(str, files)) for field, files in fields.items()}

    def cut_files(self) -> list[Path]:
        """Returns the manifests of the shards, in order."""
        return [self.path / cuts_name(shard) for shard in self.shard_ids]

    def close(self) -> None:
        """Closes the open tar files; reading opens them again."""
        self._reader.close()

    def _find(self, field: str, fingerprint: str) -> Path:
        """Returns where the arrays of a field are, or where they should be."""
        content = hashlib.sha256(f"{INDEX_VERSION}/{fingerprint}".encode()).hexdigest()
        own, cached = (one / f"{field}.{content[:16]}" for one in index_folders(self.path))
        return cached if cached.is_dir() and not own.is_dir() else own

    def _tar(self, field: str, number: int) -> Path:
        return self.path / tar_name(field, self.shard_ids[self.shard_of(number)])

    def _read(self, field: str, number: int) -> tuple[str, bytes]:
        """Returns id and data of a cut's member, read with the header before it."""
        places = self._fields[field]
        offset, size = int(places["offset"][number]), int(places["size"][number])
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
                f"remove {INDEX_NAME}, or make this shard again"
            )
        return cut_id

    def _long_id(self, path: Path, offset: int) -> str | None:
        if path not in self._ids_by_offset:
            pairs = index_pairs(path)
            self._ids_by_offset[path] = {pair.offset // BLOCK: pair.id for pair in pairs}
        return self._ids_by_offset[path].get(offset)


def index_folders(folder: Path) -> tuple[Path, Path]:
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


def _number(cut: int | CutInfo) -> int:
    return cut.index if isinstance(cut, CutInfo) else cut


def _recordings_fingerprint(folder: Path, shard_ids: Sequence[int]) -> str:
    """Returns what the index of the recordings depends on, without reading the shards.

    The record that `spear shard` leaves holds the checksums of all shards, so its own stands for
    them. A Shar folder of another program has none: names and sizes of its files do.
    """
    record = folder / SHARDS_RECORD
    if record.is_file():
        return sha256_of(record)
    names = [name(shard) for shard in shard_ids for name in (cuts_name, recording_name)]
    sizes = [(name, (folder / name).stat().st_size) for name in names]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def _store(folder: Path, place: Path, arrays: Arrays) -> Path:
    """Writes a field's arrays, into the user's cache where the folder does not allow it.

    Returns:
        Where they are.

    Raises:
        DataError: They can be written nowhere.
    """
    refused = []
    for index in index_folders(folder):
        try:
            if index.is_file():  # of an earlier version
                index.unlink()
            write_arrays(index / place.name, arrays)
        except OSError as error:
            refused.append(f"{index} cannot be written ({error.strerror})")
            continue
        if refused:
            log.info("%s: the index is in %s", refused[0], index)
        _remove_others(index / place.name)
        return index / place.name
    raise DataError(", nor can it in the user's cache: ".join(refused))


def _remove_others(place: Path) -> None:
    """Removes what an earlier content of a field, or a killed process, left beside its arrays."""
    remove_partials(place.parent)
    field = place.name.rpartition(".")[0]
    for other in place.parent.iterdir():
        if other.name.rpartition(".")[0] == field and other != place:
            shutil.rmtree(other, ignore_errors=True)  # who has mapped it keeps it
