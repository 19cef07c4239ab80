"""A process that makes no progress says where it stands, and ends."""

import os
import sys
import time

import pytest

from spear.training.health.watchdog import EXIT_HANG, Watchdog


def in_child(work):
    """Runs `work` in a forked process; returns its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_hanging_process_writes_its_stacks_and_ends(tmp_path, capfd):
    def stuck_in_here():
        time.sleep(60)

    def hang():
        with Watchdog(0.2, tmp_path / "hang.txt"):
            stuck_in_here()

    assert in_child(hang) == EXIT_HANG
    assert "stuck_in_here" in (tmp_path / "hang.txt").read_text()
    assert "stuck_in_here" in capfd.readouterr().err


def test_progress_keeps_it_alive(tmp_path):
    def work():
        with Watchdog(0.3, tmp_path / "hang.txt") as watchdog:
            for _ in watchdog.watch(range(8)):
                time.sleep(0.1)

    assert in_child(work) == 0
    assert not (tmp_path / "hang.txt").exists()


def test_after_the_run_nothing_is_watched(tmp_path):
    def work():
        with Watchdog(0.1, tmp_path / "hang.txt"):
            pass
        time.sleep(0.4)

    assert in_child(work) == 0


@pytest.mark.parametrize("limit_s", [0.0])
def test_it_can_be_turned_off(tmp_path, limit_s):
    def work():
        with Watchdog(limit_s, tmp_path / "hang.txt"):
            time.sleep(0.3)

    assert in_child(work) == 0


def test_code_that_never_lets_go_of_the_interpreter_is_ended_too(tmp_path, monkeypatch):
    """A thread of Python cannot run then; that of faulthandler can."""
    monkeypatch.setattr("spear.training.health.watchdog._GRACE_S", 0.2)

    def hang():
        sys.setswitchinterval(1000.0)
        with Watchdog(0.2, tmp_path / "hang.txt"):
            time.sleep(0.1)  # the watchdog's thread begins
            sum(range(10**11))

    begin = time.monotonic()
    assert in_child(hang) in (1, EXIT_HANG)
    assert time.monotonic() - begin < 30
