"""Noise and copies in the training data: levels, shares, and the same values every time."""

import numpy as np
import pytest
import torch

from spear.asr.consistency import ConsistencyConfig
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.train.data import AsrData, AsrDataConfig, TranscribedCuts
from spear.asr.train.noise import NoiseAdder, NoiseConfig, open_noise
from spear.data.index.plan import BatchConfig
from spear.errors import ConfigError, DataError
from spear.finetune.spec_augment import SpecAugment, SpecAugmentConfig
from spear.system.rng import generator


@pytest.fixture(scope="module")
def noise_shards(tmp_path_factory, write_shards):
    rng = np.random.default_rng(0)
    noise = [
        (f"n{i}", rng.standard_normal(4000).astype(np.float32) * 0.1, None, None) for i in (0, 1)
    ]
    return write_shards(tmp_path_factory.mktemp("data") / "noise", noise)


def make_data(folder, **options):
    config = AsrDataConfig(
        train=[str(folder)],
        batch=BatchConfig(max_duration_s=20.0, min_clip_s=0.1),
        num_workers=options.pop("num_workers", 0),
        **options,
    )
    cuts = TranscribedCuts(config.train, "train")
    tokenizer = Tokenizer.train(cuts.texts, TokenizerConfig())
    return AsrData(config, cuts, tokenizer=tokenizer, num_mel_bins=40, seed=0)


def batches_of(data, epoch=0):
    return list(data.train_batches(epoch, 0, range(1), 1))


def test_noise_has_the_level_that_was_asked_for(noise_shards, sing):
    adder = NoiseAdder(NoiseConfig([str(noise_shards)], probability=1.0, snr_db=(10.0, 20.0)))
    audio, levels = sing("ABCD"), []
    for number in range(50):
        noise = adder(audio, "x", generator(0, "test", number)) - audio
        levels.append(10 * np.log10(np.mean(audio**2) / np.mean(noise**2)))
    assert 9.9 < min(levels) < 11.5
    assert 18.5 < max(levels) < 20.1


def test_a_share_of_the_clips_gets_noise(noise_shards, sing):
    adder = NoiseAdder(NoiseConfig([str(noise_shards)], probability=0.3))
    audio = sing("A")
    same = [adder(audio, "x", generator(0, "test", n)) is audio for n in range(300)]
    assert 0.6 < np.mean(same) < 0.8


def test_without_noise_nothing_is_opened_or_drawn(tone_shards):
    assert open_noise(NoiseConfig()) is None
    assert open_noise(NoiseConfig(["nowhere"], probability=0.0)) is None
    with pytest.raises(DataError, match="nowhere"):
        make_data(tone_shards, noise=NoiseConfig(["nowhere"]))


@pytest.mark.parametrize("changes", [{"probability": 1.5}, {"snr_db": (20.0, 10.0)}])
def test_impossible_noise_is_refused(changes):
    with pytest.raises(ConfigError, match=f"noise.{next(iter(changes))}"):
        NoiseConfig(**changes)


def test_noisy_batches_do_not_depend_on_workers(tone_shards, noise_shards):
    options = {"noise": NoiseConfig([str(noise_shards)], probability=1.0)}
    (here,) = batches_of(make_data(tone_shards, **options))
    (there,) = batches_of(make_data(tone_shards, num_workers=1, **options))
    assert torch.equal(here.fbank, there.fbank)
    (clean,) = batches_of(make_data(tone_shards))
    assert here.ids == clean.ids and not torch.equal(here.fbank, clean.fbank)


def test_copies_are_warped_alike_and_masked_each_for_itself():
    fbank = torch.randn(400, 40, generator=torch.manual_seed(0))
    warp_only = SpecAugmentConfig(probability=1.0, num_time_masks=0, num_mel_masks=0)
    first, second = SpecAugment(warp_only).copies(fbank, 2, generator(0, "x"))
    assert torch.equal(first, second) and not torch.equal(first, fbank)
    masked = SpecAugmentConfig(probability=1.0)
    first, second = SpecAugment(masked).copies(fbank, 2, generator(0, "x"))
    assert not torch.equal(first, second)
    assert torch.equal(SpecAugment(masked)(fbank, generator(0, "x")), first)
    untouched = SpecAugment(SpecAugmentConfig(probability=0.0)).copies(fbank, 2, generator(0, "x"))
    assert all(copy is fbank for copy in untouched)


def test_a_batch_of_copies(tone_shards):
    data = make_data(tone_shards, consistency=ConsistencyConfig(weight=0.2))
    for batch in batches_of(data):
        half = len(batch.ids) // 2
        assert batch.num_copies == 2
        assert batch.ids[:half] == batch.ids[half:]
        assert torch.equal(batch.fbank_lens[:half], batch.fbank_lens[half:])
        assert torch.equal(batch.tokens[:half], batch.tokens[half:])
        assert batch.audio_s * 100 == pytest.approx(batch.fbank_lens[:half].sum(), abs=half)
        assert len(batch.fbank) * batch.fbank.shape[1] <= 2000 + len(batch.ids)
    assert data.identity()["consistency"]["weight"] == 0.2
