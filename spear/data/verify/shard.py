"""One shard against everything that is recorded of it.

`verify_shard` takes a job that says all there is to know of one shard (its entry in `shards.json`,
the sidecars of its tokens) and needs nothing else, so that shards can be verified by any process
in any order. It compares checksums, ids, order and counts, decodes every clip and token array, and
returns what it found as a small record, which can be written down and read again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spear.audio.io import SAMPLE_RATE_HZ, decode_audio
from spear.data.formats.shards import CutInfo, cuts_name, id_hash, read_cuts, recording_name
from spear.data.formats.tars import FileReader, TarPair, index_pairs
from spear.data.formats.tokens import (
    Tokens,
    TokenSidecar,
    decode_tokens,
    token_dtype,
    token_tar_name,
)
from spear.data.verify.findings import Count, Findings
from spear.errors import DataError, SpearError, TokenError
from spear.mvq.usage import count_codes
from spear.system.files import sha256_of

MAX_FRAME_DIFFERENCE = 2
"""Frames by which tokens may be fewer or more than duration x rate: edges differ by teacher."""
MIN_CONSTANT_FRAMES = 25
"""From how many frames on an array in which nothing changes is a problem."""
SILENT_PEAK = 1e-3
"""Half the range of samples of a clip that may well have the same tokens throughout."""


@dataclass(frozen=True)
class ShardJob:
    """What is to be verified of one shard, and against what."""

    folder: Path
    """The shard folder."""
    shard: int
    """Number of the shard."""
    record: Mapping[str, Any] | None
    """Its entry in `shards.json`: counts and checksums; None where there is none."""
    sidecars: tuple[TokenSidecar, ...]
    """Of the teachers whose tokens are verified, each with this shard's entry alone."""
    decode: bool
    """Whether to decode every clip."""

    def state(self) -> str:
        """Returns a checksum of what decides the findings, files by their size and time."""
        names = [cuts_name(self.shard), recording_name(self.shard)]
        names += [token_tar_name(one.teacher, self.shard) for one in self.sidecars]
        files = [_size_and_time(self.folder / name) for name in names]
        sidecars = [asdict(one) for one in self.sidecars]
        content = [files, self.record, sidecars, self.decode]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify_shard(job: ShardJob) -> Findings:
    """Verifies the cuts, the audio and the tokens of one shard."""
    audio = Count("audio", num_shards=1)
    cuts: list[CutInfo] = []
    try:
        cuts = read_cuts(job.folder, job.shard)
    except DataError as error:
        audio.add(str(error))
    audio.num_cuts = len(cuts)
    silent = _verify_audio(job, cuts, audio)
    _verify_record(job, cuts, audio)
    counts = [audio, *(_verify_teacher(job, sidecar, cuts, silent) for sidecar in job.sidecars)]
    for count in counts:
        count.problems = [f"shard {job.shard:06d}: {problem}" for problem in count.problems]
    hashes = np.array([id_hash(cut.id) for cut in cuts], np.uint64)
    return Findings(counts, sum(cut.duration_s for cut in cuts), {job.shard: hashes})


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _verify_audio(job: ShardJob, cuts: Sequence[CutInfo], count: Count) -> set[str]:
    """Checks the recordings; returns the cuts that are silent, as far as they were decoded."""
    silent = set()
    path = job.folder / recording_name(job.shard)
    for cut, data in _matching_members(path, cuts, count):
        if not job.decode:
            continue
        where = f"cut {cut.id!r}"
        try:
            audio = decode_audio(data, where)
        except SpearError as error:
            count.add(str(error))
            continue
        if np.ptp(audio) / 2 < SILENT_PEAK:
            silent.add(cut.id)
        expected = round(cut.duration_s * SAMPLE_RATE_HZ)
        if abs(len(audio) - expected) > 1:
            count.add(f"{where}: {len(audio)} samples where its duration says {expected}")
    return silent


def _verify_record(job: ShardJob, cuts: Sequence[CutInfo], count: Count) -> None:
    """Checks counts and checksums of `shards.json`."""
    if job.record is None:
        return
    if job.record["num_cuts"] != len(cuts):
        count.add(f"{len(cuts)} cuts where shards.json says {job.record['num_cuts']}")
    for name, expected in job.record["sha256"].items():
        _verify_checksum(job, count, name, expected)


def _verify_checksum(job: ShardJob, count: Count, name: str, expected: str) -> None:
    path = job.folder / name
    try:
        if not path.is_file():
            count.add(f"{name} is missing")
        elif sha256_of(path) != expected:
            count.add(f"{name} has changed: its SHA-256 is another")
    except OSError as error:
        count.add(f"{name} cannot be read ({error.strerror})")


def _verify_teacher(
    job: ShardJob, sidecar: TokenSidecar, cuts: Sequence[CutInfo], silent: set[str]
) -> Count:
    """Checks the token tar of one teacher, and what the sidecar says of it."""
    count = Count(f"{sidecar.teacher} tokens")
    name = token_tar_name(sidecar.teacher, job.shard)
    if job.shard not in sidecar.shards:
        count.add(f"{sidecar.teacher} tokens: not in the sidecar")
        return count
    count.num_shards = 1
    _verify_checksum(job, count, name, sidecar.shards[job.shard].sha256)
    if (job.folder / name).is_file():
        _verify_tokens(job, sidecar, cuts, silent, count)
    return count


