"""Random access to a shard folder: cuts, audio and teacher tokens by number.

Takes a folder that `spear shard` wrote (any lhotse Shar folder with recordings will do), reads the
facts of a shard's cuts when they are first asked for, and fetches single clips by seeking in the
tar files. A folder can be pickled into the workers of a DataLoader; each opens its own files when
it first reads. Stages go through here shard by shard; pre-training, which reads clips of many
shards at random, has `folder_index`.
"""

import bisect
import itertools
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spear.audio.io import decode_audio
from spear.data.formats.manifests import DOMAINS, read_jsonl_gz
from spear.data.formats.tars import FileReader, TarPair, index_pairs
from spear.data.formats.tokens import (
    Tokens,
    TokenSidecar,
    decode_tokens,
    find_teachers,
    sidecar_name,
    token_tar_name,
)
from spear.errors import DataError, TokenError

SHARDS_RECORD = "shards.json"
KEPT_SHARDS = 512
"""Shards whose facts a folder keeps in memory, unless all were asked for."""


@dataclass(frozen=True, slots=True)
class CutInfo:
    """What planning needs to know of a cut."""

    index: int
    """Number within the folder, from 0."""
    id: str
    """Cut id, unique in the folder."""
    duration_s: float
    """Seconds of audio."""
    domain: str
    """"speech" or "audio"."""
    text: str | None
    """Transcript, where there is one."""
    speaker: str | None
    """Speaker id, where it is known."""
    shard: int
    """Position of the shard in the folder, from 0."""
    row: int
    """Position within the shard, from 0."""


def cuts_name(shard: int) -> str:
    """Returns the file name of a shard's cuts."""
    return f"cuts.{shard:06d}.jsonl.gz"


def recording_name(shard: int) -> str:
    """Returns the file name of a shard's audio."""
    return f"recording.{shard:06d}.tar"


