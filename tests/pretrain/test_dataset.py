"""From shard folders to batches: pure, seekable, equal for any number of workers, checked."""

import pickle

import numpy as np
import pytest
import torch

from spear.audio.noise import RecordedNoise, SyntheticNoise
from spear.data.formats.tars import PairTarWriter
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.loader import BatchLoader, Place
from spear.data.index.plan import BatchConfig, BatchPlan
from spear.encoders.frame_grid import StudentFrames
from spear.errors import ConfigError, DataError, TokenError
from spear.pretrain.augment import AugmentConfig, Augmenter
from spear.pretrain.collate import Collator, TokenLayout
from spear.pretrain.masking import MaskConfig, MaskSampler
from spear.pretrain.reading import PretrainDataset, open_noise, read_example, token_counts
from tests.pretrain.small_shards import make_clip, write_corpus, write_shards

REQUIRED = {"speech": ("wavlm",), "audio": ("wavlm", "dasheng")}
EXPECTED = {"wavlm": {"num_codebooks": 4, "codebook_size": 16, "frame_rate_hz": 50.0}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def open_index(folders, weights=None, required=None, expected=None):
    weights = weights or [1.0] * len(folders)
    sources = [SourceConfig(str(f), w) for f, w in zip(folders, weights, strict=True)]
    return ClipIndex(sources, required or REQUIRED, expected or EXPECTED)


def make_loader(index, num_workers=0, seed=5, augment=True):
    layouts = {"wavlm": TokenLayout(4), "dasheng": TokenLayout(2, repeat=2)}
    collator = Collator(layouts, StudentFrames(), MaskSampler(MaskConfig(), 32), 32)
    config = AugmentConfig(prob=0.9, mixing_share=0.5)
    augmenter = Augmenter(config, {"wavlm": 50.0}, open_noise(config, index)) if augment else None
    plan = BatchPlan(index.table, seed, BatchConfig(max_duration_s=12.0), growth_s=2.0)
    dataset = PretrainDataset(index, collator, seed, "train", augmenter)
    return BatchLoader(dataset, plan, num_workers)


def assert_equal_batches(first, second):
    assert first.ids == second.ids and first.audio_s == second.audio_s
    for name in ("fbank", "fbank_lens", "mask", "channel_mask", "student_mask", "is_audio"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for teacher in first.tokens:
        assert torch.equal(first.tokens[teacher], second.tokens[teacher])
        assert torch.equal(first.token_valid[teacher], second.token_valid[teacher])


def test_the_index_numbers_all_clips_and_reads_them(corpus):
    index = open_index(corpus, weights=[1.0, 0.5])
    assert len(index) == 18 and index.is_audio.sum() == 6
    assert index.table.weights.tolist() == [1.0, 0.5]
    assert index.table.source.tolist() == [0, 0, 0, 1, 1]
    for number in (0, 11, 12, 17):
        domain, within = ("speech", number) if number < 12 else ("audio", number - 12)
        made = make_clip(within, domain)
        one = read_example(index, number)
        assert one.id == made["id"] and one.is_audio == (domain == "audio")
        assert np.abs(one.audio - made["audio"]).max() < 1e-4
        assert set(one.tokens) == set(REQUIRED[domain])
        for teacher, tokens in one.tokens.items():
            assert np.array_equal(tokens, made["tokens"][teacher])
        assert index.duration_s([number]) == pytest.approx(len(made["audio"]) / 16000)


def test_any_number_of_workers_gives_the_same_batches_in_any_epoch(corpus):
    index = open_index(corpus)
    alone, pair = make_loader(index), make_loader(index, num_workers=2)
    for epoch in (0, 1):
        first = list(alone.train(epoch, 0, range(1), 1))
        second = list(pair.train(epoch, 0, range(1), 1))
        assert len(first) == len(second) == alone.plan.steps(epoch)
        for one, other in zip(first, second, strict=True):
            assert_equal_batches(one, other)


def test_the_work_of_a_worker_can_be_pickled(corpus):
    """Where processes are not forked (macOS, Python 3.14) the dataset travels pickled."""
    dataset = make_loader(open_index(corpus))._loader.dataset
    item = (Place(0, 0, 0, 1), [0, 1, 12, 13])
    assert_equal_batches(pickle.loads(pickle.dumps(dataset))[item], dataset[item])


def test_starting_in_the_middle_is_a_seek(corpus):
    index = open_index(corpus)
    whole = list(make_loader(index).train(2, 0, range(1, 2), 2))
    rest = list(make_loader(index).train(2, 1, range(1, 2), 2))
    assert len(rest) == len(whole) - 1 > 0
    for one, other in zip(whole[1:], rest, strict=True):
        assert_equal_batches(one, other)


def test_a_pass_leaves_torchs_generator_alone(corpus):
    """Dropout after a restart must be what it would have been."""
    loader = make_loader(open_index(corpus), num_workers=1)
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    list(loader.train(0, 0, range(1), 1))
    assert torch.equal(torch.rand(4), expected)


def test_ranks_share_an_epoch_and_a_validation(corpus):
    loader = make_loader(open_index(corpus))
    trained = [
        i for rank in range(3) for b in loader.train(0, 0, range(rank, rank + 1), 3) for i in b.ids
    ]
    assert len(trained) == len(set(trained)) == 18
    alone = {tuple(b.ids): b for b in loader.share(0, 1)}
    shared = [b for rank in range(2) for b in loader.share(rank, 2)]
    assert len(shared) == len(alone)
    for batch in shared:
        assert_equal_batches(batch, alone[tuple(batch.ids)])


def test_seeds_change_masks_and_augmentation(corpus):
    index = open_index(corpus)
    dataset = make_loader(index)._loader.dataset
    other = make_loader(index, seed=6)._loader.dataset
    item = (Place(0, 0, 0, 1), [0, 1, 2, 12])
    assert_equal_batches(dataset[item], dataset[item])
    assert not torch.equal(dataset[item].mask, other[item].mask)


def test_batches_stay_within_their_budget_with_mixing(corpus):
    for batch in make_loader(open_index(corpus)).train(0, 0, range(1), 1):
        assert batch.fbank.size(0) * batch.fbank.size(1) <= 1200 + batch.fbank.size(0)
        assert 0 < batch.audio_s <= 12.0


def test_a_broken_shard_is_one_clear_error_also_from_a_worker(tmp_path):
    folder = write_shards(tmp_path / "s", [make_clip(i, "speech") for i in range(3)], ("wavlm",))
    loader = make_loader(open_index([folder]), num_workers=1)
    tar = folder / "recording.000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"recording.000000.tar") as caught:
        list(loader.train(0, 0, range(1), 1))
    assert "Traceback" not in str(caught.value)


def test_missing_tokens_are_named_with_the_command(tmp_path, corpus):
    folder = write_shards(tmp_path / "s", [make_clip(0, "speech")], ())
    with pytest.raises(TokenError, match=r"no tokens of teacher 'wavlm'.*spear extract-tokens"):
        open_index([folder])
    with pytest.raises(TokenError, match=r"'dasheng' .there: wavlm."):
        open_index(corpus, required={"speech": ("dasheng",), "audio": ()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 32}, "codebook_size is 32 where the run asks for 16"),
        ({"num_codebooks": 8}, "num_codebooks is 8"),
        ({"frame_rate_hz": 25.0}, "frame_rate_hz is 25.0"),
    ],
)
def test_tokens_of_another_kind_are_refused(tmp_path, change, message):
    folder = write_shards(tmp_path / "s", [make_clip(0, "speech")], ("wavlm",), **change)
    with pytest.raises(TokenError, match=message):
        open_index([folder])


