"""What every teacher promises, whatever its family."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from spear.errors import AudioError, CheckpointError
from spear.teachers import Teacher, load_teacher

Spec = Callable[[str], dict[str, Any]]
PRETRAINED = [
    *("wavlm", "wavlm-group", "hubert", "hubert-batch-norm", "wav2vec2", "wav2vec2-stable"),
    *("data2vec", "dasheng", "spear", "spear-25"),
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((variant, {}) for variant in PRETRAINED),
    *((variant, {"layer": 2}) for variant in PRETRAINED),
    *((variant, {"layer": 0}) for variant in ("wavlm", "data2vec", "dasheng")),
    ("logmel", {}),
    ("logmel", {"frame_rate_hz": 25.0, "deltas": True, "num_mel_bins": 40}),
    ("mfcc", {}),
    ("mfcc", {"frame_rate_hz": 25}),
]
IDS = ["-".join([variant, *map(str, options.values())]) for variant, options in VARIANTS]


@pytest.fixture(params=VARIANTS, ids=IDS)
def teacher(request: pytest.FixtureRequest, make_spec: Spec) -> Teacher:
    variant, options = request.param
    return load_teacher({**make_spec(variant), **options})


def _batch(lens: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Recordings of very different level and offset, with NaN behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(len(lens), max(lens), generator=generator)
    audio = (audio + 0.5) * torch.logspace(-3, 0, len(lens))[:, None]
    for row, length in enumerate(lens):
        audio[row, length:] = torch.nan
    return audio, torch.tensor(lens)


def test_batch_mates_change_nothing(teacher: Teacher) -> None:
    audio, lens = _batch([12345, 250, 8000, 2000, 20777, 0])
    frames, num_frames = teacher(audio, lens)
    for row, length in enumerate(lens.tolist()):
        alone, (count,) = teacher(audio[row : row + 1, :length], lens[row : row + 1])
        assert count == num_frames[row] == teacher.num_frames(length)
        assert alone.shape[1] == count
        torch.testing.assert_close(frames[row, :count], alone[0], atol=1e-4, rtol=0)
        assert bool((frames[row, count:] == 0).all())
    assert frames[num_frames > 0].std() > 0.01  # invariance of a constant would be no news


def test_callers_autocast_and_its_flags_are_left_alone(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("wavlm"))
    audio, lens = _batch([4000])
    expected, _ = teacher(audio, lens)
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(audio, lens)[0], expected)
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cudnn.allow_tf32 == before


def test_shapes_types_and_rate(teacher: Teacher) -> None:
    audio, lens = _batch([32000, 16000])
    frames, num_frames = teacher(audio, lens)
    assert frames.dtype == torch.float32 and num_frames.dtype == torch.int64
    assert frames.shape == (2, int(num_frames.max()), teacher.dim)
    # Student and teacher frames may differ by 2 in a whole recording, so the rate must be true.
    unpadded = 4 if teacher.family == "spear" else 1
    assert abs(int(num_frames[0]) - 2 * teacher.frame_rate_hz) <= unpadded
    assert not frames.requires_grad and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_no_recording_long_enough(teacher: Teacher) -> None:
    frames, num_frames = teacher(torch.zeros(2, 100), torch.tensor([100, 0]))
    assert frames.shape == (2, 0, teacher.dim)
    assert num_frames.tolist() == [0, 0]


def test_silence_and_a_constant_give_finite_frames(teacher: Teacher) -> None:
    audio = torch.stack((torch.zeros(16000), torch.full((16000,), 0.5)))
    frames, _ = teacher(audio, torch.tensor([16000, 16000]))
    assert bool(frames.isfinite().all())


def test_identity_tells_what_decides_the_frames(teacher: Teacher) -> None:
    identity = teacher.identity()
    keys = ["name", "family", "path", "layer", "frame_rate_hz", "dim", "weights_sha256"]
    assert list(identity) == keys
    for key in set(keys) - {"path"}:
        assert identity[key] == getattr(teacher, key)
    assert len(teacher.weights_sha256) == 64


def test_num_frames_never_decreases(teacher: Teacher) -> None:
    counts = [teacher.num_frames(samples) for samples in range(0, 6000, 7)]
    assert counts[0] == 0
    assert all(0 <= after - before <= 1 for before, after in pairwise(counts))


def test_unusable_batches_are_refused(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("logmel"))
    audio, lens = torch.zeros(2, 1600), torch.tensor([1600, 800])
    for bad_audio, bad_lens, message in [
        (audio[0], lens, "shape"),
        (audio.to(torch.int16), lens, "int16"),
        (audio, lens[:1], "expected 2 integers"),
        (audio, lens.float(), "expected 2 integers"),
        (audio, lens + 1, "between 0 and the 1600 samples"),
        (audio, lens - 801, "between 0 and the 1600 samples"),
    ]:
        with pytest.raises(AudioError, match=message):
            teacher(bad_audio, bad_lens)


def test_nan_samples_are_named_and_nan_weights_blamed(make_spec: Spec) -> None:
    teacher = load_teacher(make_spec("dasheng"))
    audio = torch.randn(3, 1600)
    audio[1, 5] = torch.inf
    with pytest.raises(AudioError, match=r"recordings \[1\]"):
        teacher(audio, torch.tensor([1600, 1600, 1600]))
    teacher.network.norm.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="weights"):
        teacher(audio[:1], torch.tensor([1600]))
