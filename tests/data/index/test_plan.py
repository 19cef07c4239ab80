"""The batch plan: complete, pure, within its budget, equal on all ranks."""

from collections import Counter

import numpy as np
import pytest

from spear.data.index.clip_table import ClipTable, to_samples
from spear.data.index.packing import pack, pack_by_length
from spear.data.index.plan import BatchConfig, BatchPlan
from spear.errors import ConfigError, DataError
from spear.system.rng import generator


def make_plan(num=500, seed=1, weights=None, growth_s=0.0, sources=1, **limits):
    """A plan of `num` clips in shards of 20, the sources of equal size."""
    durations = np.random.default_rng(7).gamma(4.0, 2.0, num).clip(0.6, 29.0)
    first = np.append(np.arange(0, num, 20), num)
    source = np.arange(len(first) - 1) * sources // (len(first) - 1)
    table = ClipTable(
        to_samples(durations), first, source, np.asarray(weights or [1.0] * sources), "made up"
    )
    limits = {"max_duration_s": 120.0, "duration_jitter": 0.1, **limits}
    keep_in = limits.pop("keep_in", None)
    return BatchPlan(table, seed, BatchConfig(**limits), growth_s=growth_s, keep_in=keep_in)


def seconds(plan, clips):
    return plan.clips.durations_s(np.asarray(clips))


def all_batches(plan, epoch, world_size):
    return [
        plan.batch(epoch, step, rank, world_size)
        for step in range(plan.steps(epoch, world_size))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 13])
def test_every_clip_comes_once_per_epoch_whatever_the_number_of_ranks(world_size):
    plan = make_plan()
    for epoch in range(3):
        batches = all_batches(plan, epoch, world_size)
        assert all(batches)
        assert sorted(clip for batch in batches for clip in batch) == list(range(500))


@pytest.mark.parametrize("growth_s", [0.0, 2.0])
def test_no_batch_costs_more_than_its_budget_and_most_are_full(growth_s):
    plan = make_plan(num=2000, growth_s=growth_s)
    costs = []
    for batch in all_batches(plan, 0, 4):
        longest = seconds(plan, batch).max()
        costs.append(len(batch) * (longest + (growth_s if len(batch) > 1 else 0.0)))
    assert max(costs) <= 120.0
    assert np.mean(costs) > 0.85 * 120.0


def test_padding_is_small_and_reported_as_it_is():
    plan = make_plan(num=2000)
    padded = sum(len(b) * seconds(plan, b).max() for b in all_batches(plan, 0, 1))
    assert plan.padding_share(0) == pytest.approx(1 - seconds(plan, range(2000)).sum() / padded)
    assert plan.padding_share(0) < 0.15
    assert make_plan(num=2000, duration_jitter=0.0).padding_share(0) < 0.02


def test_the_plan_is_pure():
    """Another object, asked in another order, agrees."""
    first, second = make_plan(window_clips=100), make_plan(window_clips=100)
    assert second.batch(4, 2, 1, 2) is not None  # asked before, must not matter
    for epoch in (2, 0):
        for step in reversed(range(first.steps(epoch, 2))):
            for rank in range(2):
                assert first.batch(epoch, step, rank, 2) == second.batch(epoch, step, rank, 2)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("window_clips", [40, 130, 10**6])
def test_every_clip_comes_once_with_any_windows(world_size, window_clips):
    plan = make_plan(window_clips=window_clips)
    batches = all_batches(plan, 1, world_size)
    assert sorted(clip for batch in batches for clip in batch) == list(range(500))


def test_the_clips_of_a_window_come_from_its_shards():
    """Locality: neighbouring steps read few shards, and another epoch other ones together."""
    together = []
    for epoch in (0, 1):
        plan = make_plan(num=4000, window_clips=200)
        batches = all_batches(plan, epoch, 1)
        steps_in_window = len(batches) // 20
        shards = [{clip // 20 for clip in batch} for batch in batches]
        window = [set().union(*shards[i : i + steps_in_window]) for i in range(len(shards))]
        assert np.mean([len(one) for one in window]) < 25
        together.append({frozenset(one) for one in shards})
    assert len(together[0] & together[1]) < 5


def test_sources_are_spread_evenly_over_an_epoch():
    plan = make_plan(num=8000, sources=2, weights=[1.0, 3.0], window_clips=800)
    batches = all_batches(plan, 0, 1)
    for quarter in np.array_split(np.arange(len(batches)), 4):
        clips = np.concatenate([batches[i] for i in quarter])
        assert (clips >= 4000).mean() == pytest.approx(0.75, abs=0.05)


def test_a_kept_plan_is_found_again_and_only_by_the_same_run(tmp_path, monkeypatch):
    first = make_plan(keep_in=tmp_path)
    expected = all_batches(first, 3, 2)
    (kept,) = tmp_path.glob("*.plan")
    monkeypatch.setattr(BatchPlan, "_plan", None)  # cannot be made anew
    assert all_batches(make_plan(keep_in=tmp_path), 3, 2) == expected
    monkeypatch.undo()
    for others in ({"seed": 2}, {"growth_s": 1.0}, {"min_clip_s": 1.0}, {"weights": [2.0]}):
        assert all_batches(make_plan(keep_in=tmp_path, **others), 3, 2) != expected
    assert all_batches(make_plan(keep_in=tmp_path), 3, 1) != expected
    assert kept.is_dir()
    make_plan(keep_in=tmp_path).steps(4, 2)
    assert not kept.is_dir(), "plans of epochs that are over are removed"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:3], lambda data: b"x" * 40]
)
def test_a_broken_kept_plan_is_made_again(tmp_path, damage):
    expected = all_batches(make_plan(keep_in=tmp_path), 3, 2)
    (kept,) = tmp_path.glob("*.plan")
    kept = kept / "bounds.npy"
    kept.write_bytes(damage(kept.read_bytes()))
    assert all_batches(make_plan(keep_in=tmp_path), 3, 2) == expected


