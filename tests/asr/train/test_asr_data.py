"""Batches: what is in them, what may and what may not change them, and broken data."""

import math

import pytest
import torch

from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.train.data import AsrData, AsrDataConfig, TranscribedCuts
from spear.audio import LOG_EPS, Fbank
from spear.data.index.plan import BatchConfig
from spear.data.index.shard_folder import ShardFolder
from spear.errors import DataError
from spear.finetune.spec_augment import SpecAugmentConfig

NUM_MEL_BINS = 40


def make_data(folder, seed=0, max_duration_s=2.0, **options):
    config = AsrDataConfig(
        train=[str(folder)],
        valid=[str(folder)],
        batch=BatchConfig(max_duration_s=max_duration_s, min_clip_s=0.1),
        **{"num_workers": 0, **options},
    )
    cuts = TranscribedCuts(config.train, "train")
    tokenizer = Tokenizer.train(cuts.texts, TokenizerConfig())
    return AsrData(config, cuts, tokenizer=tokenizer, num_mel_bins=NUM_MEL_BINS, seed=seed)


def epoch_of(data, epoch=0, start=0, rank=0, world_size=1):
    return list(data.train_batches(epoch, start, range(rank, rank + 1), world_size))


def assert_same(batches, others):
    assert [batch.ids for batch in batches] == [other.ids for other in others]
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.fbank, other.fbank)
        assert torch.equal(batch.tokens, other.tokens)


def test_a_batch_holds_features_and_labels_of_its_cuts(tone_shards, tone_texts):
    data = make_data(tone_shards, specaugment=SpecAugmentConfig(probability=0.0))
    tokenizer = Tokenizer.train(tone_texts, TokenizerConfig())
    folder = ShardFolder(tone_shards)
    by_id = {info.id: info for info in folder}
    seen = []
    for batch in epoch_of(data):
        total_s = 0.0
        for row, name in enumerate(batch.ids):
            audio = torch.from_numpy(folder.audio(by_id[name]))
            expected, _ = Fbank(NUM_MEL_BINS)(audio[None], torch.tensor([len(audio)]))
            num_frames = int(batch.fbank_lens[row])
            torch.testing.assert_close(batch.fbank[row, :num_frames], expected[0])
            assert bool((batch.fbank[row, num_frames:] == LOG_EPS).all())
            labels = batch.tokens[row, : batch.token_lens[row]].tolist()
            assert labels == tokenizer.encode(by_id[name].text)
            total_s += len(audio) / 16000
        assert batch.audio_s == pytest.approx(total_s)
        seen += batch.ids
    assert sorted(seen) == sorted(by_id)


def test_neither_workers_nor_a_restart_change_a_value(tone_shards):
    options = {"speeds": (0.9, 1.0, 1.1)}
    whole = epoch_of(make_data(tone_shards, **options), epoch=3)
    assert len(whole) > 2
    assert_same(whole, epoch_of(make_data(tone_shards, num_workers=2, **options), epoch=3))
    assert_same(whole[2:], epoch_of(make_data(tone_shards, **options), epoch=3, start=2))


def test_torchs_own_generator_is_left_alone(tone_shards):
    before = torch.get_rng_state()
    epoch_of(make_data(tone_shards))
    epoch_of(make_data(tone_shards, num_workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_changes_with_epoch_and_seed(tone_shards):
    augment = {"specaugment": SpecAugmentConfig(probability=1.0), "max_duration_s": 100.0}
    (first,) = epoch_of(make_data(tone_shards, **augment), epoch=0)
    for other in (
        epoch_of(make_data(tone_shards, **augment), epoch=1),
        epoch_of(make_data(tone_shards, seed=1, **augment), epoch=0),
    ):
        order = [other[0].ids.index(name) for name in first.ids]
        assert not torch.equal(first.fbank, other[0].fbank[order])


def test_slower_speech_makes_longer_batches_within_the_limit(tone_shards):
    batches = epoch_of(make_data(tone_shards, speeds=(0.8,), max_duration_s=2.0))
    lengths = {n: s for b in batches for n, s in zip(b.ids, b.fbank_lens.tolist(), strict=True)}
    for info in ShardFolder(tone_shards):
        assert lengths[info.id] == pytest.approx(info.duration_s * 100 / 0.8, abs=1)
    assert all(b.fbank.shape[0] * b.fbank.shape[1] <= 200 + len(b.ids) for b in batches)


def test_ranks_share_the_data_and_have_equally_many_steps(tone_shards):
    data = make_data(tone_shards)
    batches = [epoch_of(data, rank=rank, world_size=2) for rank in range(2)]
    assert len(batches[0]) == len(batches[1]) == data.steps_in_epoch(0, 2)
    ids = [name for rank in batches for batch in rank for name in batch.ids]
    assert sorted(ids) == sorted(info.id for info in ShardFolder(tone_shards))


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_sees_every_clip_once_as_it_is(tone_shards, world_size):
    data = make_data(tone_shards, speeds=(0.9,))
    batches = [b for rank in range(world_size) for b in data.valid_batches(rank, world_size)]
    lens = {n: s for b in batches for n, s in zip(b.ids, b.fbank_lens.tolist(), strict=True)}
    infos = list(ShardFolder(tone_shards))
    assert sum(len(batch.ids) for batch in batches) == len(infos)
    for info in infos:
        assert lens[info.id] == math.floor(info.duration_s * 100 + 0.5)


def test_batches_move_between_devices(tone_shards):
    (batch, *_) = epoch_of(make_data(tone_shards))
    moved = batch.to(torch.device("meta"))
    assert moved.fbank.device.type == moved.token_lens.device.type == "meta"
    assert moved.ids == batch.ids
    assert batch.fbank.device.type == "cpu"


def test_missing_folders_and_transcripts_are_named(tmp_path, sing, write_shards):
    with pytest.raises(DataError, match=r"no train data"):
        TranscribedCuts([], "train")
    with pytest.raises(DataError, match="nowhere: no such shard folder"):
        TranscribedCuts([str(tmp_path / "nowhere")], "train")
    mixed = write_shards(
        tmp_path / "mixed", [("said", sing("A"), "A", "x"), ("unsaid", sing("B"), None, None)]
    )
    with pytest.raises(DataError, match=r"mixed: 1 of 2 cuts have no transcript, e.g. 'unsaid'"):
        TranscribedCuts([str(mixed)], "train")
    assert len(TranscribedCuts([str(mixed)], "train", skip_untranscribed=True)) == 1
    silent = write_shards(tmp_path / "silent", [("unsaid", sing("B"), None, None)])
    with pytest.raises(DataError, match="no cut with a transcript"):
        TranscribedCuts([str(silent)], "train", skip_untranscribed=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_shard_is_one_clear_line_from_any_worker(
    tmp_path, sing, write_shards, num_workers
):
    folder = write_shards(tmp_path / "broken", [("a", sing("AB"), "AB", "x")])
    data = make_data(folder, num_workers=num_workers)
    tar = folder / "recording.000000.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"recording.000000.tar") as caught:
        epoch_of(data)
    assert "Traceback" not in str(caught.value)
