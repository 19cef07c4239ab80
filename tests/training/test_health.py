import json
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

from spear.distributed import Ranks
from spear.errors import SpearError
from spear.training.health import BadBatches, StopRequest, agree, gradient_norm
from spear.training.position import Position

RANKS = Ranks(torch.device("cpu"))
AUDIO_S = torch.tensor(12.25, dtype=torch.float64)


@pytest.mark.parametrize("loss", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("norm", [1.0, float("nan"), float("inf")])
def test_a_step_is_fine_when_loss_and_gradient_are(loss, norm):
    verdict = agree(RANKS, torch.tensor(loss), torch.tensor(norm), 0, AUDIO_S)
    assert verdict.is_finite == (loss == norm == 1.0)
    assert verdict.audio_s == 12.25 and verdict.stop_signal == 0


def test_one_bad_element_shows_in_the_norm():
    parameters = [nn.Parameter(torch.ones(size)) for size in (3, 2, 1)]
    assert gradient_norm(parameters, RANKS.device).item() == 0.0
    parameters[0].grad = torch.tensor([3.0, 0.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, -4.0])
    assert gradient_norm(parameters, RANKS.device).item() == pytest.approx(5.0)
    parameters[1].grad[0] = float("nan")
    assert not gradient_norm(parameters, RANKS.device).isfinite()


def test_only_steps_in_a_row_end_the_run(tmp_path):
    bad = BadBatches(tmp_path / "bad_batches.jsonl", 2, RANKS)
    nan = torch.tensor(float("nan"))
    bad.bad(Position(step=4), ["a", "b"], nan)
    bad.good()
    bad.bad(Position(step=6), ["c"], torch.tensor(1.0))
    with pytest.raises(SpearError, match="step 8: 2 steps in a row"):
        bad.bad(Position(step=7), ["é"], nan)
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
    verdict = agree(RANKS, torch.tensor(1.0), torch.tensor(1.0), stop.signal, AUDIO_S)
    assert verdict.stop_signal == number and verdict.is_finite


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