def _verify_tokens(
    job: ShardJob, sidecar: TokenSidecar, cuts: Sequence[CutInfo], silent: set[str], count: Count
) -> None:
    path = job.folder / token_tar_name(sidecar.teacher, job.shard)
    for cut, data in _matching_members(path, cuts, count):
        where = f"cut {cut.id!r}: {sidecar.teacher} tokens"
        try:
            tokens = decode_tokens(data, where)
        except (TokenError, MemoryError, OverflowError) as error:
            count.add(str(error) if isinstance(error, TokenError) else f"{where}: broken header")
            continue
        count.num_cuts += 1
        count.num_frames += len(tokens)
        expected_frames = cut.duration_s * sidecar.frame_rate_hz
        count.differences[round(10 * (len(tokens) - expected_frames))] += 1
        problems = check_tokens(tokens, cut.duration_s, sidecar)
        if not problems:
            _add_usage(count, tokens, sidecar.codebook_size)
        if _is_constant(tokens) and cut.id not in silent:
            problems.append(f"all {len(tokens)} frames have the same tokens, and it is not silent")
        for problem in problems:
            count.add(f"{where}: {problem}")
    expected = sidecar.shards[job.shard]
    if (count.num_cuts, count.num_frames) != (expected.num_cuts, expected.num_frames):
        count.add(
            f"{path.name}: {count.num_cuts} cuts and {count.num_frames} frames where the sidecar "
            f"says {expected.num_cuts} and {expected.num_frames}"
        )


def _matching_members(
    path: Path, cuts: Sequence[CutInfo], count: Count
) -> Iterator[tuple[CutInfo, bytes]]:
    """Yields each cut with its data in a tar file; reports ids that do not match the cuts."""
    try:
        pairs = index_pairs(path)
    except DataError as error:
        count.add(str(error))
        return
    for problem in compare_ids([pair.id for pair in pairs], [cut.id for cut in cuts]):
        count.add(f"{path.name}: {problem}")
    by_id: dict[str, TarPair] = {}
    for pair in pairs:
        by_id.setdefault(pair.id, pair)
    reader = FileReader(max_open=1)
    for cut in cuts:
        if cut.id not in by_id:
            continue
        pair = by_id[cut.id]
        try:
            data = reader.read(path, pair.offset, pair.size)
        except DataError as error:
            count.add(f"cut {cut.id!r}: {error}")
            continue
        yield cut, data


def compare_ids(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    """Returns what is wrong with the ids of a tar file: missing, doubled, unknown, out of order."""
    problems = []
    seen: set[str] = set()
    known = set(expected)
    for cut_id in found:
        if cut_id in seen:
            problems.append(f"cut {cut_id!r} is there twice")
        elif cut_id not in known:
            problems.append(f"cut {cut_id!r} is not in the manifest")
        seen.add(cut_id)
    problems += [f"cut {cut_id!r} is missing" for cut_id in expected if cut_id not in seen]
    if not problems and list(found) != list(expected):
        pairs = zip(found, expected, strict=False)
        first = next((cut for cut, other in pairs if cut != other), found[-1])
        problems.append(f"the cuts are in another order, from cut {first!r} on")
    return problems


def check_tokens(tokens: Tokens, duration_s: float, sidecar: TokenSidecar) -> list[str]:
    """Returns what is wrong with the tokens of one cut.

    Args:
        tokens: (T', N) uint8 or uint16.
        duration_s: Seconds of audio in the cut.
        sidecar: Says N, K and the frame rate.
    """
    problems = []
    num_frames, num_codebooks = tokens.shape
    if num_codebooks != sidecar.num_codebooks:
        problems.append(f"{num_codebooks} codebooks where the sidecar says {sidecar.num_codebooks}")
    expected_dtype = token_dtype(sidecar.codebook_size)
    if tokens.dtype != expected_dtype:
        problems.append(
            f"{tokens.dtype} where a codebook of {sidecar.codebook_size} has {expected_dtype}"
        )
    if tokens.size and int(tokens.max()) >= sidecar.codebook_size:
        problems.append(f"value {int(tokens.max())} in a codebook of {sidecar.codebook_size}")
    expected = duration_s * sidecar.frame_rate_hz
    if abs(num_frames - expected) > MAX_FRAME_DIFFERENCE:
        problems.append(f"{num_frames} frames where {duration_s:.3f} s should have {expected:.1f}")
    return problems


def _add_usage(count: Count, tokens: Tokens, codebook_size: int) -> None:
    counts = count_codes(torch.from_numpy(tokens), codebook_size).numpy()
    count.usage = counts if count.usage is None else count.usage + counts


def _is_constant(tokens: Tokens) -> bool:
    return len(tokens) >= MIN_CONSTANT_FRAMES and bool((tokens == tokens[0]).all())