class ShardFolder:
    """A folder of shards.

    Attributes:
        path: The folder.
        shard_ids: Numbers in the file names, sorted; usually 0, 1, 2, ...
    """

    def __init__(self, path: str | Path) -> None:
        """Looks at the folder's names; its cuts are read when they are asked for.

        Raises:
            DataError: The folder is missing, empty or unfinished, or a shard lacks its audio.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such shard folder; run `spear shard` first")
        record = load_record(self.path)  # empty for a Shar folder that another program wrote
        if record and not record["complete"]:
            raise DataError(f"{self.path}: not all shards are written; run `spear shard` again")
        self.shard_ids = find_shard_ids(self.path)
        if not self.shard_ids:
            raise DataError(f"{self.path}: no shards (cuts.000000.jsonl.gz) in this folder")
        self._refuse_missing_audio()
        self._reader = FileReader()
        self._pairs: OrderedDict[tuple[str, int], list[TarPair]] = OrderedDict()
        self._cuts: OrderedDict[int, list[CutInfo]] = OrderedDict()
        self._all: list[CutInfo] | None = None
        self._recorded_s: float | None = record.get("duration_s")
        self._first = [0, *itertools.accumulate(self._counts(record))]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_ids)

    def __len__(self) -> int:
        """Returns the number of cuts."""
        return self._first[-1]

    @property
    def infos(self) -> Sequence[CutInfo]:
        """Every cut, in order; `infos[i].index == i`.

        Raises:
            DataError: A cut has no id or domain, or two cuts share an id.
        """
        if self._all is None:
            shards = [self.cuts(position) for position in range(self.num_shards)]
            cuts = [info for shard in shards for info in shard]
            _refuse_duplicates(cuts, self)
            self._all = cuts
            self._cuts.clear()
        return self._all

    @property
    def duration_s(self) -> float:
        """Seconds of audio in all cuts."""
        if self._recorded_s is not None:
            return self._recorded_s
        return sum(info.duration_s for info in self.infos)

    def cut(self, number: int) -> CutInfo:
        """Returns a cut by its number within the folder; reads its shard only."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: no cut {number}, there are {len(self)}")
        shard = bisect.bisect_right(self._first, number) - 1
        return self.cuts(shard)[number - self._first[shard]]

    def cuts(self, shard: int) -> Sequence[CutInfo]:
        """Returns the cuts of the shard at a position, in order; the last few shards are kept.

        Raises:
            DataError: A cut has no id or domain, or the shard has not as many as its record says.
        """
        if self._all is not None:
            return self._all[self._first[shard] : self._first[shard + 1]]
        if shard not in self._cuts:
            _make_room(self._cuts)
            cuts = self._cuts[shard] = self._load_cuts(shard, self._first[shard])
            expected = self._first[shard + 1] - self._first[shard]
            if len(cuts) != expected:
                raise DataError(
                    f"{self.path / cuts_name(self.shard_ids[shard])}: {len(cuts)} cuts, and "
                    f"{SHARDS_RECORD} says {expected}; run `spear shard` again"
                )
        return self._cuts[shard]

    def audio(self, cut: int | CutInfo) -> np.ndarray:
        """Reads the audio of a cut, given by its number or its `CutInfo`.

        Returns:
            (S,) float32 at 16 kHz.

        Raises:
            DataError: The shard's tar is broken or does not belong to the cuts.
            AudioError: The recording in it cannot be decoded.
        """
        info = self._info(cut)
        path = self.path / recording_name(self.shard_ids[info.shard])
        return decode_audio(self._read(path, "recording", info), f"{path}: cut {info.id}")

    def tokens(self, cut: int | CutInfo, teacher: str) -> Tokens:
        """Reads a teacher's tokens of a cut.

        Returns:
            (T', N) uint8, or uint16 where codebooks have more than 256 codes.

        Raises:
            TokenError: The teacher's tar is missing, broken, or holds other cuts.
        """
        info = self._info(cut)
        path = self.path / token_tar_name(teacher, self.shard_ids[info.shard])
        try:
            data = self._read(path, teacher, info)
        except DataError as error:
            raise TokenError(f"{error} (with `spear extract-tokens`)") from error
        return decode_tokens(data, f"{path}: cut {info.id}")

    def teachers(self) -> list[str]:
        """Returns the names of the teachers that have a sidecar here, sorted."""
        return find_teachers(self.path)

    def sidecar(self, teacher: str) -> TokenSidecar:
        """Loads a teacher's sidecar.

        Raises:
            TokenError: There is none, it is broken, or it lacks shards of this folder.
        """
        path = self.path / sidecar_name(teacher)
        sidecar = TokenSidecar.load(path)
        missing = [shard for shard in self.shard_ids if shard not in sidecar.shards]
        if missing:
            raise TokenError(
                f"{path}: no tokens for shard {missing[0]:06d} ({len(missing)} of "
                f"{self.num_shards} shards); run `spear extract-tokens` again"
            )
        return sidecar

    def cut_files(self) -> list[Path]:
        """Returns the manifests of the shards, in order."""
        return [self.path / cuts_name(shard) for shard in self.shard_ids]

    def shar_fields(self, teachers: Iterable[str] = ()) -> dict[str, list[str]]:
        """Returns the files by field, for `lhotse.CutSet.from_shar(fields=...)`.

        The form with `in_dir=` takes every file of a folder for a field and stumbles over the
        sidecars; this one names the fields.
        """
        names = {"cuts": cuts_name, "recording": recording_name}
        fields = {
            name: [str(self.path / pattern(shard)) for shard in self.shard_ids]
            for name, pattern in names.items()
        }
        for teacher in teachers:
            fields[f"{teacher}_tokens"] = [
                str(self.path / token_tar_name(teacher, shard)) for shard in self.shard_ids
            ]
        return fields

    def close(self) -> None:
        """Closes the open tar files; reading opens them again."""
        self._reader.close()

    def _info(self, cut: int | CutInfo) -> CutInfo:
        return cut if isinstance(cut, CutInfo) else self.cut(cut)

    def _read(self, path: Path, field_name: str, info: CutInfo) -> bytes:
        """Returns the bytes of one cut, after checking once that the tar matches the cuts."""
        key = (field_name, info.shard)
        if key not in self._pairs:
            pairs = index_pairs(path)
            _match_ids(path, pairs, self.cuts(info.shard))
            _make_room(self._pairs)
            self._pairs[key] = pairs
        pair = self._pairs[key][info.row]
        return self._reader.read(path, pair.offset, pair.size)

    def _refuse_missing_audio(self) -> None:
        names = set(os.listdir(self.path))
        for shard in self.shard_ids:
            if recording_name(shard) not in names:
                raise DataError(
                    f"{self.path / recording_name(shard)}: missing, and {cuts_name(shard)} is "
                    "there; run `spear shard` again"
                )

    def _counts(self, record: dict[str, Any]) -> list[int]:
        """Returns the cuts of each shard, from the folder's record or by reading them all."""
        recorded = {
            int(shard): entry["num_cuts"] for shard, entry in record.get("shards", {}).items()
        }
        if all(shard in recorded for shard in self.shard_ids):
            return [recorded[shard] for shard in self.shard_ids]
        shards: list[list[CutInfo]] = []
        for position in range(self.num_shards):
            shards.append(self._load_cuts(position, sum(map(len, shards))))
        self._all = [info for shard in shards for info in shard]
        _refuse_duplicates(self._all, self)
        return [len(shard) for shard in shards]

    def _load_cuts(self, position: int, first: int) -> list[CutInfo]:
        path = self.path / cuts_name(self.shard_ids[position])
        lines = read_jsonl_gz(path)
        return [cut_info(line, path, first + row, position, row) for row, line in enumerate(lines)]


