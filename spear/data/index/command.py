"""`spear index`: shard folders get one memory-mapped file each that says where every clip lies.

Takes shard folders with or without tokens, reads the cuts and the headers of all tar files once, in
several processes, and writes `clips.index` (see `folder_index`). Run again, it does nothing where
the index is of the folder's present content, and reads only the new tokens where a teacher was
added. `spear pretrain` does the same by itself where an index is missing.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.columns import write_columns
from spear.data.formats.shards import ShardFolder
from spear.data.formats.tars import TarPair, index_pairs
from spear.data.index.clip_table import to_samples
from spear.data.index.folder_index import (
    AUDIO,
    BLOCK,
    INDEX_VERSION,
    FolderIndex,
    StaleIndexError,
    field_tar_name,
    fingerprints,
    id_hash,
    index_files,
)
from spear.errors import ConfigError, DataError, TokenError
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

Found = dict[str, NDArray[Any]]
"""Columns of one shard or of a folder: num_samples, is_audio, hashes, offset/FIELD, size/FIELD."""
_CUT_COLUMNS = {"num_samples": "U32", "is_audio": "U8", "hashes": "U64"}


@dataclass
class IndexConfig:
    """What to index."""

    shards: list[str] = field(default_factory=list)
    """Shard folders; each gets a file `clips.index`."""
    num_jobs: int = 4
    """Processes that read the headers of the shards."""


def run(config: IndexConfig) -> None:
    """Writes the indexes that are missing or of other content.

    Raises:
        ConfigError: No folder is given.
        DataError: A folder or shard is missing or broken, or two cuts share an id.
        TokenError: A teacher's tokens are not complete.
    """
    if not config.shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    if config.num_jobs < 1:
        raise ConfigError("num_jobs must be 1 or more")
    for path in config.shards:
        index = ensure_index(path, config.num_jobs)
        seconds = int(np.sum(index.num_samples, dtype=np.uint64)) / SAMPLE_RATE_HZ
        log.info(
            "%s: %d cuts in %d shards, %.2f h, tokens of %s; %.1f MB",
            index.file,
            len(index),
            len(index.shard_ids),
            seconds / 3600,
            ", ".join(index.teachers) or "no teacher",
            index.file.stat().st_size / 1e6,
        )


def ensure_index(folder: str | Path, num_jobs: int = 1) -> FolderIndex:
    """Opens the index of a folder, made now where there is none of its present content.

    Raises:
        DataError: The folder or a shard is missing or broken, or two cuts share an id.
        TokenError: A teacher's tokens are not complete.
    """
    shards = ShardFolder(folder)
    try:
        return FolderIndex.open(folder)
    except FileNotFoundError:
        old = None
    except StaleIndexError:
        old = _open_old(shards.path)
    return _build(shards, old, num_jobs)


def _open_old(folder: Path) -> FolderIndex | None:
    """Returns an outdated index if its clips are the present ones, for what can be kept of it."""
    for file in index_files(folder):
        try:
            index = FolderIndex(folder, file)
        except (FileNotFoundError, DataError):
            continue
        if index.sources[AUDIO] == fingerprints(folder)[AUDIO]:
            return index
    return None


class _Job(NamedTuple):
    """One shard to look at."""

    folder: ShardFolder
    position: int
    fields: tuple[str, ...]
    """Which tars to look into."""
    hashes: NDArray[np.uint64] | None
    """Of its cuts, where they are known already."""


def _build(shards: ShardFolder, old: FolderIndex | None, num_jobs: int) -> FolderIndex:
    sources = fingerprints(shards.path)
    for teacher in shards.teachers():
        shards.sidecar(teacher)  # raises where shards have no tokens yet
    kept = [name for name in sources if old is not None and old.sources.get(name) == sources[name]]
    fields = tuple(name for name in sources if name not in kept)
    jobs = [
        _Job(shards, position, fields, _known_hashes(old, position))
        for position in range(shards.num_shards)
    ]
    parts = list(progress(_scan_all(jobs, num_jobs), f"index {shards.path.name}", total=len(jobs)))
    counts = [len(part[f"offset/{fields[0]}"]) for part in parts]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if old is not None:
        columns |= {name: getattr(old, name) for name in _CUT_COLUMNS}
        for name in kept:
            columns[f"offset/{name}"], columns[f"size/{name}"] = old.field(name)
    columns["first"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns["shard_ids"] = np.asarray(shards.shard_ids, np.int64)
    file = _write(shards.path, columns, sources)
    index = FolderIndex(shards.path, file)
    try:
        _refuse_duplicates(index)
    except DataError:
        file.unlink()
        raise
    return index


def _known_hashes(old: FolderIndex | None, position: int) -> NDArray[np.uint64] | None:
    if old is None:
        return None
    return np.asarray(old.hashes[old.first[position] : old.first[position + 1]])


def _scan_all(jobs: Sequence[_Job], num_jobs: int) -> Iterator[Found]:
    """Yields what is found in each shard, in order."""
    if num_jobs == 1 or len(jobs) == 1:
        yield from map(_scan, jobs)
        return
    # Not forked: the parent may hold threads of torch, which a fork would leave in any state.
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_scan, jobs, chunksize=4)


def _scan(job: _Job) -> Found:
    """Reads the cuts of a shard and the headers of its tars."""
    found: Found = {}
    hashes = job.hashes
    if AUDIO in job.fields:
        cuts = job.folder.cuts(job.position)
        hashes = np.array([id_hash(cut.id) for cut in cuts], np.uint64)
        found["num_samples"] = to_samples(np.array([cut.duration_s for cut in cuts], np.float64))
        found["is_audio"] = np.array([cut.domain == "audio" for cut in cuts], np.uint8)
        found["hashes"] = hashes
    assert hashes is not None
    for name in job.fields:
        pairs = _pairs_of(job, name, hashes)
        found[f"offset/{name}"] = np.array([pair.offset // BLOCK for pair in pairs], np.uint32)
        found[f"size/{name}"] = np.array([pair.size for pair in pairs], np.uint32)
    return found


def _pairs_of(job: _Job, name: str, hashes: NDArray[np.uint64]) -> list[TarPair]:
    """Returns the members of one of a shard's tars, which must be those of its cuts."""
    path = job.folder.path / field_tar_name(name, job.folder.shard_ids[job.position])
    try:
        pairs = index_pairs(path)
        _check_same_cuts(path, pairs, hashes)
    except DataError as error:
        if name == AUDIO:
            raise
        raise TokenError(f"{error} (with `spear extract-tokens`)") from error
    return pairs


