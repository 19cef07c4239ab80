import pytest
import torch
from torch import nn

from spear.errors import ConfigError
from spear.optim import Eden, OptimConfig, ScaledAdam, build_optimizer


def make_optimizer() -> ScaledAdam:
    groups = [
        {"named_params": [("encoder", nn.Parameter(torch.ones(2, 2)))], "lr_scale": 0.1},
        {"named_params": [("head", nn.Parameter(torch.ones(2, 2)))]},
    ]
    return ScaledAdam(groups, lr=0.045)


@pytest.mark.parametrize(
    ("batch", "hours", "factor"),
    [
        (0, 0.0, 0.5),
        (250, 0.0, 0.75 * (1 + (250 / 7500) ** 2) ** -0.25),
        (500, 0.0, (1 + (500 / 7500) ** 2) ** -0.25),
        (7500, 0.0, 2**-0.25),
        (7500, 25000.0, 2**-0.5),
        (400_000, 533_333.0, 0.0296),
    ],
)
def test_rates_follow_the_formula(batch, hours, factor):
    scheduler = Eden(make_optimizer(), 7500, 25000, warmup_batches=500, warmup_start=0.5)
    scheduler.step_batch(batch)
    scheduler.step_epoch(hours)
    rates = scheduler.get_last_lr()
    assert rates == pytest.approx([0.0045 * factor, 0.045 * factor], rel=1e-2)
    assert rates[0] / rates[1] == pytest.approx(0.1)


def test_without_an_argument_the_clocks_move_by_one():
    scheduler = Eden(make_optimizer(), 10, 3, warmup_batches=0)
    for _ in range(4):
        scheduler.step_batch()
    scheduler.step_epoch()
    expected = 0.045 * (1 + 0.4**2) ** -0.25 * (1 + (1 / 3) ** 2) ** -0.25
    assert scheduler.get_last_lr()[1] == pytest.approx(expected, rel=1e-12)


def test_state_moves_the_clocks_and_keeps_the_configured_base_rate():
    first = Eden(make_optimizer(), 10, 3)
    first.step_batch(700)
    first.step_epoch(2.5)
    lower = make_optimizer()
    for group in lower.param_groups:
        group["lr"] /= 2
    second = Eden(lower, 10, 3)
    second.load_state_dict(first.state_dict())
    halves = [rate / 2 for rate in first.get_last_lr()]
    assert second.get_last_lr() == pytest.approx(halves, rel=1e-12)


def test_the_second_clock_of_the_configuration_is_hours():
    parameter = nn.Parameter(torch.ones(2, 2))
    config = OptimConfig(lr_hours=100.0, warmup_batches=0.0)
    optimizer, scheduler = build_optimizer([{"named_params": [("w", parameter)]}], config)
    scheduler.step_epoch(100.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.045 * 2**-0.25)
    assert optimizer.param_groups[0]["clipping_scale"] == 2.0


def test_a_built_optimizer_is_warmed_up_from_its_first_step():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer, _ = build_optimizer([{"named_params": [("w", parameter)]}], OptimConfig())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0225)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_lr", 0.0),
        ("lr_batches", -1.0),
        ("lr_hours", 0.0),
        ("warmup_start", 1.5),
        ("warmup_batches", -1.0),
        ("clipping_scale", 0.0),
        ("betas", (0.9, 1.0)),
    ],
)
def test_values_that_cannot_work_are_named(field, value):
    with pytest.raises(ConfigError, match=f"optim.{field}"):
        OptimConfig(**{field: value})


def test_the_schedule_itself_refuses_them_too():
    with pytest.raises(ValueError, match="warmup_start"):
        Eden(make_optimizer(), 10, 3, warmup_start=-0.1)
    with pytest.raises(ValueError, match="lr_batches"):
        Eden(make_optimizer(), 0, 3)
