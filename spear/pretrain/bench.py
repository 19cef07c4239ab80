"""`spear bench data`: how fast this machine reads the data of a pre-training run.

Takes the run's own configuration, makes its first batches with and without augmentation and with
several numbers of workers, and reports hours of audio per core-hour and per hour, where the time of
a batch goes, and how many workers a given speed of training needs.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from spear.data.index.clip_index import ClipIndex
from spear.data.index.loader import BatchDataset, Place
from spear.data.index.plan import BatchPlan
from spear.errors import ConfigError
from spear.pretrain.collate import PretrainBatch
from spear.pretrain.config import PretrainConfig
from spear.pretrain.data_bench import (
    PARTS,
    READING,
    PartTimes,
    Pass,
    forget_files,
    one_thread,
    time_parts,
    time_pass,
)
from spear.pretrain.reading import check_config, make_loader, open_index, training_data
from spear.system.markdown import code, markdown_table, write_markdown
from spear.system.progress import get_logger

logger = get_logger(__name__)


@dataclass
class BenchConfig(PretrainConfig):
    """Times the reading of a pre-training run's data; takes the run's configuration."""

    what: Literal["data"] = "data"
    """What is timed."""

    num_batches: int = 16
    """Batches of each pass, the first ones of epoch 0."""

    worker_counts: list[int] = field(default_factory=list)
    """Numbers of workers to try; none stands for 0, 1, 2, 4, ... up to num_workers."""

    target: float | None = None
    """Hours of audio that training on one rank takes in an hour: how many workers feed it is part
    of the report then. A step of 600 s of audio in 0.5 s is 1,200."""

    forget: bool = True
    """Asks the system to drop the shards from its memory before the first pass, which then shows
    the disk (on Linux). Other programs that read these shards get slower for a while."""

    output: str = "bench_data.md"
    """The report."""


@dataclass
class Timings:
    """What was measured of batches with, or without, augmentation."""

    first: PartTimes
    """In one process, for the first time in this run."""
    again: PartTimes
    """The same once more: the system has the files in memory now."""
    passes: dict[int, Pass]
    """By number of workers."""


class FirstSteps(BatchPlan):
    """The beginning of another plan."""

    def __init__(self, plan: BatchPlan, num_steps: int) -> None:
        """Shares everything with `plan`, which has planned epoch 0 perhaps."""
        vars(self).update(vars(plan))
        self.num_steps = num_steps

    def steps(self, epoch: int, world_size: int = 1) -> int:
        """Returns the number of steps, `num_steps` at most."""
        return min(self.num_steps, super().steps(epoch, world_size))


def run(config: BenchConfig) -> None:
    """Measures, prints and writes the report.

    Raises:
        ConfigError: Settings that do not fit together, or nothing to read.
        SpearError: The data cannot be opened or read; see `spear.pretrain.reading`.
    """
    check_config(config)
    if config.num_batches < 1 or min(config.worker_counts, default=0) < 0:
        raise ConfigError("num_batches must be 1 or more, worker_counts 0 or more")
    if config.target is not None and config.target <= 0:
        raise ConfigError("target is a number of hours per hour, above 0")
    index = open_index(config, config.data)
    forgotten = forget_files(Path(source.path) for source in config.data) if config.forget else 0
    with one_thread():
        plain = measure(replace(config, augment=replace(config.augment, prob=0.0)), index)
        augmented = measure(config, index) if config.augment.prob > 0 else None
    found = {"off": plain} | ({"on": augmented} if augmented else {})
    blocks = report(config, index, found, forgotten > 0)
    print("\n\n".join(blocks))  # noqa: T201
    write_markdown(Path(config.output), blocks)
    logger.info("written to %s", config.output)


def measure(config: BenchConfig, index: ClipIndex) -> Timings:
    """Makes the first batches of a run, part by part and then with every number of workers."""
    dataset, whole = training_data(config, index)
    plan = FirstSteps(whole, config.num_batches)
    places = [Place(0, step, 0, 1) for step in range(plan.steps(0))]
    items = [(place, plan.batch(*place)) for place in places]
    first, again = time_parts(dataset, items), time_parts(dataset, items)
    passes = {}
    for num_workers in worker_counts(config):
        logger.info("augmentation %g, %d workers", config.augment.prob, num_workers)
        passes[num_workers] = time_pass(partial(_open_batches, config, dataset, plan, num_workers))
    return Timings(first, again, passes)


def _open_batches(
    config: PretrainConfig, dataset: BatchDataset, plan: BatchPlan, num_workers: int
) -> Iterator[PretrainBatch]:
    return make_loader(config, dataset, plan, num_workers).share(0, 1)


def worker_counts(config: BenchConfig) -> list[int]:
    """Returns the numbers of workers to try: those given, or 0, 1, 2, 4, ... and the run's own."""
    if config.worker_counts:
        return sorted(set(config.worker_counts))
    powers = {1 << k for k in range(config.num_workers.bit_length())}
    return sorted({0, config.num_workers} | {n for n in powers if n <= config.num_workers})


