import os

import pytest
import torch
from torch import nn

from spear.errors import CheckpointError, ConfigError
from spear.system.differences import describe_differences
from spear.system.distributed import Ranks, join_ranks
from spear.training import Position, TrainConfig
from spear.training.checkpoints.averaging import RunningAverage, mean_between
from spear.training.logs.clock import Clock, Interval, format_duration
from spear.training.validation import evaluating


def test_positions_count_steps_audio_and_schedule():
    position = Position(schedule_unit_s=10.0).after_step(25.0).after_step(5.0)
    assert (position.step, position.step_in_epoch, position.schedule) == (2, 2, 3.0)
    later = position.next_epoch().after_step(3570.0)
    assert (later.step, later.epoch, later.step_in_epoch) == (3, 1, 1)
    assert later.audio_hours == 1.0
    assert Position(**later.to_dict(), schedule_unit_s=10.0) == later


def test_a_small_weight_change_survives_in_the_average_for_ever():
    """In float32 an increment of 1e-9 next to 1.0 vanishes; over (n, n+1] it must come back."""
    model = nn.Linear(1, 1, bias=False).double()
    average = RunningAverage(model)
    kept = {}
    for step in range(1, 50_001):
        with torch.no_grad():
            model.weight.fill_(1.0 + 1e-9 * (step == 50_000))
        average.update(model)
        if step == 49_999:
            kept = {name: value.clone() for name, value in average.values.items()}
    last = mean_between(kept, 49_999, average.values, 50_000)["weight"].item()
    assert last - 1.0 == pytest.approx(1e-9, rel=1e-2)


def test_an_average_begins_with_the_first_contribution():
    model = nn.Linear(2, 2)
    average = RunningAverage(model)
    initial = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(average.values["weight"].float(), initial)
    average.update(model)
    assert torch.equal(average.values["weight"], model.weight.detach().double())


def test_a_narrow_or_foreign_average_is_refused():
    average = RunningAverage(nn.Linear(2, 2))
    narrow = {name: value.float() for name, value in average.values.items()}
    with pytest.raises(CheckpointError, match="float32, not float64"):
        average.load(narrow, 3)
    with pytest.raises(CheckpointError, match="bias"):
        average.load({"weight": average.values["weight"]}, 3)
    with pytest.raises(ValueError, match="no contribution between 4 and 4"):
        mean_between({}, 4, average.values, 4)


def test_differences_are_told_by_their_path():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": "x", "gone": None}
    new = {"a": {"b": 2, "c": (1, 2)}, "d": "x", "more": {"e": 0}}
    assert describe_differences(old, new) == [
        "a.b: 1 before, 2 now",
        "gone: None before, nothing now",
        "more.e: nothing before, 0 now",
    ]
    assert describe_differences(old, old) == []


def test_speeds_leave_out_what_is_not_a_step():
    clock = Clock(elapsed_s=100.0)
    assert clock.eta(5) == "unknown" and clock.take_interval().values() == {}
    clock.data_arrived()
    clock.step_done(30.0)
    interval = clock.take_interval()
    assert interval.steps == 1 and 0 <= interval.wait_s <= interval.busy_s < 5
    assert clock.take_interval() == Interval()
    assert clock.elapsed_s > 100.0
    values = Interval(steps=4, audio_s=50.0, wait_s=0.5, busy_s=2.0).values()
    assert values == {
        "speed/audio_s_per_s": 25.0,
        "speed/frames_per_s": 2500.0,
        "speed/step(s)": 0.5,
        "data/wait(%)": 25.0,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59 s"), (723, "12 min 3 s"), (19_230, "5 h 20 min"), (273_700, "3 d 4 h")],
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text


def test_alone_the_ranks_say_nothing():
    with join_ranks("cpu") as ranks:
        assert ranks == Ranks(torch.device("cpu"), 0, 1) and ranks.is_main
        tensor = torch.tensor([1.0, 2.0])
        assert ranks.all_reduce(tensor, "max") is tensor
        assert ranks.gather_bytes(b"x") == [b"x"] and ranks.broadcast_int(-3) == -3


def test_a_group_that_cannot_form_says_how_to_start(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"), join_ranks("cpu"):
        pass


def test_evaluation_leaves_generators_and_modes_alone():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model[1].eval()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(KeyError), evaluating(model, torch.device("cpu")):
        assert not model.training and not model[0].training
        torch.rand(100)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
    assert model.training and model[0].training and not model[1].training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("log_every", 0),
        ("keep_last", 0),
        ("averaging_every", 0),
        ("valid_every", -1),
        ("save_every", -5),
        ("schedule_unit_s", 0.0),
        ("max_nonfinite_steps", 0),
        ("output_dir", ""),
    ],
)
def test_settings_that_cannot_work_are_named(field, value):
    with pytest.raises(ConfigError, match=f"train.{field}"):
        TrainConfig(**{field: value})


def test_importing_the_loop_needs_no_optional_package():
    import subprocess
    import sys

    code = (
        "import sys, spear.training, spear.optim\n"
        "loaded = {'tensorboard', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