def _make_room(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) >= KEPT_SHARDS:
        kept.popitem(last=False)


def _refuse_duplicates(cuts: Sequence[CutInfo], folder: ShardFolder) -> None:
    seen: dict[str, CutInfo] = {}
    for info in cuts:
        first = seen.setdefault(info.id, info)
        if first is not info:
            shards = [folder.shard_ids[one.shard] for one in (first, info)]
            raise DataError(
                f"{folder.path}: cut id {info.id!r} is in shard {shards[0]:06d} and in shard "
                f"{shards[1]:06d}; ids must be unique"
            )


def load_record(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `shards.json`, empty where there is none.

    Raises:
        DataError: It is there and broken.
    """
    path = Path(folder) / SHARDS_RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
        missing = {"complete", "settings", "shards"} - set(record)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not readable ({error}); run `spear shard` again") from error
    if missing:
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; run `spear shard` again")
    return record


def find_shard_ids(folder: Path) -> list[int]:
    """Returns the numbers of the shards whose cuts are in a folder, sorted."""
    matches = (re.fullmatch(r"cuts\.(\d{6,})\.jsonl\.gz", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def cut_info(content: dict[str, Any], path: Path, index: int, position: int, row: int) -> CutInfo:
    """Takes the facts that planning needs out of a cut's JSON."""
    try:
        cut_id, duration_s = str(content["id"]), float(content["duration"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: line {row + 1} is no cut of a shard ({error})") from error
    domain = (content.get("custom") or {}).get("domain")
    if domain not in DOMAINS:
        raise DataError(
            f"{path}: cut {cut_id!r} has the domain {domain!r}; custom['domain'] must be "
            "'speech' or 'audio'"
        )
    supervision = (content.get("supervisions") or [{}])[0]
    return CutInfo(
        index,
        cut_id,
        duration_s,
        domain,
        supervision.get("text"),
        supervision.get("speaker"),
        position,
        row,
    )


def _match_ids(path: Path, pairs: Sequence[TarPair], cuts: Sequence[CutInfo]) -> None:
    for pair, cut in zip(pairs, cuts, strict=False):
        if pair.id != cut.id:
            raise DataError(
                f"{path}: holds {pair.id!r} where the cuts have {cut.id!r}; make this shard again"
            )
    if len(pairs) != len(cuts):
        raise DataError(
            f"{path}: holds {len(pairs)} cuts and the manifest {len(cuts)}; make this shard again"
        )