def _check_same_cuts(path: Path, pairs: Sequence[TarPair], hashes: NDArray[np.uint64]) -> None:
    for pair, expected in zip(pairs, hashes.tolist(), strict=False):
        if id_hash(pair.id) != expected:
            raise DataError(
                f"{path}: holds {pair.id!r} where the cuts have another; make this shard again"
            )
    if len(pairs) != len(hashes):
        raise DataError(
            f"{path}: holds {len(pairs)} cuts and the manifest {len(hashes)}; make this shard again"
        )


def _write(folder: Path, columns: Found, sources: Mapping[str, str]) -> Path:
    """Writes the index into the folder, or into the user's cache where that is not allowed."""
    kinds = {**_CUT_COLUMNS, "first": "I64", "shard_ids": "I64"}
    shapes = {name: (kinds.get(name, "U32"), one.shape) for name, one in columns.items()}
    content = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()
    metadata = {"version": INDEX_VERSION, "content": content}
    metadata |= {f"source/{name}": text for name, text in sources.items()}
    own, cached = index_files(folder)
    for file in (own, cached):
        try:
            with write_columns(file, shapes, metadata) as written:
                for name, column in columns.items():
                    written[name][...] = column
            return file
        except PermissionError as error:
            refused = error
        except OSError as error:
            raise DataError(f"{file}: cannot be written ({error.strerror})") from error
    raise DataError(f"{cached}: cannot be written ({refused.strerror}), nor can {own}")


def _refuse_duplicates(index: FolderIndex) -> None:
    order = np.argsort(index.hashes, kind="stable")
    ordered = index.hashes[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
        first, second = int(order[place]), int(order[place + 1])
        if index.id(first) == index.id(second):  # else two ids with one hash, which does no harm
            shards = [index.shard_ids[index.shard_of(number)] for number in (first, second)]
            raise DataError(
                f"{index.path}: cut id {index.id(first)!r} is in shard {shards[0]:06d} and in "
                f"shard {shards[1]:06d}; ids must be unique"
            )
