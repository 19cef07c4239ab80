"""Batches: what is in them, what may and what may not change them, and broken data."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from spear.audio import LOG_EPS, Fbank
from spear.data.index.plan import BatchConfig
from spear.errors import ConfigError, DataError
from spear.finetune.spec_augment import SpecAugmentConfig
from spear.tagging.balance import BalanceConfig
from spear.tagging.data import SHORTEST_SAMPLES, TaggingData, compute_fbank
from spear.tagging.mixup import MixupConfig

NUM_MEL_BINS = 40
AUGMENTED = {
    "mixup": MixupConfig(probability=0.7),
    "specaugment": SpecAugmentConfig(probability=0.7),
    "balance": BalanceConfig(strength=0.8),
    "crop_s": 0.4,
}


@pytest.fixture(name="open_data")
def open_data_fixture(sound_dir, data_config):
    def open_data(seed=0, folder=sound_dir, **changes):
        return TaggingData(data_config(folder, **changes), num_mel_bins=NUM_MEL_BINS, seed=seed)

    return open_data


def epoch_of(data, epoch=0, start=0, rank=0, world_size=1):
    return list(data.train_batches(epoch, start, range(rank, rank + 1), world_size))


def assert_same(batches, others):
    assert [batch.ids for batch in batches] == [other.ids for other in others]
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.fbank, other.fbank)
        assert torch.equal(batch.targets, other.targets)


def test_a_batch_holds_features_and_classes_of_its_clips(open_data, sounds, play):
    data = open_data()
    seen = []
    for batch in epoch_of(data):
        total_s = 0.0
        for row, name in enumerate(batch.ids):
            place = list(sounds).index(name)
            audio = torch.from_numpy(play(sounds[name], 0.3 + 0.05 * place, seed=place))
            expected, _ = Fbank(NUM_MEL_BINS)(audio[None], torch.tensor([len(audio)]))
            num_frames = int(batch.fbank_lens[row])
            # FLAC has 16 bits
            torch.testing.assert_close(batch.fbank[row, :num_frames], expected[0], atol=0.3, rtol=0)
            assert bool((batch.fbank[row, num_frames:] == LOG_EPS).all())
            names = {
                label
                for label, there in zip(data.classes.labels, batch.targets[row], strict=True)
                if there
            }
            assert names == set(sounds[name])
            total_s += len(audio) / 16000
        assert batch.audio_s == pytest.approx(total_s)
        seen += batch.ids
    assert sorted(seen) == sorted(sounds)


def test_neither_workers_nor_a_restart_change_a_value(open_data):
    whole = epoch_of(open_data(**AUGMENTED), epoch=3)
    assert len(whole) > 2
    assert_same(whole, epoch_of(open_data(num_workers=2, **AUGMENTED), epoch=3))
    assert_same(whole[2:], epoch_of(open_data(**AUGMENTED), epoch=3, start=2))


def test_augmentation_changes_with_epoch_and_seed(open_data):
    mixed = {"mixup": MixupConfig(probability=1.0), "batch": BatchConfig(60.0, min_clip_s=0.0)}
    (first,) = epoch_of(open_data(**mixed))
    for other in (epoch_of(open_data(**mixed), epoch=1), epoch_of(open_data(seed=1, **mixed))):
        order = [other[0].ids.index(name) for name in first.ids]
        assert not torch.equal(first.targets, other[0].targets[order])


def test_excerpts_are_random_in_training_and_the_middle_in_validation(open_data):
    data = open_data(crop_s=0.2)
    for batches in (epoch_of(data), list(data.valid_batches(0, 1))):
        assert {n for batch in batches for n in batch.fbank_lens.tolist()} == {20}
    valid = {n: x for b in data.valid_batches(0, 1) for n, x in zip(b.ids, b.fbank, strict=True)}
    train = [
        {n: x for b in epoch_of(data, epoch) for n, x in zip(b.ids, b.fbank, strict=True)}
        for epoch in range(2)
    ]
    assert not torch.equal(train[0]["j"], train[1]["j"])
    assert not torch.equal(train[0]["j"], valid["j"])


def test_rare_classes_come_as_often_as_others(open_data):
    counts = np.zeros(3)
    data = open_data(balance=BalanceConfig(strength=1.0, epoch_clips=40))
    for batch in epoch_of(data):
        counts += batch.targets.sum(0).numpy()
    assert counts.sum() > 40  # clips of several classes
    assert counts.min() > 0.6 * counts.max()


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_sees_every_clip_once_as_it_is(open_data, sounds, world_size):
    data = open_data(**{**AUGMENTED, "crop_s": 10.0})
    batches = [b for rank in range(world_size) for b in data.valid_batches(rank, world_size)]
    assert sorted(name for batch in batches for name in batch.ids) == sorted(sounds)
    assert set(torch.cat([batch.targets for batch in batches]).unique().tolist()) == {0.0, 1.0}
    lens = {n: t for b in batches for n, t in zip(b.ids, b.fbank_lens.tolist(), strict=True)}
    assert lens["a"] == 30


def test_ranks_share_the_data_and_have_equally_many_steps(open_data, sounds):
    data = open_data()
    batches = [epoch_of(data, rank=rank, world_size=2) for rank in range(2)]
    assert len(batches[0]) == len(batches[1]) == data.steps_in_epoch(0, 2)
    assert sorted(n for rank in batches for b in rank for n in b.ids) == sorted(sounds)


def test_the_identity_follows_everything_that_changes_batches(open_data):
    base = open_data().identity()
    assert open_data(num_workers=1).identity() == base
    for name, value in {**AUGMENTED, "batch": BatchConfig(3.0)}.items():
        assert open_data(**{name: value}).identity() != base, name
    assert open_data(seed=1).identity() != base


def test_the_shortest_recordings_are_followed_by_silence():
    fbank = Fbank(NUM_MEL_BINS)
    short, empty = np.full(40, 0.1, np.float32), np.zeros(0, np.float32)
    features, lens = compute_fbank(fbank, [short, empty])
    assert lens.tolist() == [10, 10]
    silence = fbank(torch.zeros(1, SHORTEST_SAMPLES), torch.tensor([SHORTEST_SAMPLES]))[0][0]
    assert torch.equal(features[1], silence)
    assert not torch.equal(features[0], silence)


def test_batches_move_between_devices(open_data):
    batch = epoch_of(open_data())[0]
    moved = batch.to(torch.device("meta"))
    assert moved.fbank.device.type == moved.targets.device.type == "meta"
    assert dataclasses.replace(moved, ids=[]).audio_s == batch.audio_s


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_shard_is_one_clear_line_from_any_worker(
    open_data, sound_dir, tmp_path, num_workers
):
    shutil.copytree(sound_dir, tmp_path / "broken")
    data = open_data(folder=tmp_path / "broken", num_workers=num_workers)
    for tar in (tmp_path / "broken" / "shards").glob("recording.*.tar"):
        tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"recording.00000\d.tar") as caught:
        epoch_of(data)
    assert "Traceback" not in str(caught.value)


def test_impossible_configurations_are_refused(data_config, tmp_path):
    for change in ({"crop_s": 0.0}, {"num_workers": -1}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            data_config(tmp_path, **change)
