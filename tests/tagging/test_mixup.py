"""MixUp: what is mixed with what, how much, how often."""

import numpy as np
import pytest

from spear.errors import ConfigError
from spear.system.rng import generator
from spear.tagging.mixup import MixupConfig, mixup


def constant_clips(num, length=20):
    """Clip i is 2**i everywhere and has class i alone: what is in a mixture can be read off it."""
    audio = [np.full(length + i, 2.0**i, np.float32) for i in range(num)]
    return audio, np.eye(num, dtype=np.float32)


def test_labels_say_how_much_of_which_clip_is_in_a_mixture():
    audio, targets = constant_clips(6)
    mixed, labels = mixup(audio, targets, MixupConfig(probability=1.0), generator(0, "x"))
    for row, clip in enumerate(mixed):
        assert labels[row].sum() == pytest.approx(1.0)
        assert np.count_nonzero(labels[row]) == 2
        assert 0 < labels[row, row] < 1
        np.testing.assert_allclose(clip[:20], labels[row] @ 2.0 ** np.arange(6), rtol=1e-5)
        partner = int(np.flatnonzero(labels[row] * (np.arange(6) != row))[0])
        assert len(clip) == 20 + max(row, partner)
        longer = max(row, partner)
        np.testing.assert_allclose(
            clip[20 + min(row, partner) :], labels[row, longer] * 2.0**longer, rtol=1e-5
        )


def test_about_so_many_are_mixed_and_about_half_and_half():
    audio = [np.zeros(1, np.float32)] * 2000
    targets = np.eye(2000, dtype=np.float32)
    _, labels = mixup(audio, targets, MixupConfig(), generator(1, "x"))
    own = labels.diagonal()
    assert 0.46 < (own < 1).mean() < 0.54
    weights = own[own < 1]
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.std() == pytest.approx(np.sqrt(1 / (4 * 21)), abs=0.02)  # of Beta(10, 10)


def test_inputs_stay_as_they_are():
    audio, targets = constant_clips(4)
    before = [clip.copy() for clip in audio]
    mixup(audio, targets, MixupConfig(probability=1.0), generator(0, "x"))
    assert all(np.array_equal(clip, old) for clip, old in zip(audio, before, strict=True))
    assert np.array_equal(targets, np.eye(4))


def test_a_batch_of_one_is_not_mixed_nor_is_one_at_probability_zero():
    for num, probability in ((1, 1.0), (3, 0.0)):
        audio, targets = constant_clips(num)
        mixed, labels = mixup(audio, targets, MixupConfig(probability), generator(0, "x"))
        assert all(a is b for a, b in zip(mixed, audio, strict=True))
        assert np.array_equal(labels, targets)


def test_impossible_configurations_are_refused():
    with pytest.raises(ConfigError, match="probability"):
        MixupConfig(probability=1.5)
    with pytest.raises(ConfigError, match="beta"):
        MixupConfig(beta=0.0)
