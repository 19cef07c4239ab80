"""Quotas, and that the plan keeps them."""

import numpy as np
import pytest

from spear.data.index.plan import BatchConfig, BatchPlan
from spear.errors import ConfigError
from spear.tagging.balance import BalanceConfig, ClassMembers, balanced_table, quotas

COUNTS = np.array([1000, 100, 10, 0])


def members_of(classes_of_clips, num_classes):
    first = np.cumsum([0, *map(len, classes_of_clips)])
    flat = np.array([one for own in classes_of_clips for one in own], np.int64)
    return ClassMembers(first, flat, num_classes)


def draws(table, rows, epoch, max_duration_s=8.0):
    """Clip numbers of an epoch, as the batches bring them."""
    plan = BatchPlan(table, 0, BatchConfig(max_duration_s, min_clip_s=0.0))
    return [rows[row] for step in range(plan.steps(epoch)) for row in plan.batch(epoch, step)]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_quotas_follow_the_power_of_the_counts(strength):
    found = quotas(COUNTS, 300.0, BalanceConfig(strength, max_repeats=1e9))
    assert found.sum() == pytest.approx(300.0)
    assert found[3] == 0
    assert found[0] / found[1] == pytest.approx(10 ** (1 - strength))
    assert found[1] / found[2] == pytest.approx(10 ** (1 - strength))


def test_what_a_rare_class_cannot_use_goes_to_the_others():
    found = quotas(COUNTS, 300.0, BalanceConfig(1.0, max_repeats=2.0))
    assert found.tolist() == [140.0, 140.0, 20.0, 0.0]
    assert quotas(COUNTS, 1e6, BalanceConfig(1.0, max_repeats=2.0)).tolist() == [2000, 200, 20, 0]


def test_an_epoch_holds_every_class_as_often_as_its_quota():
    clips = [[0]] * 30 + [[1]] * 6 + [[1, 2]] * 2
    table, rows = balanced_table(
        np.full(38, 16000, np.uint32), members_of(clips, 3), BalanceConfig(1.0, epoch_clips=36)
    )
    of_pairs = []
    for epoch in range(5):
        drawn = np.array(draws(table, rows, epoch))
        assert len(drawn) == pytest.approx(36, abs=3)
        assert (drawn < 30).sum() == pytest.approx(12, abs=1)
        of_pairs.append((drawn >= 36).sum())
    assert np.mean(of_pairs) == pytest.approx(12 + 12 * 2 / 8, abs=1)  # quota of 2, share of 1


def test_without_strength_every_clip_comes_once_whatever_its_classes():
    members = members_of([[0], [0, 1], [], [1]], 2)
    table, rows = balanced_table(np.full(4, 16000, np.uint32), members, BalanceConfig())
    assert sorted(draws(table, rows, 3)) == [0, 1, 2, 3]


def test_clips_without_a_class_take_part():
    members = members_of([[0], [], [], [0]], 1)
    table, rows = balanced_table(np.full(4, 16000, np.uint32), members, BalanceConfig(1.0))
    assert {int(n) for epoch in range(4) for n in draws(table, rows, epoch)} == {0, 1, 2, 3}


def test_the_order_is_a_pure_function():
    members = members_of([[0]] * 9 + [[1]], 2)
    lengths = np.arange(1, 11, dtype=np.uint32) * 1600
    orders = [draws(*balanced_table(lengths, members, BalanceConfig(0.7)), 2) for _ in range(2)]
    assert orders[0] == orders[1]


def test_impossible_configurations_are_refused():
    for change in ({"strength": 1.1}, {"epoch_clips": -1}, {"max_repeats": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            BalanceConfig(**change)