def workers_for(target: float, found: Pass) -> int:
    """Returns how many workers read `target` hours of audio in an hour, at a pass's cost each."""
    return math.ceil(target / found.per_core)


def report(
    config: BenchConfig, index: ClipIndex, found: dict[str, Timings], forgotten: bool
) -> list[str]:
    """Returns the blocks of the report.

    Args:
        config: What was asked for.
        index: The clips.
        found: What was measured, by whether augmentation is on or off.
        forgotten: Whether the system was asked to drop the shards before the first pass.
    """
    plain = found["off"]
    folders = ", ".join(code(source.path) for source in config.data)
    return [
        "# Reading of training data",
        f"{len(index):,} clips in {folders}; {plain.again.num_batches} batches of up to "
        f"{config.batch.max_duration_s:g} s in each pass, {plain.again.audio_s / 3600:.2f} h of "
        f"audio. {num_cores()} cores, one thread in every process.",
        _passes_table(found),
        "Hours of audio, without padding. Core-hours are of this process and the workers together; "
        "a pass begins with the start of its workers, which weighs much in a short one.",
        _advice(config, found),
        "## Where the time goes",
        _parts_table(found),
        _reading_facts(found, forgotten),
    ]


def _passes_table(found: dict[str, Timings]) -> str:
    rows = [
        (
            augmentation,
            str(num_workers),
            f"{one.per_core:,.0f}",
            f"{one.per_hour:,.0f}",
            f"{one.batches_per_s:.2f}",
            f"{one.first_s:.2f}",
        )
        for augmentation, timings in found.items()
        for num_workers, one in timings.passes.items()
    ]
    header = ("augmentation", "workers", "h per core-hour", "h per hour", "batches/s", "first s")
    return markdown_table(header, rows, "lrrrrr")


def _advice(config: BenchConfig, found: dict[str, Timings]) -> str:
    """Says what augmentation costs, and how many workers the wanted speed needs."""
    sentences = []
    passes = list(found.values())[-1].passes
    best = max(passes)  # most workers: what travels between processes counts too
    if "on" in found:
        ratio = found["off"].passes[best].per_core / found["on"].passes[best].per_core
        sentences.append(f"Augmentation makes a batch {ratio:.2f} times as expensive.")
    if config.target is not None:
        needed = workers_for(config.target, passes[best])
        sentences.append(
            f"{config.target:,g} h per hour need num_workers {needed} or more on each rank, at the "
            f"cost measured with {best}."
        )
        if needed > num_cores():
            sentences.append(f"This machine has {num_cores()} cores: too few.")
    return " ".join(sentences)


def _parts_table(found: dict[str, Timings]) -> str:
    columns = [("off, first time", found["off"].first)]
    columns += [(augmentation, timings.again) for augmentation, timings in found.items()]
    rows = [(part, *(f"{times.ms_per_batch(part):.1f}" for _, times in columns)) for part in PARTS]
    totals = (1e3 * times.total_s / max(times.num_batches, 1) for _, times in columns)
    rows.append(("all", *(f"{total:.1f}" for total in totals)))
    header = ("ms per batch, in one process", *(f"augmentation {name}" for name, _ in columns))
    return markdown_table(header, rows, "lrrr")


def _reading_facts(found: dict[str, Timings], forgotten: bool) -> str:
    first, again = found["off"].first, found["off"].again
    last = list(found.values())[-1].again
    share = last.seconds[READING] / max(last.total_s, 1e-9)
    source = (
        "from the disk, or from what the file system keeps beyond this machine's memory"
        if forgotten
        else "from the disk, or from memory where something had read the files before"
    )
    return (
        f"The first time, bytes came at {first.megabytes_per_s:,.0f} MB/s, {source}; then at "
        f"{again.megabytes_per_s:,.0f} MB/s from the system's memory, as in later epochs if all "
        f"shards fit there. An hour of audio is {again.megabytes_per_hour:.0f} MB with its tokens. "
        f"In the last column reading is {share:.1%} of the time, and {last.padding:.1%} of the "
        "frames are padding."
    )


def num_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
