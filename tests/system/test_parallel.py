import threading
from collections.abc import Callable, Iterator

import pytest

from spear.system.parallel import in_processes, in_threads


def square(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("run", [in_threads, in_processes])
def test_results_come_in_order(run: Callable[..., Iterator[int]], workers: int) -> None:
    assert list(run(square, iter(range(6)), workers)) == [0, 1, 4, 9, 16, 25]
    assert list(run(square, [], workers)) == []
    with pytest.raises(ValueError, match="seven"):
        list(run(square, range(9), workers))


def test_no_more_jobs_are_drawn_than_keep_the_workers_busy() -> None:
    drawn = []

    def jobs() -> Iterator[int]:
        for number in range(10_000):
            drawn.append(number)
            yield number

    results = in_threads(lambda number: number, jobs(), 2)
    assert next(results) == 0
    assert len(drawn) < 12
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 12


def test_the_other_jobs_end_where_one_fails() -> None:
    done = []

    def work(number: int) -> None:
        if number == 0:
            raise KeyError
        done.append(number)

    with pytest.raises(KeyError):
        list(in_threads(work, range(1000), 2))
    assert len(done) < 20
