"""`spear verify`: recomputes everything that shard folders promise, and fails loudly.

Takes shard folders; every shard is verified by itself (`spear.data.verify.shard`), in several
processes or by several jobs on several machines, and the findings are put together: ids that are
in two shards, shards that are missing, sidecars that do not fit their quantiser, codebooks of which
next to nothing is used. With `recheck` the tokens of some cuts are extracted anew
(`spear.data.verify.recheck`). It prints a table, writes `verify.md` and `verify.png` into each
folder, and raises an error that names every problem with its shard and cut.

While it runs, each shard leaves its findings in a small file; a run that was killed goes on from
these, and so does the run that puts the work of jobs together. They are gone when it ends.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spear.data.formats.part_records import PartRecords
from spear.data.formats.shards import find_doubled, find_shard_ids, load_record
from spear.data.formats.tokens import TokenSidecar, find_teachers, sidecar_name
from spear.data.index.shard_folder import ShardFolder
from spear.data.verify.findings import Count, Findings
from spear.data.verify.recheck import load_maker, recheck
from spear.data.verify.report import make_table, write_report
from spear.data.verify.shard import ShardJob, verify_shard
from spear.data.verify.sidecar import check_sidecar
from spear.errors import ConfigError, DataError, SpearError, TokenError
from spear.mvq.usage import entropies
from spear.system import ledger
from spear.system.device import choose_device
from spear.system.parallel import in_processes
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

MAX_SHOWN = 20
"""Problems in the error's message; the report has all."""
MIN_COUNTED_FRAMES = 1000
"""From how many frames on the entropy of a folder's tokens says something."""
_KEEP_S = 7 * 86400.0
"""How long findings of an unfinished run count: what was read long ago may have rotted since."""


@dataclass
class VerifyConfig:
    """What to verify."""

    shards: list[str] = field(default_factory=list)
    """Shard folders."""
    teachers: list[str] = field(default_factory=list)
    """Names of the teachers whose tokens must be there; empty takes all that are."""
    quantizers: dict[str, str] = field(default_factory=dict)
    """Quantiser file by teacher: the tokens must come from exactly this file."""
    audio: bool = True
    """Whether to decode every clip, besides checking its file's checksum."""
    min_entropy: float = 0.2
    """Least entropy of a codebook's tokens in a folder, as a share (0 to 1) of the greatest that so
    many frames and codes can have; folders of fewer than 1,000 frames are not judged."""
    recheck: int = 0
    """Cuts of each folder whose tokens are extracted anew, one by one, and compared; 0 for none.
    Needs `quantizers`, and the teachers' weights."""
    teacher_paths: dict[str, str] = field(default_factory=dict)
    """Where a teacher's weights lie now, by teacher; none is where they lay at extraction."""
    device: str = "auto"
    """Device of teacher and quantiser for `recheck`: auto, cpu, cuda, cuda:1, ..."""
    num_jobs: int = 1
    """Into how many parts the shards are divided: processes of this machine, or see `job`."""
    job: int = 0
    """Verify only this part of `num_jobs`, from 1; 0 does all. When all jobs have run, on any
    machines, a run without `job` puts their findings together and writes the report."""


def run(config: VerifyConfig) -> None:
    """Verifies shard folders and writes a report into each.

    Raises:
        ConfigError: No folder is given, a quantiser file does not exist, or settings do not fit.
        TokenError: Tokens are wrong; the message lists the problems.
        DataError: Something else is wrong.
    """
    _check_config(config)
    found = {Path(path): verify_folder(Path(path), config) for path in config.shards}
    for path, findings in found.items():
        table = make_table(findings)
        log.info("%s\n%s", path, table)
        if config.job == 0:
            write_report(path, findings, table)
            _records_of(path).clear()
    num_problems = sum(findings.num_problems for findings in found.values())
    if num_problems == 0:
        return
    kind = TokenError if any(one.tokens_are_bad for one in found.values()) else DataError
    problems = [f"{path}: {one}" for path, findings in found.items() for one in findings.problems]
    shown = "; ".join(problems[:MAX_SHOWN])
    more = f"; and {num_problems - MAX_SHOWN} more" if num_problems > MAX_SHOWN else ""
    where = "all in verify.md of the folder" if config.job == 0 else f"in part {config.job}"
    raise kind(f"{num_problems} problems ({where}): {shown}{more}")


