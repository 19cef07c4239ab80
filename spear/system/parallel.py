"""Work spread over threads or processes, a few jobs ahead of what is asked for.

`Executor.map` takes every job before the first result is out; a corpus of millions of recordings
would lie in memory as futures. Here results come in the order of the jobs, and no more jobs are
drawn from their iterator than keep everybody busy.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_AHEAD = 4
"""Jobs drawn for each worker: the one it does and some for when results come unevenly."""


def in_threads(function: Callable[[J], R], jobs: Iterable[J], num_workers: int) -> Iterator[R]:
    """Yields `function(job)` for every job, in order, computed by threads."""
    with ThreadPoolExecutor(num_workers) as pool:
        yield from _map(pool, function, jobs, _AHEAD * num_workers)


def in_processes(function: Callable[[J], R], jobs: Iterable[J], num_workers: int) -> Iterator[R]:
    """Yields `function(job)` for every job, in order; in this process where one is enough."""
    if num_workers == 1:
        yield from map(function, jobs)
        return
    # Not forked: the parent may hold threads of torch, which a fork would leave in any state.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from _map(pool, function, jobs, _AHEAD * num_workers)


def _map(
    pool: Executor, function: Callable[[J], R], jobs: Iterable[J], num_ahead: int
) -> Iterator[R]:
    remaining = iter(jobs)
    running: deque[Future[R]] = deque()
    try:
        running.extend(pool.submit(function, job) for job in islice(remaining, num_ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, job) for job in islice(remaining, 1))
            yield result
    finally:
        for future in running:
            future.cancel()
