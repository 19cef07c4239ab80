"""Noise: the ratio that was asked for, and where noise comes from."""

import numpy as np
import pytest

from spear.audio.noise import (
    RecordedNoise,
    SyntheticNoise,
    add_noise,
    fast_length,
    gain_for,
    power,
)
from spear.system.rng import generator


@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 20.0])
def test_noise_has_the_ratio_asked_for(snr_db):
    rng = np.random.default_rng(0)
    clip = (0.1 * rng.standard_normal(8000)).astype(np.float32)
    noise = (7.0 * rng.standard_normal(8000)).astype(np.float32)
    added = add_noise(clip, noise, snr_db) - clip
    assert 10 * np.log10(power(clip) / power(added)) == pytest.approx(snr_db, abs=0.01)
    assert np.corrcoef(added, noise)[0, 1] > 0.999


def test_silence_stays_and_adds_nothing():
    clip = np.full(100, 0.5, dtype=np.float32)
    zeros = np.zeros(100, dtype=np.float32)
    assert np.array_equal(add_noise(clip, zeros, 10.0), clip)
    assert np.array_equal(add_noise(zeros, clip, 10.0), zeros)
    assert gain_for(1.0, 0.0, 0.0) == 0.0
    assert power(np.zeros(0, dtype=np.float32)) == 0.0


def test_synthetic_noise_is_coloured_finite_and_pure():
    slopes = []
    for seed in range(40):
        noise = SyntheticNoise()(16000, "", generator(seed, "n"))
        assert noise.dtype == np.float32 and noise.shape == (16000,) and np.isfinite(noise).all()
        assert np.array_equal(noise, SyntheticNoise()(16000, "", generator(seed, "n")))
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        octaves = [spectrum[2**k : 2 ** (k + 1)].mean() for k in range(4, 12)]
        slopes.append(-np.polyfit(np.arange(8), np.log2(octaves), 1)[0])
    assert min(slopes) < 0.4 and max(slopes) > 1.6, "from white to brown"
    assert min(slopes) > -0.3 and max(slopes) < 2.3


@pytest.mark.parametrize("num_samples", [1, 7, 10, 25, 100])
def test_recorded_noise_has_every_length_and_only_its_own_samples(num_samples):
    recordings = [np.arange(10, dtype=np.float32), np.arange(100, 150, dtype=np.float32)]
    source = RecordedNoise(np.arange(2), lambda i: ("ab"[i], recordings[i]))
    for seed in range(20):
        noise = source(num_samples, "", generator(seed, "n"))
        assert noise.shape == (num_samples,)
        modulus, base = (10, 0) if noise[0] < 10 else (50, 100)
        assert np.array_equal((noise[1:] - base) % modulus, (noise[:-1] - base + 1) % modulus)


def test_a_clip_is_never_its_own_noise():
    recordings = [np.full(10, i + 1.0, dtype=np.float32) for i in range(3)]
    source = RecordedNoise(np.arange(3), lambda i: ("abc"[i], recordings[i]))
    drawn = {source(10, "b", generator(seed, "n"))[0] for seed in range(30)}
    assert drawn == {1.0, 3.0}
    alone = RecordedNoise(np.array([1]), lambda i: ("abc"[i], recordings[i]))
    assert not alone(10, "b", generator(0, "n")).any()


def test_lengths_of_transforms_are_near_and_have_small_factors():
    for num_samples in (*range(1, 300), 163_997, 320_009, 480_000):
        length = fast_length(num_samples)
        assert num_samples <= length <= max(num_samples, 1.125 * num_samples)
        while length % 2 == 0:
            length //= 2
        assert length <= 15, "16 times a power of two is a power of two"
    assert fast_length(0) == 0 and fast_length(160_000) == 163_840


@pytest.mark.parametrize("num_samples", [1, 2, 17, 16_001])
def test_synthetic_noise_takes_the_same_draws_whatever_its_transform(num_samples):
    rng = generator(3, "n")
    SyntheticNoise()(num_samples, "", rng)
    expected = generator(3, "n")
    expected.uniform(0.0, 2.0)
    expected.standard_normal(num_samples, dtype=np.float32)
    assert rng.random() == expected.random()


def test_synthetic_noise_is_as_loud_at_its_ends_as_inside():
    power_of = [np.zeros(16), np.zeros(16)]
    for seed in range(200):
        noise = SyntheticNoise()(9_001, "", generator(seed, "ends"))[:8992]
        exponent = generator(seed, "ends").uniform(0.0, 2.0)
        blocks = np.square(noise).reshape(16, -1).mean(axis=1)
        power_of[exponent > 1.0] += blocks / blocks.sum()
    for powers in power_of:
        assert powers.max() / powers.min() < 2.0
