"""Work spread over threads or processes, a few jobs ahead of what is asked for.

`Executor.map` takes every job before the first result is out; a corpus of millions of recordings
would lie in memory as futures. Here results come in the order of the jobs, and no more jobs are
drawn from their iterator than keep everybody busy.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_AHEAD = 4
"""Jobs drawn for each worker: the one it does and some for when results come unevenly."""


def in_threads(
    function: Callable[[J], R], jobs: Iterable[J], num_workers: int, num_ahead: int | None = None
) -> Generator[R]:
    """Yields `function(job)` for every job, in order, computed by threads.

    Args:
        function: May be called by several threads; what it raises is raised here.
        jobs: Drawn as they are needed. Where drawing one fails, those before are finished first.
        num_workers: Threads; 0 computes when asked.
        num_ahead: Most jobs that are drawn and not yet asked for; None is four for each thread.
    """
    if num_workers == 0:
        yield from map(function, jobs)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        yield from _map(pool, function, jobs, num_ahead or _AHEAD * num_workers)


def in_processes(function: Callable[[J], R], jobs: Iterable[J], num_workers: int) -> Generator[R]:
    """Yields `function(job)` for every job, in order; in this process where one is enough."""
    if num_workers == 1:
        yield from map(function, jobs)
        return
    # Not forked: the parent may hold threads of torch, which a fork would leave in any state.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from _map(pool, function, jobs, _AHEAD * num_workers)


def _map(
    pool: Executor, function: Callable[[J], R], jobs: Iterable[J], num_ahead: int
) -> Generator[R]:
    running: deque[Future[R]] = deque()
    try:
        for job in _drawn(jobs, running):
            running.append(pool.submit(function, job))
            if len(running) > num_ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _drawn(jobs: Iterable[J], running: Iterable[Future[R]]) -> Generator[J]:
    try:
        yield from jobs
    except (Exception, KeyboardInterrupt):
        wait(running)
        raise
