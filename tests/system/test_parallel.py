import threading
import time
from collections.abc import Callable, Iterator

import pytest

from spear.errors import AudioError
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
    results.close()
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


def test_as_many_are_ahead_as_is_said() -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    for num_workers, num_ahead in ((0, 0), (1, 2), (3, 4)):
        drawn.clear()
        found = []
        for square in in_threads(lambda one: one * one, jobs(), num_workers, num_ahead):
            found.append(square)
            assert len(drawn) - len(found) <= num_ahead
        assert found == [number**2 for number in range(20)]


def test_work_goes_on_while_the_caller_is_busy() -> None:
    began = threading.Event()
    results = in_threads(lambda number: began.set() if number else None, [0, 1], 1, 1)
    next(results)
    assert began.wait(timeout=60)  # the second was begun, though nobody asked for it
    results.close()


def test_an_error_is_raised_as_it_is_and_no_thread_is_left() -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise AudioError("cut 2: broken")
        return number

    done = []
    threads = set(threading.enumerate())
    with pytest.raises(AudioError, match=r"^cut 2: broken$"):
        done += list(in_threads(fail, range(5), 2))
    assert set(threading.enumerate()) <= threads


def test_where_drawing_a_job_fails_those_before_are_finished() -> None:
    done = []

    def jobs() -> Iterator[int]:
        yield from range(3)
        raise KeyError("no fourth")

    def work(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(KeyError, match="no fourth"):
        list(in_threads(work, jobs(), 1, 10))
    assert done == [0, 1, 2]
