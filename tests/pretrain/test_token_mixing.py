"""Token mixing and who gets it: naive references, powers, delays, batches without a partner."""

from collections import Counter

import numpy as np
import pytest

from spear.audio.noise import SyntheticNoise, power
from spear.errors import ConfigError
from spear.pretrain.augment import AugmentConfig, Augmenter
from spear.pretrain.collate import Example
from spear.pretrain.token_mixing import mix_examples, mix_tokens, quantize_delay, secondary_share
from spear.system.rng import generator

RATES = {"wavlm": 50.0}


def example(name, seconds, value, scale=0.1, is_audio=False):
    """A clip whose tokens are all `value`."""
    num_samples = int(seconds * 16000)
    rng = np.random.default_rng(value)
    audio = (scale * rng.standard_normal(num_samples)).astype(np.float32)
    tokens = np.full(((num_samples - 400) // 320 + 1, 16), value, dtype=np.uint8)
    return Example(name, audio, is_audio, {"wavlm": tokens})


def naive_mix(primary, secondary, delay, beta, rng):
    """The definition, frame by frame and codebook by codebook."""
    length = max(len(primary), delay + len(secondary))
    overlap = range(delay, min(len(primary), delay + len(secondary)))
    draws = rng.random((len(overlap), primary.shape[1]))
    mixed = np.zeros((length, primary.shape[1]), dtype=np.uint8)
    valid = np.zeros(length, dtype=bool)
    for frame in range(length):
        in_first = frame < len(primary)
        in_second = delay <= frame < delay + len(secondary)
        valid[frame] = in_first or in_second
        for book in range(primary.shape[1]):
            if in_first and in_second:
                second = draws[frame - delay, book] < beta
                mixed[frame, book] = (
                    secondary[frame - delay, book] if second else primary[frame, book]
                )
            elif in_first:
                mixed[frame, book] = primary[frame, book]
            elif in_second:
                mixed[frame, book] = secondary[frame - delay, book]
    return mixed, valid


@pytest.mark.parametrize(
    ("first", "second", "delay"),
    [(50, 50, 0), (50, 50, 20), (50, 10, 20), (20, 50, 5), (20, 10, 30), (20, 20, 20), (1, 1, 0)],
)
def test_targets_equal_the_definition(first, second, delay):
    rng = np.random.default_rng(first + second + delay)
    primary = rng.integers(0, 256, (first, 8), dtype=np.uint8)
    secondary = rng.integers(0, 256, (second, 8), dtype=np.uint8)
    fast = mix_tokens(primary, secondary, delay, 0.3, generator(0, "t"))
    naive = naive_mix(primary, secondary, delay, 0.3, generator(0, "t"))
    assert np.array_equal(fast[0], naive[0])
    assert np.array_equal(fast[1], naive[1])


@pytest.mark.parametrize("ratio_db", [-5.0, 0.0, 5.0])
def test_beta_is_the_share_of_the_power_and_of_the_targets(ratio_db):
    primary, secondary = example("a", 30.0, 1, scale=0.02), example("b", 30.0, 2, scale=0.4)
    mixed = mix_examples(
        primary,
        secondary,
        delay_s=0.0,
        ratio_db=ratio_db,
        rates_hz=RATES,
        rng=generator(0, "m"),
    )
    added = mixed.audio - primary.audio
    assert 10 * np.log10(power(primary.audio) / power(added)) == pytest.approx(ratio_db, abs=0.01)
    beta = power(added) / (power(primary.audio) + power(added))
    assert beta == pytest.approx(1 / (1 + 10 ** (ratio_db / 10)), abs=1e-4)
    assert (mixed.tokens["wavlm"] == 2).mean() == pytest.approx(beta, abs=0.01)


def test_audio_and_tokens_are_delayed_alike_and_nothing_is_truncated():
    primary, secondary = example("a", 2.0, 1), example("b", 1.8, 2)
    mixed = mix_examples(
        primary,
        secondary,
        delay_s=1.2345,
        ratio_db=0.0,
        rates_hz=RATES,
        rng=generator(0, "m"),
    )
    start = round(1.22 * 16000)
    assert np.array_equal(mixed.audio[:start], primary.audio[:start])
    assert not np.array_equal(mixed.audio[start : start + 9], primary.audio[start : start + 9])
    assert len(mixed.audio) == start + len(secondary.audio)
    tail = mixed.audio[len(primary.audio) :] / secondary.audio[len(primary.audio) - start :]
    assert np.allclose(tail, tail[0])
    tokens = mixed.tokens["wavlm"]
    assert (tokens[:61] == 1).all() and (tokens[len(primary.tokens["wavlm"]) :] == 2).all()
    assert len(tokens) == 61 + len(secondary.tokens["wavlm"])
    assert mixed.id == "a" and mixed.valid["wavlm"].all()


def test_delay_is_whole_frames_of_the_slowest_teacher():
    assert quantize_delay(1.2345, {"a": 50.0}) == pytest.approx(1.22)
    assert quantize_delay(1.2345, {"a": 50.0, "b": 25.0}) == pytest.approx(1.20)
    assert quantize_delay(0.019, {"a": 50.0}) == 0.0
    assert quantize_delay(0.06, {"a": 50.0}) == pytest.approx(0.06), "no frame lost to rounding"


def test_teachers_of_general_audio_say_nothing_of_a_mixture():
    primary, secondary = example("a", 1.0, 1), example("b", 1.0, 2)
    primary.tokens["dasheng"] = np.zeros((25, 8), dtype=np.uint8)
    mixed = mix_examples(
        primary, secondary, delay_s=0.1, ratio_db=0.0, rates_hz=RATES, rng=generator(0, "m")
    )
    assert set(mixed.tokens) == {"wavlm"}


def test_silence_cannot_be_mixed():
    silent = example("a", 1.0, 1, scale=0.0)
    arguments = {"delay_s": 0.0, "ratio_db": 0.0, "rates_hz": RATES, "rng": generator(0, "m")}
    assert mix_examples(silent, example("b", 1.0, 2), **arguments) is None
    assert mix_examples(example("b", 1.0, 2), silent, **arguments) is None
    assert secondary_share(0.0, 0.0, 1.0) == 0.0


def augment(examples, seed=0, **config):
    augmenter = Augmenter(AugmentConfig(**config), RATES, SyntheticNoise())
    return augmenter(examples, generator(seed, "augment"))


def kind(before, after):
    if after is before:
        return "clean"
    return "noise" if len(after.tokens["wavlm"]) and not after.valid else "mixed"


def test_shares_of_clean_noisy_and_mixed_clips():
    examples = [example(str(i), 0.3, i % 200) for i in range(2000)]
    result = augment(examples)
    kinds = Counter(kind(b, a) for b, a in zip(examples, result, strict=True))
    assert kinds["clean"] / 2000 == pytest.approx(0.5, abs=0.04)
    assert kinds["noise"] / 2000 == pytest.approx(0.4, abs=0.04)
    assert kinds["mixed"] / 2000 == pytest.approx(0.1, abs=0.025)
    for before, after in zip(examples, result, strict=True):
        if kind(before, after) == "noise":
            assert after.tokens is before.tokens, "noise leaves the targets"
            ratio = 10 * np.log10(power(before.audio) / power(after.audio - before.audio))
            assert 9.9 < ratio < 20.1


def test_a_batch_of_one_gets_noise_instead_of_a_second_speaker():
    alone = [example("a", 1.0, 1)]
    (result,) = augment(alone, prob=1.0, mixing_share=1.0)
    assert kind(alone[0], result) == "noise"


def test_speech_is_mixed_with_other_speech_only():
    speech = [example(f"s{i}", 1.0, i) for i in range(4)]
    sounds = [example(f"a{i}", 1.0, 100 + i, is_audio=True) for i in range(4)]
    for seed in range(10):
        result = augment(speech + sounds, seed, prob=1.0, mixing_share=1.0)
        for before, after in zip(speech, result, strict=False):
            values = set(after.tokens["wavlm"][after.valid["wavlm"]].ravel().tolist())
            assert kind(before, after) == "mixed"
            assert max(values) < 100 and len(values) == 2, "one other speech clip, never itself"
        for before, after in zip(sounds, result[4:], strict=True):
            assert kind(before, after) == "noise"


def test_no_clip_grows_by_more_than_the_budget():
    config = AugmentConfig(prob=1.0, mixing_share=1.0)
    examples = [example(str(i), 1.0 + 0.1 * i, i) for i in range(8)]
    longest = max(len(e.audio) for e in examples) / 16000
    for seed in range(20):
        grown = max(len(e.audio) for e in augment(examples, seed, prob=1.0, mixing_share=1.0))
        assert grown / 16000 <= longest + config.growth_s
    assert AugmentConfig(prob=0.0).growth_s == 0.0


def test_augmentation_is_pure_and_can_be_off():
    examples = [example(str(i), 0.5, i) for i in range(20)]
    first, second = augment(examples, 3), augment(examples, 3)
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(first, second, strict=True))
    assert any(
        len(a.audio) != len(b.audio) for a, b in zip(first, augment(examples, 4), strict=True)
    )
    off = augment(examples, prob=0.0)
    assert all(after is before for before, after in zip(examples, off, strict=True))
    sounds = [example("a", 1.0, 1, is_audio=True)]
    assert augment(sounds, prob=1.0, noise_on_audio=False)[0] is sounds[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"prob": 1.1},
        {"noise_snr_db": (20.0, 10.0)},
        {"noise_source": "folder"},
        {"noise_folder": "x"},
        {"mixing_max_delay_s": -1.0},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match="augment"):
        AugmentConfig(**wrong)


def test_two_byte_tokens_stay_what_they_are() -> None:
    primary, secondary = np.full((5, 1), 300, np.uint16), np.full((5, 1), 4000, np.uint16)
    mixed, valid = mix_tokens(primary, secondary, 2, 1.0, np.random.default_rng(0))
    assert mixed.dtype == np.uint16
    assert mixed[:, 0].tolist() == [300, 300, 4000, 4000, 4000, 4000, 4000]
    assert valid.all()
