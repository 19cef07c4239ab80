"""What an index holds: the facts of a folder's cuts, and where each lies in the tar files.

Shards are looked at one by one, by several processes if wanted. The ids in a tar must be those of
the cuts, in their order.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spear.data.formats.shards import find_doubled, id_hash, read_cuts, tar_name
from spear.data.formats.tars import index_pairs
from spear.data.index.arrays import Array
from spear.data.index.clip_table import to_samples
from spear.errors import DataError
from spear.system.parallel import in_processes
from spear.system.progress import progress

BLOCK = 512
"""Bytes of a tar's block: members and their headers begin at multiples of it."""
PLACES = ("offset", "size")
"""Arrays of a field: (n,) uint32, in blocks of the shard's tar and in bytes."""
CUTS = ("shard_ids", "first", "num_samples", "is_audio", "hashes")
"""Arrays of the cuts; see `ShardFolder`."""

Hashes = NDArray[np.uint64]
Arrays = dict[str, Array]


class _Shard(NamedTuple):
    """One shard to look at."""

    number: int
    hashes: Hashes | None = None
    """Of its cuts, where they are known."""


def scan_recordings(folder: Path, shard_ids: Sequence[int], field: str, num_jobs: int) -> Arrays:
    """Returns the arrays of the cuts and of their recordings.

    Args:
        folder: The shard folder.
        shard_ids: Numbers of its shards.
        field: The field of the recordings.
        num_jobs: Processes that read.

    Raises:
        DataError: A shard is broken, or two cuts share an id.
    """
    parts = _scan(folder, field, map(_Shard, shard_ids), len(shard_ids), num_jobs)
    counts = [len(part["size"]) for part in parts]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["first"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    arrays["shard_ids"] = np.asarray(shard_ids, np.int64)
    hashes = dict(zip(shard_ids, (part["hashes"] for part in parts), strict=True))
    for cut_id, shard, other in find_doubled(folder, hashes):
        raise DataError(
            f"{folder}: cut id {cut_id!r} is in shard {other:06d} and in shard {shard:06d}; ids "
            "must be unique"
        )
    return arrays


def scan_field(
    folder: Path, shard_ids: Sequence[int], field: str, hashes: Sequence[Hashes], num_jobs: int
) -> Arrays:
    """Returns where the members of a further field lie.

    Args:
        folder: The shard folder.
        shard_ids: Numbers of its shards.
        field: The field.
        hashes: For every shard those of its cuts' ids.
        num_jobs: Processes that read.

    Raises:
        DataError: A tar is missing, broken or of other cuts.
    """
    shards = map(_Shard, shard_ids, hashes)
    parts = _scan(folder, field, shards, len(shard_ids), num_jobs)
    return {name: np.concatenate([part[name] for part in parts]) for name in PLACES}


def _scan(
    folder: Path, field: str, shards: Iterable[_Shard], num_shards: int, num_jobs: int
) -> list[Arrays]:
    found = in_processes(partial(_scan_shard, folder, field), shards, min(num_jobs, num_shards))
    return list(progress(found, f"index {folder.name} {field}", total=num_shards))


def _scan_shard(folder: Path, field: str, shard: _Shard) -> Arrays:
    if shard.hashes is not None:
        return _places(folder / tar_name(field, shard.number), shard.hashes)
    cuts = read_cuts(folder, shard.number)
    hashes = np.array([id_hash(cut.id) for cut in cuts], np.uint64)
    return {
        "num_samples": to_samples(np.array([cut.duration_s for cut in cuts], np.float64)),
        "is_audio": np.array([cut.domain == "audio" for cut in cuts], np.uint8),
        "hashes": hashes,
        **_places(folder / tar_name(field, shard.number), hashes),
    }


def _places(path: Path, hashes: Hashes) -> Arrays:
    """Returns where the members of a tar lie, which must be those of the cuts with these hashes."""
    pairs = index_pairs(path)
    for pair, expected in zip(pairs, hashes.tolist(), strict=False):
        if id_hash(pair.id) != expected:
            raise DataError(
                f"{path}: holds {pair.id!r} where the cuts have another; make this shard again"
            )
    if len(pairs) != len(hashes):
        raise DataError(
            f"{path}: holds {len(pairs)} cuts and the manifest {len(hashes)}; make this shard again"
        )
    return {
        "offset": np.array([pair.offset // BLOCK for pair in pairs], np.uint32),
        "size": np.array([pair.size for pair in pairs], np.uint32),
    }
