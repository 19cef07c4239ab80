"""The dry run of `spear extract-tokens`: what is missing, and what it will cost.

Bytes follow from durations. The time is measured: the pipeline runs on a random sample of the
missing clips of every folder, for as long as is asked for, and writes nothing.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from spear.data.formats.shards import CutInfo
from spear.data.formats.tokens import token_dtype
from spear.data.tokens.extract_shards import Batch, Extractor, ShardWork
from spear.data.tokens.extract_state import TokenState
from spear.data.tokens.extract_teacher import TokenMaker
from spear.data.tokens.pieces import num_samples
from spear.data.tokens.read_ahead import AudioBatch
from spear.system.markdown import markdown_table
from spear.system.progress import get_logger
from spear.system.rng import generator

log = get_logger(__name__)

SAMPLED_SHARDS = 8
"""Shards of a folder that the sample of clips is from."""
_BLOCK, _RECORD = 512, 10240  # of tar files
_NPY_HEADER = 128
_SHORT_NAME = 100  # bytes of a member's name that need no block of their own


@dataclass
class Cost:
    """What one teacher's missing tokens cost, and what was measured of its speed.

    Attributes:
        num_shards: Shards without tokens.
        num_cuts: Their cuts.
        audio_s: Seconds of their audio.
        num_bytes: Size that their tokens will have on disk.
        measured_s: Seconds of audio in the sample.
        device_s: Seconds that the sample took.
    """

    num_shards: int = 0
    num_cuts: int = 0
    audio_s: float = 0.0
    num_bytes: int = 0
    measured_s: float = 0.0
    device_s: float = 0.0

    @property
    def speed(self) -> float:
        """Seconds of audio per second."""
        return self.measured_s / self.device_s if self.device_s else 0.0

    @property
    def hours(self) -> float:
        """Hours that all of it will take."""
        return self.audio_s / self.speed / 3600 if self.speed else 0.0


@dataclass
class Estimate:
    """The costs of all teachers, and of waiting for audio.

    Attributes:
        teachers: By the teacher's name.
        waiting: For audio that is not decoded in time.
    """

    teachers: dict[str, Cost]
    waiting: Cost = field(default_factory=Cost)

    @property
    def hours(self) -> float:
        """Device-hours in all."""
        return self.waiting.hours + sum(cost.hours for cost in self.teachers.values())


def log_cost(
    extractor: Extractor, folders: Sequence[Sequence[TokenState]], num_jobs: int, limit_s: float
) -> Estimate:
    """Logs and returns what the missing tokens cost.

    Args:
        extractor: What would make them.
        folders: For each folder its teachers.
        num_jobs: Jobs that would share the work.
        limit_s: Most seconds to measure for.
    """
    estimate = Estimate({maker.name: Cost() for maker in extractor.makers})
    missing = [extractor.missing(states, range(states[0].folder.num_shards)) for states in folders]
    missing = [work for work in missing if work]
    for work in missing:
        for shard in work:
            _count(estimate, shard)
    for work in missing:
        _measure(estimate, extractor, work, limit_s / len(missing))
    log.info("%s", describe(estimate, num_jobs))
    return estimate


def describe(estimate: Estimate, num_jobs: int) -> str:
    """Returns an estimate as a table and a line on the jobs."""
    rows = [
        (
            name,
            f"{cost.num_shards:,}",
            f"{cost.num_cuts:,}",
            f"{cost.audio_s / 3600:,.3f}",
            f"{cost.num_bytes:,}",
            f"{cost.speed:,.0f}",
            f"{cost.hours:,.3f}",
        )
        for name, cost in estimate.teachers.items()
    ]
    rows.append(("waiting for audio", "", "", "", "", "", f"{estimate.waiting.hours:,.3f}"))
    header = ("missing", "shards", "cuts", "hours", "bytes", "hours per device-hour")
    table = markdown_table((*header, "device-hours"), rows, "lrrrrrr")
    per_job = estimate.hours / num_jobs
    return (
        f"dry run, nothing written\n{table}\n\n{estimate.hours:,.3f} device-hours, "
        f"{per_job:,.3f} for each of {num_jobs} jobs"
    )


def token_bytes(cuts: Sequence[CutInfo], maker: TokenMaker) -> int:
    """Returns the size of a shard's token file in bytes."""
    row = maker.sidecar.num_codebooks * token_dtype(maker.sidecar.codebook_size).itemsize
    size = 2 * _BLOCK  # the end
    for cut in cuts:
        frames = maker.teacher.num_frames(num_samples(cut))
        size += 3 * _BLOCK + _blocks(_NPY_HEADER + frames * row)
        for suffix in (".npy", ".json"):
            name = len(f"{cut.id}{suffix}".encode())
            size += _BLOCK + _blocks(name + 1) if name > _SHORT_NAME else 0
    return -(-size // _RECORD) * _RECORD


def _blocks(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def _count(estimate: Estimate, shard: ShardWork) -> None:
    audio_s = sum(cut.duration_s for cut in shard.cuts)
    estimate.waiting.audio_s += audio_s
    for state in shard.states:
        cost = estimate.teachers[state.maker.name]
        cost.num_shards += 1
        cost.num_cuts += len(shard.cuts)
        cost.audio_s += audio_s
        cost.num_bytes += token_bytes(shard.cuts, state.maker)


def _measure(
    estimate: Estimate, extractor: Extractor, work: Sequence[ShardWork], limit_s: float
) -> None:
    """Runs teachers on a sample of a folder's missing clips; the first batch is no measurement."""
    sample = _sample(work, extractor.batch_s)
    deadline = time.monotonic() + limit_s
    with closing(extractor.read(work[0].folder, sample[:1] + sample)) as batches:
        is_warm = False
        began = time.monotonic()
        for (_, batch), audio in batches:
            spent = {maker.name: _time(maker, audio) for maker in batch.makers}
            now = time.monotonic()
            if is_warm:
                for name, (seconds, measured_s) in spent.items():
                    estimate.teachers[name].device_s += seconds
                    estimate.teachers[name].measured_s += measured_s
                estimate.waiting.device_s += now - began - sum(one for one, _ in spent.values())
                estimate.waiting.measured_s += max(measured for _, measured in spent.values())
            if is_warm and now > deadline:
                return
            is_warm, began = True, now


def _time(maker: TokenMaker, audio: AudioBatch) -> tuple[float, float]:
    """Returns how many seconds the tokens of a batch take, and how many of audio they stand for."""
    began = time.monotonic()
    num_frames = sum(len(tokens) for _, tokens in maker.tokens(audio))
    return time.monotonic() - began, num_frames / maker.frame_rate_hz


def _sample(work: Sequence[ShardWork], batch_s: float) -> list[tuple[ShardWork, Batch]]:
    """Returns batches of some shards, spread over a folder, in a random order."""
    step = -(-len(work) // SAMPLED_SHARDS)
    batches = [(shard, batch) for shard in work[::step] for batch in shard.begin(batch_s)]
    order = generator(0, "dry run").permutation(len(batches))
    return [batches[number] for number in order]
