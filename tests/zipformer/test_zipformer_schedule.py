"""Scheduled floats follow their points, and coins come from torch's generator."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from spear.zipformer import ScheduledFloat, Zipformer, ZipformerConfig, set_schedule
from spear.zipformer.schedule import chance, scheduled_floats


@pytest.mark.parametrize("count", [-5.0, 0.0, 1.0, 1999.0, 4000.0, 9000.0, 16000.0, 1e9])
def test_values_lie_on_the_lines_between_points(count: float) -> None:
    points = [(0.0, 0.2), (4000.0, 0.05), (16000.0, 0.0)]
    x, y = zip(*points, strict=True)
    assert ScheduledFloat(*points).at(count) == pytest.approx(float(np.interp(count, x, y)))


def test_the_default_holds_until_a_schedule_is_set() -> None:
    module = nn.Module()
    module.rate = ScheduledFloat((0.0, 0.5), (10.0, 0.1), default=0.25)
    assert float(module.rate) == 0.25
    set_schedule(module, 0.0)
    assert float(module.rate) == 0.5


def test_the_value_is_a_function_of_the_count_alone() -> None:
    module = nn.Module()
    module.rate = ScheduledFloat((0.0, 0.5), (10.0, 0.1))
    for count in (10.0, 3.0, 7.0, 3.0):
        set_schedule(module, count)
    assert float(module.rate) == module.rate.at(3.0)


def test_a_copy_of_a_model_has_schedules_of_its_own(
    tiny_config: Callable[..., ZipformerConfig],
) -> None:
    model = Zipformer(tiny_config())
    other = copy.deepcopy(model)
    before = [float(rate) for rate in scheduled_floats(other)]
    set_schedule(model, 5000.0)
    assert [float(rate) for rate in scheduled_floats(other)] == before


def test_the_schedules_of_the_method(tiny_config: Callable[..., ZipformerConfig]) -> None:
    model = Zipformer(tiny_config())
    feed_forward = model.encoder.encoders[0].layers[0].feed_forward1
    stack = model.encoder.encoders[2]
    for count, dropout in ((0.0, 0.3), (10000.0, 0.2), (20000.0, 0.1)):
        set_schedule(model, count)
        assert float(feed_forward.out_proj.dropout) == pytest.approx(dropout)
        assert float(model.encoder_embed.dropout) == pytest.approx(dropout)
    # Three stacks share 4,000 counts in quarters; the last one's layer comes in the last quarter.
    for count, skip in ((3000.0, 0.5), (4000.0, 0.07), (9e9, 0.07)):
        set_schedule(model, count)
        assert float(stack.encoder.layers[0].skip_rate) == pytest.approx(skip)


def test_a_fixed_dropout_replaces_the_schedule(tiny_config: Callable[..., ZipformerConfig]) -> None:
    model = Zipformer(tiny_config(dropout=0.15))
    set_schedule(model, 0.0)
    assert model.encoder_embed.dropout == 0.15


def test_chance_is_as_likely_as_it_says_and_seeded() -> None:
    torch.manual_seed(1)
    first = [chance(0.3) for _ in range(2000)]
    torch.manual_seed(1)
    assert first == [chance(0.3) for _ in range(2000)]
    assert sum(first) / 2000 == pytest.approx(0.3, abs=0.04)
    assert not any(chance(0.0) for _ in range(100))
    assert all(chance(1.0) for _ in range(100))
