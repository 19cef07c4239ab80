"""Windows of long recordings: the same frames as one pass, as far as a teacher can see."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spear.errors import ConfigError
from spear.mvq import Quantizer
from spear.teachers import Excerpts, Teacher, Windowing, load_teacher
from spear.teachers.windows import cut_windows

Spec = Callable[[str], dict[str, Any]]
FAMILIES = [
    *("logmel", "mfcc", "wavlm", "wavlm-group", "hubert", "data2vec"),
    *("dasheng", "spear", "spear-25"),
]
SMALL = Windowing(2.0, 1.0)


def recording(num_samples: int, seed: int = 0) -> Tensor:
    """Noise that grows louder, with an offset: a window's own statistics are another's."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, generator=generator)
    return noise * torch.linspace(0.02, 0.3, num_samples) + 0.1


def one_pass(teacher: Teacher, audio: Tensor) -> Tensor:
    frames, _ = teacher(audio[None], torch.tensor([len(audio)]))
    return frames[0]


def in_windows(teacher: Teacher, audio: Tensor, windowing: Windowing = SMALL) -> Tensor:
    """The frames of a recording, window by window."""
    statistics = teacher.statistics(audio)[None]
    cores = []
    for window in teacher.windows(len(audio), windowing):
        part = audio[window.start : window.stop]
        excerpts = Excerpts([window.num_context], statistics)
        frames, _ = teacher(part[None], torch.tensor([len(part)]), excerpts)
        assert window.first_frame == sum(map(len, cores))
        cores.append(window.core(frames[0]))
    return torch.cat(cores)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_one_pass(family: str, make_spec: Spec) -> None:
    teacher = load_teacher(make_spec(family))
    random = np.random.default_rng(0)
    cases = [
        (int(random.integers(1, 16000 * 400)), Windowing(*random.choice([2.5, 7, 11, 30], 2)))
        for _ in range(200)
    ]
    for num_samples, windowing in cases:
        num_frames = teacher.num_frames(num_samples)
        windows = teacher.windows(num_samples, windowing)
        if not windows:
            longest = windowing.window_s + 2 * windowing.context_s
            assert num_frames <= max(longest, 11) * teacher.frame_rate_hz + 16
            continue
        first = 0
        for window in windows:
            stop = num_samples if window.stop is None else window.stop
            own = teacher.num_frames(stop - window.start)
            assert window.start == (window.first_frame - window.num_context) * teacher.hop
            assert window.first_frame == first
            kept = window.num_frames or own - window.num_context
            assert own >= window.num_context + kept
            first += kept
        assert first == num_frames
        assert windows[-1].stop is None


@pytest.mark.parametrize("family", ["logmel", "mfcc", "dasheng"])
def test_what_sees_locally_sees_the_same(family: str, make_spec: Spec) -> None:
    teacher = load_teacher(make_spec(family))
    audio = recording(16000 * 11 + 777)
    found, expected = in_windows(teacher, audio), one_pass(teacher, audio)
    assert len(teacher.windows(len(audio), SMALL)) > 3
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["wavlm", "data2vec", "spear", "spear-25"])
def test_attention_sees_little_of_what_is_far_away(family: str, make_spec: Spec) -> None:
    teacher = load_teacher(make_spec(family))
    audio = recording(16000 * 11 + 777)
    found, expected = in_windows(teacher, audio), one_pass(teacher, audio)
    assert found.shape == expected.shape
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.1


@pytest.mark.parametrize("family", ["wavlm", "wavlm-group", "hubert", "dasheng"])
def test_statistics_are_those_of_the_whole_recording(family: str, make_spec: Spec) -> None:
    teacher = load_teacher(make_spec(family))
    audio = recording(16000 * 5)
    excerpts = Excerpts([0], teacher.statistics(audio)[None])
    found, _ = teacher(audio[None], torch.tensor([len(audio)]), excerpts)
    torch.testing.assert_close(found[0], one_pass(teacher, audio), atol=2e-4, rtol=0)
    quiet = Excerpts([0], teacher.statistics(audio[:8000])[None])
    other, _ = teacher(audio[None], torch.tensor([len(audio)]), quiet)
    if family != "dasheng":  # noise has no such range that top_db would cut
        assert float((other - found).abs().max()) > 1e-2


def test_a_quiet_window_is_cut_at_the_loudest_of_the_recording(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("dasheng"))
    audio = recording(16000 * 9)
    audio[: 16000 * 5] *= 1e-7  # more than 120 dB below the rest
    found, expected = in_windows(teacher, audio), one_pass(teacher, audio)
    assert torch.equal(found, expected)
    alone = one_pass(teacher, audio[: 16000 * 4])
    assert not torch.allclose(alone[:50], expected[:50], atol=1e-3)


def test_statistics_of_many_parts_are_those_of_one(
    make_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = recording(16000 * 3 + 3)
    for family in ("wavlm", "wavlm-group"):
        teacher = load_teacher(make_spec(family))
        expected = teacher.statistics(audio)
        with monkeypatch.context() as patch:
            patch.setattr("spear.teachers.hf._SAMPLES_AT_ONCE", 1003)
            torch.testing.assert_close(teacher.statistics(audio), expected)


def test_tokens_of_windows_do_not_jump_at_seams(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("wavlm"))
    audio = recording(16000 * 11 + 777)
    expected = one_pass(teacher, audio)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, teacher.dim, generator=generator) * expected.std() / 2
    quantizer = Quantizer(centers, channel_mean=expected.mean(0))
    tokens = quantizer.encode(expected)
    same = (quantizer.encode(in_windows(teacher, audio)) == tokens).float().mean(1)
    seams = torch.zeros(len(same), dtype=torch.bool)
    for window in teacher.windows(len(audio), SMALL)[1:]:
        seams[window.first_frame - 5 : window.first_frame + 5] = True
    assert float(same.mean()) > 0.8
    assert float(same[seams].mean()) > float(same.mean()) - 0.1


def test_what_is_too_short_for_a_window_belongs_to_the_one_before() -> None:
    assert [w.first_frame for w in cut_windows(105, core=50, context=10, hop=320)] == [0, 50]
    assert [w.first_frame for w in cut_windows(111, core=50, context=10, hop=320)] == [0, 50, 100]
    last = cut_windows(111, core=50, context=10, hop=320)[-1]
    assert (last.start, last.stop, last.num_context, last.num_frames) == (90 * 320, None, 10, None)


@pytest.mark.parametrize("lengths", [(-1.0, 5.0), (0.5, 5.0), (30.0, 0.1)])
def test_lengths_that_make_no_windows(lengths: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Windowing(*lengths)
