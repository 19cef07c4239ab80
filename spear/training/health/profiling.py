"""A trace of twenty steps of a run, for Perfetto or Chrome, and a table of operations."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from spear.system.files import write_text
from spear.system.progress import get_logger

SKIPPED_STEPS, WARMUP_STEPS, TRACED_STEPS = 3, 2, 20
_ROWS = 40
_logger = get_logger(__name__)


@contextlib.contextmanager
def profiling(folder: Path, rank: int, is_on: bool) -> Iterator[Callable[[], None]]:
    """Profiles the steps within; yields what is to be called after each of them.

    Args:
        folder: Where `trace-00000.json.gz` and `operations-00000.txt` go.
        rank: This rank: the number in the names.
        is_on: Whether to profile at all.
    """
    if not is_on:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(profiler: Any) -> None:
        trace = folder / f"trace-{rank:05d}.json.gz"
        profiler.export_chrome_trace(str(trace))
        key = "self_cuda_time_total" if len(activities) > 1 else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=_ROWS)
        write_text(folder / f"operations-{rank:05d}.txt", table + "\n")
        _logger.info("profile of %d steps: %s", TRACED_STEPS, trace)

    plan = schedule(wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=TRACED_STEPS, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