def test_folders_with_tokens_of_different_quantizers_do_not_mix(tmp_path, corpus):
    folder = write_shards(
        tmp_path / "s", [make_clip(0, "speech")], ("wavlm",), quantizer_id="other"
    )
    with pytest.raises(TokenError, match=r"differ from those in .*quantizer_id"):
        open_index([corpus[0], folder])


def test_noise_comes_from_where_the_configuration_says(corpus, tmp_path):
    both, speech = open_index(corpus), open_index(corpus[:1])
    assert isinstance(open_noise(AugmentConfig(), both), RecordedNoise)
    names = [both.id(number) for number in open_noise(AugmentConfig(), both).numbers.tolist()]
    assert names == [f"audio-{i:03d}" for i in range(6)]
    assert isinstance(open_noise(AugmentConfig(), speech), SyntheticNoise)
    assert isinstance(open_noise(AugmentConfig(noise_source="synthetic"), both), SyntheticNoise)
    with pytest.raises(ConfigError, match="no source has clips of general audio"):
        open_noise(AugmentConfig(noise_source="audio"), speech)
    folder = AugmentConfig(noise_source="folder", noise_folder=str(corpus[1]))
    noise = open_noise(folder, speech)(800, "", np.random.default_rng(0))
    assert noise.shape == (800,) and noise.any()
    with pytest.raises(DataError, match="no such shard folder"):
        open_noise(AugmentConfig(noise_source="folder", noise_folder=str(tmp_path / "x")), speech)


def test_no_source_is_an_error():
    with pytest.raises(ConfigError, match="at least one source"):
        ClipIndex([], REQUIRED, EXPECTED)


def test_token_counts_equal_a_naive_count(corpus):
    index = open_index(corpus)
    arguments = {"num_codebooks": 2, "codebook_size": 16, "seed": 0}
    counts = token_counts(index, "dasheng", max_clips=100, **arguments)
    naive = np.zeros((2, 16), dtype=int)
    for number in range(12, 18):
        for frame in index.tokens(number, "dasheng"):
            for book, token in enumerate(frame):
                naive[book, token] += 1
    assert np.array_equal(counts, naive)
    few = token_counts(index, "dasheng", max_clips=2, **arguments)
    assert 0 < few.sum() < counts.sum()
    with pytest.raises(TokenError, match="expected 2 codebooks of 4"):
        token_counts(index, "dasheng", num_codebooks=2, codebook_size=4, max_clips=9, seed=0)


def test_tokens_that_the_tar_lacks_are_an_error(tmp_path):
    folder = write_shards(tmp_path / "s", [make_clip(i, "speech") for i in range(2)], ("wavlm",))
    with PairTarWriter(folder / "wavlm_tokens.000000.tar"):
        pass
    with pytest.raises(TokenError, match=r"wavlm_tokens.000000.tar"):
        list(make_loader(open_index([folder])).train(0, 0, range(1), 1))
