"""The dry run of `spear extract-tokens`: what is missing, and about what it will cost.

Counts and bytes follow from durations. The time is measured: the pipeline runs on a random sample
of the missing clips of every folder, for as long as is asked for, and writes nothing.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.tokens import token_dtype
from spear.data.tokens.finished import TokenState
from spear.data.tokens.pipeline import ShardWork, missing_shards, plan_shard, read_ahead
from spear.system.markdown import markdown_table
from spear.system.progress import get_logger
from spear.system.rng import generator

log = get_logger(__name__)

WAITING = "waiting for audio"
"""The row of what is not decoded in time."""
SAMPLED_SHARDS = 8
"""Shards of a folder that the sample of clips is from."""
_BYTES_PER_CUT = 1920  # headers of the tar and of the array, and the manifest


@dataclass
class Cost:
    """What one teacher's missing tokens cost, and what was measured of its speed.

    Attributes:
        num_shards: Shards without tokens.
        num_cuts: Their cuts.
        audio_s: Seconds of their audio.
        num_bytes: Size that their tokens will have on disk, about.
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


def log_cost(
    folders: Sequence[Sequence[TokenState]],
    num_jobs: int,
    batch_s: float,
    num_workers: int,
    limit_s: float,
) -> dict[str, Cost]:
    """Logs and returns what the missing tokens cost.

    Args:
        folders: For each folder its teachers.
        num_jobs: Jobs that would share the work.
        batch_s: Most seconds of audio in a batch.
        num_workers: Threads that decode.
        limit_s: Most seconds to measure for.

    Returns:
        Costs by the teacher's name, and `WAITING`.
    """
    costs = {state.maker.name: Cost() for states in folders for state in states} | {WAITING: Cost()}
    missing = [missing_shards(states, range(states[0].folder.num_shards)) for states in folders]
    missing = [work for work in missing if work]
    for work in missing:
        for shard in work:
            _count(costs, shard)
    for work in missing:
        _measure(costs, work, batch_s, num_workers, limit_s / len(missing))
    header = ("missing", "shards", "cuts", "hours", "bytes", "hours per device-hour")
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
        for name, cost in costs.items()
    ]
    hours = sum(cost.hours for cost in costs.values())
    log.info(
        "dry run, nothing written\n%s\n\n%s device-hours, %s for each of %d jobs",
        markdown_table((*header, "device-hours"), rows, "lrrrrrr"),
        f"{hours:,.3f}",
        f"{hours / num_jobs:,.3f}",
        num_jobs,
    )
    return costs


def _count(costs: dict[str, Cost], shard: ShardWork) -> None:
    begin, end = shard.folder.first[shard.position : shard.position + 2]
    samples = int(np.sum(shard.folder.num_samples[begin:end], dtype=np.int64))
    costs[WAITING].audio_s += samples / SAMPLE_RATE_HZ
    for state in shard.states:
        cost, sidecar = costs[state.maker.name], state.maker.sidecar
        cost.num_shards += 1
        cost.num_cuts += int(end - begin)
        cost.audio_s += samples / SAMPLE_RATE_HZ
        frame_bytes = sidecar.num_codebooks * token_dtype(sidecar.codebook_size).itemsize
        frames = samples / SAMPLE_RATE_HZ * sidecar.frame_rate_hz
        cost.num_bytes += round(frames * frame_bytes) + int(end - begin) * _BYTES_PER_CUT


def _measure(
    costs: dict[str, Cost],
    work: Sequence[ShardWork],
    batch_s: float,
    num_workers: int,
    limit_s: float,
) -> None:
    """Runs teachers on a sample of a folder's missing clips; the first batch is no measurement."""
    shards = work[:: -(-len(work) // SAMPLED_SHARDS)]
    batches = [batch for shard in shards for batch in plan_shard(shard, batch_s)]
    order = generator(0, "dry run").permutation(len(batches))
    sample = [batches[number] for number in order]
    deadline = time.monotonic() + limit_s
    with closing(read_ahead(work[0].states[0], sample[:1] + sample, num_workers)) as read:
        audio_s, ready = 0.0, time.monotonic()
        for number, (batch, audio) in enumerate(read):
            spent = {WAITING: time.monotonic() - ready}
            for maker in batch.makers:
                began = time.monotonic()
                num_frames = sum(len(tokens) for _, tokens in maker.tokens(audio))
                audio_s = num_frames / maker.sidecar.frame_rate_hz
                spent[maker.name] = time.monotonic() - began
            ready = time.monotonic()
            for name, seconds in spent.items() if number > 0 else ():
                costs[name].measured_s += audio_s
                costs[name].device_s += seconds
            if number > 0 and ready > deadline:
                return
