"""`spear bench`: how fast this machine reads the data of a pre-training run.

Takes the run's own configuration, makes some of its batches with several numbers of workers, by the
very code that trains, and reports clips a second, hours of audio per core-hour and per hour, how
long batches are waited for, and how many workers a given speed of training needs.
"""

import gc
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from spear.errors import ConfigError
from spear.pretrain.config import PretrainConfig
from spear.pretrain.reading import check_config, make_loader, open_index, training_data
from spear.system.markdown import code, markdown_table, write_markdown
from spear.system.progress import get_logger, progress

logger = get_logger(__name__)


@dataclass
class BenchConfig(PretrainConfig):
    """Times the reading of a pre-training run's data; takes the run's configuration."""

    what: Literal["data"] = "data"
    """What is timed."""

    num_batches: int = 16
    """Batches of each pass, the last ones of epoch 0."""

    worker_counts: list[int] = field(default_factory=list)
    """Numbers of workers to try; none stands for 0, 1, 2, 4, ... up to num_workers."""

    target: float | None = None
    """Hours of audio that training on one rank takes in an hour: how many workers feed it is part
    of the report then. A step of 600 s of audio in 0.5 s is 1,200."""

    output: str = "bench_data.md"
    """The report."""


@dataclass
class Pass:
    """What a run through some batches cost."""

    num_batches: int = 0
    """Batches that came."""
    num_clips: int = 0
    """Clips in them."""
    audio_s: float = 0.0
    """Seconds of these, before augmentation and without padding."""
    cpu_s: float = 0.0
    """Processor seconds of all processes, their start included."""
    wall_s: float = 0.0
    """Seconds from the start of the workers to the last batch."""
    first_s: float = 0.0
    """Seconds from the start of the workers to the first batch."""
    longest_wait_s: float = 0.0
    """Longest that any other batch was waited for, in seconds."""

    @property
    def per_core(self) -> float:
        """Hours of audio in an hour of one core."""
        return self.audio_s / max(self.cpu_s, 1e-9)

    @property
    def per_hour(self) -> float:
        """Hours of audio in an hour, the start included."""
        return self.audio_s / max(self.wall_s, 1e-9)


def time_pass(open_batches: Callable[[], Iterable[Any]]) -> Pass:
    """Reads batches to their end.

    Args:
        open_batches: Makes the loader and returns its batches, which have `ids` and `audio_s`.
            Workers have to end before the system tells their processor time, so nobody else may
            hold the loader.

    Raises:
        SpearError: A clip cannot be read.
    """
    found, cpu_s, begin = Pass(), _cpu_seconds(), time.perf_counter()
    for batch in open_batches():
        now_s = time.perf_counter() - begin
        found.longest_wait_s = max(found.longest_wait_s, now_s - (found.wall_s or now_s))
        found.first_s = found.first_s or now_s
        found.wall_s = now_s
        found.num_batches += 1
        found.num_clips += len(batch.ids)
        found.audio_s += batch.audio_s
    gc.collect()  # the workers end with the loader
    found.cpu_s = _cpu_seconds() - cpu_s
    return found


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
    dataset, plan = training_data(config, index)
    first = max(0, plan.steps(0) - config.num_batches)
    passes = {}
    with one_thread():
        for num_workers in progress(worker_counts(config), "bench"):
            load = partial(make_loader, config, dataset, plan, num_workers)
            passes[num_workers] = time_pass(lambda: load().train(0, first, range(1), 1))  # noqa: B023
    blocks = report(config, len(index), passes)
    print("\n\n".join(blocks))  # noqa: T201
    write_markdown(Path(config.output), blocks)
    logger.info("written to %s", config.output)


def worker_counts(config: BenchConfig) -> list[int]:
    """Returns the numbers of workers to try: those given, or 0, 1, 2, 4, ... and the run's own."""
    powers = (1 << k for k in range(config.num_workers.bit_length()))
    return sorted({*config.worker_counts} or {0, *powers, config.num_workers})


def report(config: BenchConfig, num_clips: int, passes: dict[int, Pass]) -> list[str]:
    """Returns the blocks of the report.

    Args:
        config: What was asked for.
        num_clips: Clips of the run.
        passes: What was measured, by number of workers.
    """
    header = ("workers", "clips/s", "h per core-hour", "h per hour", "first batch (s)")
    rows = [
        (
            f"{num_workers}",
            f"{one.num_clips / one.wall_s:,.1f}",
            f"{one.per_core:,.0f}",
            f"{one.per_hour:,.0f}",
            f"{one.first_s:.2f}",
            f"{one.longest_wait_s:.2f}",
        )
        for num_workers, one in passes.items()
    ]
    one = passes[max(passes)]  # most workers: what travels between processes counts too
    blocks = [
        "# Reading of training data",
        f"{num_clips:,} clips in {', '.join(code(source.path) for source in config.data)}; in each "
        f"pass {one.num_batches} batches of up to {config.batch.max_duration_s:g} s, "
        f"{one.audio_s / 3600:.2f} h of audio. {num_cores()} cores, one thread in every process.",
        markdown_table((*header, "longest other wait (s)"), rows, "rrrrrr"),
        "Hours of audio, without padding. Core-hours are of this process and the workers together; "
        "a pass begins with the start of its workers, which weighs much in a short one. The first "
        "pass reads from the disk what memory does not hold. Waits: of a reader that does nothing "
        "else.",
    ]
    if config.target is not None:
        needed = math.ceil(config.target / one.per_core)
        short = f"; this machine has {num_cores()} cores: too few" if needed > num_cores() else ""
        blocks.append(
            f"{config.target:,g} h per hour need num_workers {needed} or more on each rank, at the "
            f"cost measured with {max(passes)}{short}."
        )
    return blocks


def num_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_seconds() -> float:
    """Returns the processor time of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch work with one thread, as it does in data workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
