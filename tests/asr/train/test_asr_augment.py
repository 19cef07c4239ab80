"""SpecAugment and speed perturbation: bounds, seeds, and that they do something."""

import numpy as np
import pytest
import torch

from spear.asr.train.augment import check_speeds, perturb_speed
from spear.audio import LOG_EPS
from spear.errors import ConfigError
from spear.finetune.spec_augment import SpecAugment, SpecAugmentConfig

NO_WARP = {"probability": 1.0, "time_warp_frames": 0}


def rng(seed=0):
    return np.random.default_rng(seed)


def features(num_frames, num_bins=80):
    return torch.rand(num_frames, num_bins, generator=torch.Generator().manual_seed(0)) - 5.0


def masked_frames_and_bins(config, fbank, seed):
    out = SpecAugment(config)(fbank, rng(seed))
    changed = out != fbank
    return changed.all(dim=1), changed.all(dim=0), out


@pytest.mark.parametrize("num_frames", [1, 7, 30, 100, 1000, 3000])
def test_time_masks_stay_within_their_share(num_frames):
    config = SpecAugmentConfig(**NO_WARP, num_mel_masks=0)
    shares = []
    for seed in range(30):
        frames, _, out = masked_frames_and_bins(config, features(num_frames), seed)
        assert out.shape == (num_frames, 80)
        shares.append(frames.float().mean().item())
    assert max(shares) <= config.max_time_fraction + 1e-6
    if num_frames >= 30:
        assert max(shares) > 0.3 * config.max_time_fraction


def test_no_time_mask_is_longer_than_allowed():
    config = SpecAugmentConfig(
        **NO_WARP, num_mel_masks=0, num_time_masks=1, time_mask_frames=20, max_time_fraction=1.0
    )
    lengths = set()
    for seed in range(100):
        frames, _, _ = masked_frames_and_bins(config, features(200), seed)
        lengths.add(int(frames.sum()))
        places = frames.nonzero().flatten()
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
    assert max(lengths) == 20
    assert min(lengths) <= 1


@pytest.mark.parametrize(("num_bins", "widest"), [(80, 27), (128, 43), (40, 14)])
def test_mel_masks_scale_with_the_filter_bank(num_bins, widest):
    config = SpecAugmentConfig(**NO_WARP, num_time_masks=0, num_mel_masks=1)
    widths = [
        int(masked_frames_and_bins(config, features(50, num_bins), seed)[1].sum())
        for seed in range(200)
    ]
    assert max(widths) == widest
    assert min(widths) == 0


@pytest.mark.parametrize("kind", ["mean", "floor"])
def test_masked_values(kind):
    config = SpecAugmentConfig(**NO_WARP, mask_value=kind)
    fbank = features(400)
    out = SpecAugment(config)(fbank, rng())
    expected = float(fbank.mean()) if kind == "mean" else LOG_EPS
    torch.testing.assert_close(out[out != fbank].unique(), torch.tensor([expected]))


def test_the_same_seed_gives_the_same_features_and_another_seed_others():
    augment = SpecAugment(SpecAugmentConfig(probability=1.0))
    fbank = features(500)
    kept = fbank.clone()
    assert torch.equal(augment(fbank, rng(1)), augment(fbank, rng(1)))
    assert not torch.equal(augment(fbank, rng(1)), augment(fbank, rng(2)))
    assert torch.equal(fbank, kept), "the input must stay as it is"


def test_warping_moves_time_by_at_most_the_reach_and_keeps_the_length():
    config = SpecAugmentConfig(probability=1.0, num_time_masks=0, num_mel_masks=0)
    ramp = torch.arange(500.0).unsqueeze(1).expand(-1, 80)
    shifts = []
    for seed in range(30):
        out = SpecAugment(config)(ramp, rng(seed))
        assert out.shape == ramp.shape
        assert bool((out.diff(dim=0) >= 0).all()), "time must not run backwards"
        shifts.append((out - ramp).abs().max().item())
    assert 20 < max(shifts) <= 81
    short = features(160)
    assert torch.equal(SpecAugment(config)(short, rng()), short)


def test_probability_zero_changes_nothing():
    fbank = features(300)
    assert SpecAugment(SpecAugmentConfig(probability=0.0))(fbank, rng()) is fbank


def test_impossible_configurations_are_refused():
    with pytest.raises(ConfigError, match="max_time_fraction"):
        SpecAugmentConfig(max_time_fraction=1.5)
    with pytest.raises(ConfigError, match="num_mel_masks"):
        SpecAugmentConfig(num_mel_masks=-1)
    for speeds in [(), (0.0,), (1.0, 3.0)]:
        with pytest.raises(ConfigError, match="speeds"):
            check_speeds(speeds)


def test_speed_changes_length_and_pitch():
    audio = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    for factor in (0.9, 1.1):
        faster = perturb_speed(audio, (factor,), rng())
        assert len(faster) == pytest.approx(16000 / factor, abs=1)
        peak_hz = np.abs(np.fft.rfft(faster)).argmax() * 16000 / len(faster)
        assert peak_hz == pytest.approx(1000 * factor, rel=2e-3)


def test_speeds_are_drawn_evenly_from_the_generator():
    audio = np.zeros(1100, dtype=np.float32)
    lengths = [len(perturb_speed(audio, (0.9, 1.0, 1.1), rng(seed))) for seed in range(150)]
    counts = [lengths.count(length) for length in sorted(set(lengths))]
    assert len(counts) == 3
    assert min(counts) > 30
