"""The verdict on a step: what is bad, whose cuts are named, and that nobody waits for it."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spear.errors import SpearError
from spear.system.distributed import Ranks
from spear.training.health.health import BadBatches
from spear.training.health.step_verdict import MIN_LOSSES, WINDOW, SpikeFinder, Verdicts
from spear.training.position import Position

RANKS = Ranks(torch.device("cpu"))
NAN, INF = float("nan"), float("inf")


def make_verdicts(folder, max_in_a_row=3, spike_factor=0.0, ranks=RANKS):
    return Verdicts(ranks, BadBatches(folder / "bad.jsonl", max_in_a_row, ranks), spike_factor)


def judge(verdicts, step, loss, gradient_is_finite=True):
    """What a training step does: judges, updates (here: or not), settles."""
    is_good = verdicts.judge(torch.tensor(loss))
    happened = is_good & torch.tensor(gradient_is_finite)
    verdicts.settle(happened, Position(step=step), [f"cut-{step}"])
    return bool(is_good)


@pytest.mark.parametrize("loss", [1.0, NAN, INF])
def test_a_loss_is_good_when_it_is_finite(tmp_path, loss):
    assert judge(make_verdicts(tmp_path), 0, loss) == (loss == 1.0)


def test_the_cuts_of_a_bad_step_are_named_once_the_verdict_is_read(tmp_path):
    verdicts = make_verdicts(tmp_path)
    judge(verdicts, 0, 1.0)
    judge(verdicts, 1, NAN)
    assert not (tmp_path / "bad.jsonl").exists()
    judge(verdicts, 2, 1.0, gradient_is_finite=False)
    verdicts.read()
    verdicts.read()  # nothing is under way
    found = [json.loads(line) for line in (tmp_path / "bad.jsonl").open()]
    assert [(one["step"], one["ids"], one["loss_is_finite"]) for one in found] == [
        (2, ["cut-1"], False),
        (3, ["cut-2"], True),
    ]
    assert verdicts.bad_batches.state_dict() == {"in_a_row": 2, "total": 2}


def test_too_many_in_a_row_stop_before_another_update(tmp_path):
    verdicts = make_verdicts(tmp_path, max_in_a_row=2)
    judge(verdicts, 0, NAN)
    judge(verdicts, 1, NAN)
    with pytest.raises(SpearError, match="step 2: 2 steps in a row"):
        judge(verdicts, 2, 1.0)


def test_no_step_asks_the_device_for_a_number(tmp_path):
    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert "local_scalar_dense" not in str(function), "the host read a tensor"
            return function(*args, **(kwargs or {}))

    verdicts = make_verdicts(tmp_path, spike_factor=2.0)
    loss = torch.tensor(1.0)
    verdicts.read = lambda: None  # the one read, which is of the step before
    with NoReads():
        for step in range(3):
            verdicts.settle(verdicts.judge(loss), Position(step=step), ["a"])
        with pytest.raises(AssertionError, match="the host read"):
            loss.item()


def test_a_spike_is_measured_against_the_median_of_good_steps():
    finder = SpikeFinder(3.0, RANKS.device)
    good = torch.tensor(True)
    for step in range(MIN_LOSSES):
        assert finder.is_fine(torch.tensor(1e9)), "too early to say"
        finder.note(torch.tensor(1.0 + 0.01 * step), good)
    assert finder.is_fine(torch.tensor(3.4)) and not finder.is_fine(torch.tensor(3.6))
    assert not finder.is_fine(torch.tensor(NAN))
    before = finder.losses.clone()
    finder.note(torch.tensor(100.0), torch.tensor(False))
    assert torch.equal(finder.losses, before) or finder.losses.isnan().sum() == before.isnan().sum()
    for _ in range(2 * WINDOW):
        finder.note(torch.tensor(10.0), good)
    assert finder.is_fine(torch.tensor(29.0)) and not finder.is_fine(torch.tensor(31.0))


def test_the_window_survives_a_restart():
    finder, other = SpikeFinder(3.0, RANKS.device), SpikeFinder(3.0, RANKS.device)
    for step in range(40):
        finder.note(torch.tensor(0.1 * step), torch.tensor(True))
    other.load_state_dict(json.loads(json.dumps(finder.state_dict())))
    assert torch.equal(finder.losses.nan_to_num(-1.0), other.losses.nan_to_num(-1.0))
    other.load_state_dict(SpikeFinder(3.0, RANKS.device).state_dict())
    assert other.losses.isnan().all()


def test_by_default_nothing_is_a_spike(tmp_path):
    verdicts = make_verdicts(tmp_path)
    assert all(judge(verdicts, step, loss) for step, loss in enumerate([1.0] * 50 + [1e6]))
