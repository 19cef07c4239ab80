"""A shard folder's files: their names, its record, and the facts of a shard's cuts.

`spear shard` writes such folders, and any lhotse Shar folder with recordings is one. Clips are read
through `spear.data.index.shard_folder`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.data.formats.manifests import DOMAINS, read_jsonl_gz
from spear.errors import DataError

SHARDS_RECORD = "shards.json"
RECORDING = "recording"
"""Shar's field of the audio; teachers' tokens are further fields."""


@dataclass(frozen=True, slots=True)
class CutInfo:
    """What is known of a cut without reading its audio."""

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


def id_hash(cut_id: str) -> int:
    """Returns 64 bits of a cut id's BLAKE2b hash: equal ids have equal ones, others hardly ever."""
    data = cut_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def tar_name(field: str, shard: int) -> str:
    """Returns the file name of a Shar field's tar, e.g. "wavlm_tokens.000003.tar"."""
    return f"{field}.{shard:06d}.tar"


def cuts_name(shard: int) -> str:
    """Returns the file name of a shard's cuts."""
    return f"cuts.{shard:06d}.jsonl.gz"


def recording_name(shard: int) -> str:
    """Returns the file name of a shard's audio."""
    return tar_name(RECORDING, shard)


def check_shards(folder: Path) -> list[int]:
    """Returns the numbers of a folder's shards, sorted; usually 0, 1, 2, ...

    Raises:
        DataError: The folder is missing, empty or unfinished, or a shard lacks its audio.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such shard folder; run `spear shard` first")
    record = load_record(folder)  # empty for a Shar folder that another program wrote
    if record and not record["complete"]:
        raise DataError(f"{folder}: not all shards are written; run `spear shard` again")
    shard_ids = find_shard_ids(folder)
    if not shard_ids:
        raise DataError(f"{folder}: no shards (cuts.000000.jsonl.gz) in this folder")
    names = set(os.listdir(folder))
    for shard in shard_ids:
        if recording_name(shard) not in names:
            raise DataError(
                f"{folder / recording_name(shard)}: missing, and {cuts_name(shard)} is there; run "
                "`spear shard` again"
            )
    return shard_ids


def read_cuts(folder: Path, shard: int, position: int = 0, first: int = 0) -> list[CutInfo]:
    """Reads the cuts of a shard, in order.

    Args:
        folder: The shard folder.
        shard: Number of the shard.
        position: Its position in the folder.
        first: Number within the folder of its first cut.

    Raises:
        DataError: The manifest is not readable, or a cut has no id or domain.
    """
    path = folder / cuts_name(shard)
    lines = enumerate(read_jsonl_gz(path))
    return [_cut_info(line, path, first + row, position, row) for row, line in lines]


def find_doubled(
    folder: Path, hashes: Mapping[int, NDArray[np.uint64]]
) -> Iterator[tuple[str, int, int]]:
    """Finds cuts that were in an earlier shard, or in the same one, already.

    Hashes tell which ids may be there twice; only the cuts of these shards are read again.

    Args:
        folder: The shard folder.
        hashes: For every shard, by number, `id_hash` of its cuts.

    Yields:
        Id, shard and earlier shard of each such cut.
    """
    ordered = np.sort(np.concatenate(list(hashes.values())))
    doubled = ordered[1:][ordered[1:] == ordered[:-1]]
    suspects, first = set(doubled.tolist()), dict[str, int]()
    for shard in sorted(hashes) if suspects else ():
        if not np.isin(hashes[shard], doubled).any():
            continue
        for cut in read_cuts(folder, shard):
            if id_hash(cut.id) not in suspects:
                continue
            if cut.id in first:
                yield cut.id, shard, first[cut.id]
            first.setdefault(cut.id, shard)


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


def _cut_info(content: dict[str, Any], path: Path, index: int, position: int, row: int) -> CutInfo:
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
