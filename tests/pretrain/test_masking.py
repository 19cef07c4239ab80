"""Masks: shares, limits, purity, and equality with a naive sampler given the same numbers."""

import numpy as np
import pytest

from spear.errors import ConfigError
from spear.pretrain.masking import MaskConfig, MaskSampler, sample_spans
from spear.system.rng import generator


def naive_spans(lens, prob, span, rng, min_spans):
    """wav2vec 2.0's procedure, one clip and one span after the other."""
    starts = [max(n - span + 1, min(n, 1)) for n in lens]
    counts = [
        0 if p == 0 else min(max(int(p * n / span + u), min_spans), s)
        for n, p, u, s in zip(lens, prob, rng.random(len(lens)), starts, strict=True)
    ]
    keys = rng.random((len(lens), max(starts)), dtype=np.float32)
    mask = np.zeros((len(lens), max(lens)), dtype=bool)
    for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
        for start in np.argsort(keys[row, : starts[row]])[:count]:
            mask[row, start : min(start + span, length)] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_sampling_equals_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    lens = rng.integers(0, 300, 40)
    lens[0] = 300
    prob = rng.choice([0.0, 0.3, 0.5, 0.65], 40)
    fast = sample_spans(lens, prob, 10, generator(seed, "t"), min_spans=2)
    assert np.array_equal(fast, naive_spans(lens, prob, 10, generator(seed, "t"), 2))


@pytest.mark.parametrize(("prob", "share"), [(0.5, 0.402), (0.65, 0.491), (0.8, 0.567)])
def test_masked_share_of_frames(prob, share):
    lens = np.full(400, 1500)
    mask = sample_spans(lens, np.full(400, prob), 10, generator(0, "share"), min_spans=2)
    assert mask.mean() == pytest.approx(share, abs=0.005)


def test_masked_share_of_mel_bins():
    sampler = MaskSampler(MaskConfig())
    _, channels = sampler(np.full(5000, 20), np.zeros(5000, bool), generator(0, "bins"))
    assert channels.shape == (5000, 128)
    assert channels.mean() == pytest.approx(0.233, abs=0.005)


def test_audio_clips_have_their_own_probability():
    sampler = MaskSampler(MaskConfig(speech_prob=0.5, audio_prob=0.65))
    is_audio = np.arange(400) % 2 == 1
    frames, _ = sampler(np.full(400, 1500), is_audio, generator(0, "both"))
    assert frames[~is_audio].mean() == pytest.approx(0.402, abs=0.008)
    assert frames[is_audio].mean() == pytest.approx(0.491, abs=0.008)


def test_short_clips_get_masks_and_padding_none():
    lens = np.array([1, 3, 9, 10, 11, 12, 19, 25, 500])
    for seed in range(20):
        mask = sample_spans(lens, np.full(9, 0.5), 10, generator(seed, "short"), min_spans=2)
        inside = np.arange(500) < lens[:, None]
        assert not (mask & ~inside).any()
        assert mask[:4].sum(axis=1).tolist() == [1, 3, 9, 10], "a clip of one span is all masked"
        assert mask[4, :11].all(), "two spans of ten cover eleven frames"
        assert (mask[5:8].sum(axis=1) >= 11).all(), "two spans start at different frames"


def test_every_frame_can_be_masked_the_last_included():
    masks = [
        sample_spans(np.array([40]), np.array([0.5]), 10, generator(s, "edge"), 2)[0]
        for s in range(500)
    ]
    share = np.mean(masks, axis=0)
    assert share.min() > 0
    assert share[0] == pytest.approx(share[-1], abs=0.06)


def test_masks_depend_on_the_generator_alone():
    sampler, lens = MaskSampler(MaskConfig()), np.array([200, 100, 50])
    draw = lambda *keys: sampler(lens, np.zeros(3, bool), generator(*keys))  # noqa: E731
    assert all(map(np.array_equal, draw(1, "m", 0, 5), draw(1, "m", 0, 5)))
    assert not np.array_equal(draw(1, "m", 0, 5)[0], draw(1, "m", 0, 6)[0])


def test_probability_zero_masks_nothing():
    config = MaskConfig(speech_prob=0.0, channel_prob=0.0)
    masks = MaskSampler(config)(np.array([100]), np.array([False]), generator(0, "m"))
    assert not any(mask.any() for mask in masks)


@pytest.mark.parametrize("wrong", [{"speech_prob": 1.5}, {"channel_prob": -1}, {"span_frames": 0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match="mask"):
        MaskConfig(**wrong)
