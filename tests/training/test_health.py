import json
import os
import signal
import threading
import time

import pytest
import torch

from spear.errors import SpearError
from spear.system.distributed import Ranks
from spear.training.health.health import BadBatches, StopRequest
from spear.training.position import Position

RANKS = Ranks(torch.device("cpu"))


def test_only_steps_in_a_row_end_the_run(tmp_path):
    bad = BadBatches(tmp_path / "bad_batches.jsonl", 2, RANKS)
    bad.bad(Position(step=4), ["a", "b"], False)
    bad.good()
    bad.bad(Position(step=6), ["c"], True)
    with pytest.raises(SpearError, match="step 8: 2 steps in a row"):
        bad.bad(Position(step=7), ["é"], False)
    records = [json.loads(line) for line in bad.path.read_text("utf-8").splitlines()]
    assert [(r["step"], r["ids"], r["loss_is_finite"]) for r in records] == [
        (5, ["a", "b"], False),
        (7, ["c"], True),
        (8, ["é"], False),
    ]
    assert bad.state_dict() == {"in_a_row": 2, "total": 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_becomes_a_request(number):
    with StopRequest() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), number)  # passed on twice, by torchrun and the scheduler, say
        assert stop.signal == number


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_ends_the_process_at_once(second, monkeypatch, capfd):
    monkeypatch.setattr("spear.training.health.health.SAME_REQUEST_S", 0.0)
    child = os.fork()
    if child == 0:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            os.kill(os.getpid(), second)
            time.sleep(5)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + second
    assert "ending at once" in capfd.readouterr().err


def test_a_forked_child_still_dies_of_the_signal():
    reader, writer = os.pipe()
    with StopRequest() as stop:
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            for _ in range(500):  # Python runs its handler between two of these
                time.sleep(0.02)
            os._exit(0)
        os.read(reader, 1)  # a signal that meets the fork itself would be lost
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
    assert stop.signal == 0


def test_outside_the_main_thread_nothing_is_caught():
    results = []

    def enter():
        with StopRequest() as stop:
            results.append(stop.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert results == [0]
