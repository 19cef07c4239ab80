"""Log-mel and MFCC teachers against lhotse's layers and a naive difference."""

import math

import pytest
import torch
from lhotse.features.kaldi.layers import Wav2LogFilterBank, Wav2MFCC
from torch import Tensor

from spear.teachers import load_teacher
from spear.teachers.features import delta, settings_digest

AUDIO = torch.randn(1, 16123, generator=torch.Generator().manual_seed(3)) * 0.1
LENS = torch.tensor([16123])


def _naive_delta(frames: Tensor) -> Tensor:
    """The slope of the least-squares line through five frames, ends repeated."""
    num_frames = len(frames)
    rows = []
    for t in range(num_frames):
        window = [frames[min(max(t + n, 0), num_frames - 1)] for n in range(-2, 3)]
        rows.append(sum(n * x for n, x in zip(range(-2, 3), window, strict=True)) / 10)
    return torch.stack(rows)


def test_logmel_is_pairs_of_kaldi_frames() -> None:
    teacher = load_teacher({"name": "logmel"})
    frames, lens = teacher(AUDIO, LENS)
    kaldi = Wav2LogFilterBank(num_filters=80)(AUDIO)[0]
    assert kaldi.shape == (101, 80)
    assert lens.tolist() == [50] and teacher.dim == 160 and teacher.frame_rate_hz == 50.0
    for frame in (0, 17, 49):
        expected = torch.cat((kaldi[2 * frame], kaldi[2 * frame + 1]))
        torch.testing.assert_close(frames[0, frame], expected, atol=2e-3, rtol=0)


def test_mfcc_is_huberts_39_dimensions() -> None:
    teacher = load_teacher({"name": "mfcc", "frame_rate_hz": 25})
    frames, lens = teacher(AUDIO, LENS)
    cepstra = Wav2MFCC()(AUDIO)[0]
    slope = _naive_delta(cepstra)
    features = torch.cat((cepstra, slope, _naive_delta(slope)), dim=1)
    assert features.shape == (101, 39)
    assert lens.tolist() == [25] and teacher.dim == 4 * 39
    expected = features[:100].reshape(25, 156)
    torch.testing.assert_close(frames[0], expected, atol=1e-2, rtol=1e-3)


def test_delta_of_a_line_is_its_slope() -> None:
    line = (3.0 * torch.arange(20.0))[None, :, None]
    assert delta(line, torch.tensor([20]))[0, 2:-2, 0].tolist() == pytest.approx([3.0] * 16)


def test_delta_sees_each_recording_end() -> None:
    frames = torch.randn(3, 9, 4)
    lens = torch.tensor([9, 1, 4])
    slopes = delta(frames, lens)
    for row, length in enumerate(lens.tolist()):
        expected = _naive_delta(frames[row, :length])
        torch.testing.assert_close(slopes[row, :length], expected)


def test_silence_is_the_energy_floor() -> None:
    frames, _ = load_teacher({"name": "logmel"})(torch.zeros(1, 1600), torch.tensor([1600]))
    floor = math.log(torch.finfo(torch.float32).eps)
    assert frames.unique().tolist() == pytest.approx([floor], abs=1e-4)


def test_settings_decide_the_digest() -> None:
    def digest(**options: object) -> str:
        return load_teacher({"name": "any", "family": "logmel", **options}).weights_sha256

    base = digest()
    assert base == digest(frame_rate_hz=50.0, num_mel_bins=80, deltas=False)
    others = [digest(frame_rate_hz=25.0), digest(num_mel_bins=40), digest(deltas=True)]
    assert len({base, *others, load_teacher({"name": "mfcc"}).weights_sha256}) == 5
    assert settings_digest({"b": 1, "a": 2}) == settings_digest({"a": 2, "b": 1})


def test_options_shape_the_frames() -> None:
    teacher = load_teacher({"name": "logmel", "num_mel_bins": 40, "deltas": True})
    assert teacher.dim == 40 * 3 * 2
    assert load_teacher({"name": "mfcc", "deltas": False}).dim == 26