def verify_folder(path: Path, config: VerifyConfig) -> Findings:
    """Verifies one folder, or this job's part of it.

    Raises:
        DataError: There is no such folder, or no shard in it.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such shard folder")
    shard_ids = find_shard_ids(path)
    if not shard_ids:
        raise DataError(f"{path}: no shards (cuts.000000.jsonl.gz) in this folder")
    findings = Findings()
    record = _load_record(path, findings.count("audio"))
    sidecars = _load_sidecars(path, findings, config)
    own = shard_ids if config.job == 0 else shard_ids[config.job - 1 :: config.num_jobs]
    jobs = [_make_job(path, shard, record, sidecars, config.audio) for shard in own]
    for one in _verify_all(path, jobs, config):
        findings.absorb(one)
        ledger.note(audio_hours=one.duration_s / 3600)
    if config.job == 0:
        _verify_whole(path, findings, record)
        for sidecar in sidecars:
            _verify_teacher(path, findings.count(f"{sidecar.teacher} tokens"), sidecar, config)
    return findings


def _check_config(config: VerifyConfig) -> None:
    if not config.shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    for teacher, path in config.quantizers.items():
        if not Path(path).is_file():
            raise ConfigError(f"quantizers: {teacher}: {path}: no such file")
    if config.recheck > 0 and not config.quantizers:
        raise ConfigError("recheck makes tokens anew: name the quantiser files in quantizers")
    if config.num_jobs < 1 or not 0 <= config.job <= config.num_jobs:
        raise ConfigError(
            f"job must lie between 1 and num_jobs {config.num_jobs}, or be 0 for all: {config.job}"
        )


def _load_record(path: Path, count: Count) -> dict[str, Any]:
    """Returns `shards.json`, empty where there is none or it is broken."""
    try:
        record = load_record(path)
    except DataError as error:
        count.add(str(error))
        return {}
    if not record:
        log.warning("%s: no shards.json: checksums of the audio cannot be checked", path)
    elif not record["complete"]:
        count.add("not all shards are written; run `spear shard` again")
    return record


def _load_sidecars(path: Path, findings: Findings, config: VerifyConfig) -> list[TokenSidecar]:
    """Returns the sidecars of the teachers to verify, each checked against its quantiser."""
    sidecars = []
    wanted = {*config.teachers, *config.quantizers} or _teachers_in(path)
    for teacher in sorted(wanted):
        count = findings.count(f"{teacher} tokens")
        try:
            sidecar = TokenSidecar.load(path / sidecar_name(teacher))
        except TokenError as error:
            count.add(str(error))
            continue
        for problem in check_sidecar(sidecar, teacher, config.quantizers.get(teacher)):
            count.add(problem)
        sidecars.append(replace(sidecar, teacher=teacher))
    return sidecars


def _teachers_in(path: Path) -> set[str]:
    """Returns the teachers that have a sidecar, or tokens whose sidecar is gone."""
    orphans = {tar.name.split("_tokens.")[0] for tar in path.glob("[!.]*_tokens.*.tar")}
    return {*find_teachers(path), *orphans}


def _make_job(
    path: Path,
    shard: int,
    record: dict[str, Any],
    sidecars: Sequence[TokenSidecar],
    decode: bool,
) -> ShardJob:
    entry = record.get("shards", {}).get(f"{shard:06d}")
    own = tuple(
        replace(one, shards={shard: one.shards[shard]} if shard in one.shards else {})
        for one in sidecars
    )
    return ShardJob(path, shard, entry, own, decode)


def _records_of(path: Path) -> PartRecords:
    return PartRecords(path, "verify")


def _verify_all(path: Path, jobs: Sequence[ShardJob], config: VerifyConfig) -> Iterator[Findings]:
    """Yields the findings of every shard, in order; those of an earlier run where these hold."""
    records = _records_of(path)
    known = {job.shard: found for job in jobs if (found := _read_findings(records, job))}
    if known:
        log.info("%s: %d of %d shards were verified before", path, len(known), len(jobs))
    todo = [job for job in jobs if job.shard not in known]
    num_processes = config.num_jobs if config.job == 0 else 1
    fresh = in_processes(verify_shard, todo, min(num_processes, max(1, len(todo))))
    for job in progress(jobs, f"verify {path.name}"):
        findings = known.pop(job.shard, None)
        if findings is None:
            findings = next(fresh)
            records.save(job.shard, {"state": job.state(), **findings.to_json()})
        yield findings


def _read_findings(records: PartRecords, job: ShardJob) -> Findings | None:
    """Returns what was found in a shard, where nothing has changed since and it is not long ago."""
    path = records.path(job.shard)
    try:
        if time.time() - path.stat().st_mtime > _KEEP_S:
            return None
        content = json.loads(path.read_text("utf-8"))
        if content.pop("state") == job.state():
            return Findings.from_json(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # none, or a broken one: the shard is verified again
    return None


def _verify_whole(path: Path, findings: Findings, record: dict[str, Any]) -> None:
    """Judges the shards as a whole: none is missing, no cut is in two."""
    count, here = findings.count("audio"), set(findings.id_hashes)
    for shard in sorted(here ^ {int(key) for key in record["shards"]}) if record else ():
        where = "on disk but not in shards.json" if shard in here else "missing"
        count.add(f"shard {shard:06d}: {where}")
    for cut_id, shard, other in find_doubled(path, findings.id_hashes):
        count.add(f"shard {shard:06d}: cut {cut_id!r} is in shard {other:06d} too")


def _verify_teacher(path: Path, count: Count, sidecar: TokenSidecar, config: VerifyConfig) -> None:
    """Judges the tokens of a folder as a whole."""
    teacher = sidecar.teacher
    for shard in sorted(set(sidecar.shards) - set(find_shard_ids(path))):
        count.add(f"shard {shard:06d}: {teacher} tokens: not in the folder's shards")
    for problem in check_usage(count.usage, config.min_entropy):
        count.add(f"{teacher} tokens: {problem}")
    if config.recheck > 0 and teacher in config.quantizers and count.num_problems == 0:
        _recheck(path, count, sidecar, config)


def check_usage(usage: NDArray[np.int64] | None, min_entropy: float) -> list[str]:
    """Returns which codebooks say next to nothing.

    Args:
        usage: (N, K) how often each token occurs, or None where there are none.
        min_entropy: Least entropy, as a share of that of as many frames on as many codes as can be.
    """
    if usage is None or (num_frames := int(usage[0].sum())) < MIN_COUNTED_FRAMES:
        return []
    shares = entropies(torch.from_numpy(usage)) / math.log(min(usage.shape[1], num_frames))
    low = [
        f"{number} ({value:.2f})"
        for number, value in enumerate(shares.tolist())
        if value < min_entropy
    ]
    return [f"entropy below {min_entropy:g} in codebook {', '.join(low)}"] if low else []


def _recheck(path: Path, count: Count, sidecar: TokenSidecar, config: VerifyConfig) -> None:
    """Extracts the tokens of some cuts anew; only of folders in which nothing else is wrong."""
    teacher = sidecar.teacher
    weights = config.teacher_paths.get(teacher)
    try:
        device = choose_device(config.device)
        maker = load_maker(sidecar, config.quantizers[teacher], device, weights)
        folder = ShardFolder(path)
        for cut, problem in recheck(maker, folder, config.recheck):
            shard = folder.shard_ids[cut.shard]
            count.add(f"shard {shard:06d}: cut {cut.id!r}: {teacher} tokens: {problem}")
    except SpearError as error:
        count.add(str(error))
        return
    num_cuts = min(config.recheck, len(folder))
    log.info("%s: %s tokens of %d cuts extracted anew", path, teacher, num_cuts)