def test_epochs_and_seeds_differ():
    plan = make_plan()
    assert all_batches(plan, 0, 1) != all_batches(plan, 1, 1)
    assert all_batches(plan, 0, 1) != all_batches(make_plan(seed=2), 0, 1)
    mates = [{frozenset(b) for b in all_batches(plan, epoch, 1)} for epoch in (0, 1)]
    assert len(mates[0] & mates[1]) < 3, "batches of two epochs hold the same clips"


def test_clips_of_equal_duration_are_shuffled():
    config = BatchConfig(max_duration_s=80, duration_jitter=0.0)
    plan = BatchPlan(ClipTable.of([10.0] * 64), 0, config)
    first, second = ({frozenset(b) for b in all_batches(plan, epoch, 1)} for epoch in (0, 1))
    assert first != second


def test_ranks_get_like_durations_at_a_step_and_steps_are_not_in_order_of_duration():
    plan = make_plan(num=4000)
    longest = np.array(
        [
            [seconds(plan, plan.batch(0, step, rank, 4)).max() for rank in range(4)]
            for step in range(plan.steps(0, 4))
        ]
    )
    within = (longest.max(axis=1) / longest.min(axis=1)).mean()
    assert within < 1.3
    assert abs(np.corrcoef(np.arange(len(longest)), longest.mean(axis=1))[0, 1]) < 0.35
    # No rank always has the longest batch.
    assert np.bincount(longest.argmax(axis=1), minlength=4).max() < 0.6 * len(longest)


def test_limits_are_counted_and_logged(caplog):
    with caplog.at_level("INFO"):
        plan = BatchPlan(ClipTable.of([0.1, 5, 31, 6]), 0, BatchConfig(max_duration_s=60))
    assert (plan.num_too_short, plan.num_too_long) == (1, 1)
    assert "1 clips that are too short and 1 that are too long" in caplog.text
    assert sorted(c for b in all_batches(plan, 0, 1) for c in b) == [1, 3]


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.0, 2.5])
def test_weights_are_repeats_that_add_up_over_epochs(weight):
    num = 100
    plan = make_plan(num=2 * num, sources=2, weights=[weight, 1.0])
    total = Counter()
    for epoch in range(20):
        drawn = Counter(clip for batch in all_batches(plan, epoch, 2) for clip in batch)
        assert all(drawn[clip] == 1 for clip in range(num, 2 * num))
        size = sum(drawn[clip] for clip in range(num))
        assert abs(size - weight * num) <= 0.15 * num
        total.update({clip: drawn[clip] for clip in range(num)})
    assert all(abs(total[clip] - 20 * weight) < 1 for clip in range(num))


def test_weight_zero_leaves_a_source_out():
    plan = make_plan(num=40, sources=2, weights=[0.0, 1.0])
    assert {c for b in all_batches(plan, 0, 1) for c in b} == set(range(20, 40))


def test_clips_that_cannot_be_split_among_ranks_are_named_as_left_out(caplog):
    plan = BatchPlan(ClipTable.of([20.0] * 5), 0, BatchConfig(max_duration_s=20))
    assert sum(map(len, all_batches(plan, 0, 2))) == 4
    assert "1 batches of one clip each cannot be shared by 2 ranks" in caplog.text


@pytest.mark.parametrize(
    ("durations", "limits", "error", "message"),
    [
        ([0.1, 0.2], {}, DataError, "2 of 2 are too short"),
        ([], {}, DataError, "no clip to train on"),
        ([25.0], {"max_duration_s": 20.0}, ConfigError, "25.0 s does not fit"),
    ],
)
def test_impossible_data_is_one_clear_error(durations, limits, error, message):
    with pytest.raises(error, match=message):
        BatchPlan(ClipTable.of(durations), 0, BatchConfig(**limits))


def test_fewer_clips_than_ranks_and_negative_weights_are_errors():
    plan = BatchPlan(ClipTable.of([5.0]), 0, BatchConfig())
    with pytest.raises(DataError, match="shared by 2 processes"):
        plan.steps(0, 2)
    with pytest.raises(ConfigError, match="negative"):
        ClipTable.of([5.0], weights=[-1.0])


def test_packing_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    for _ in range(30):
        durations = rng.uniform(0.5, 20.0, rng.integers(1, 400))
        budget, growth = rng.uniform(20, 200), rng.choice([0.0, 2.0])
        expected, current = [0], []
        for position, duration in enumerate(durations):
            grown = growth if current else 0.0
            if current and (max([*current, duration]) + grown) * (len(current) + 1) > budget:
                expected.append(position)
                current = []
            current.append(duration)
        assert pack(durations, budget, growth).tolist() == [*expected, len(durations)]


def test_generators_are_pure_and_apart():
    draws = {
        key: tuple(generator(*key).random(3))
        for key in [(1, "a"), (1, "a", 0), (1, "b"), (2, "a"), (1, "a", 1, 23), (1, "a", 12, 3)]
    }
    assert len(set(draws.values())) == len(draws)
    assert all(tuple(generator(*key).random(3)) == values for key, values in draws.items())


def test_groups_hold_every_recording_once_within_the_limit() -> None:
    durations = [3.0, 1.0, 2.0, 10.0, 1.5, 0.0]
    groups = pack_by_length(durations, 4.0)
    assert sorted(number for group in groups for number in group) == list(range(6))
    assert groups[0] == [3], "the longest comes first, and alone where it does not fit"
    for group in groups[1:]:
        assert len(group) * max(durations[number] for number in group) <= 4.0
    assert pack_by_length([], 4.0) == []
