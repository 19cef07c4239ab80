"""Batches: features like those of single clips, targets on the right frames, misfits refused."""

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from spear.audio import LOG_EPS, Fbank, num_fbank_frames
from spear.encoders.frame_grid import StudentFrames
from spear.errors import ConfigError, TokenError
from spear.pretrain.collate import (
    Collator,
    Example,
    TokenLayout,
    align_tokens,
)

LAYOUTS = {"wavlm": TokenLayout(4), "dasheng": TokenLayout(2, repeat=2)}


def draw_masks(lens, is_audio, rng):
    frames = np.arange(max(lens)) < (np.asarray(lens) // 2)[:, None]
    return frames & ~is_audio[:, None], rng.random((len(lens), 32)) < 0.3


def make_collator(frontend_pad=True):
    return Collator(LAYOUTS, StudentFrames(frontend_pad), draw_masks, num_mel_bins=32)


def teacher_frames(teacher, num_samples):
    return (num_samples - 400) // 320 + 1 if teacher == "wavlm" else (num_samples // 160 + 1) // 4


def example(name, num_samples, is_audio=False, teachers=("wavlm",)):
    rng = np.random.default_rng(num_samples)
    tokens = {
        teacher: rng.integers(
            1, 256, (teacher_frames(teacher, num_samples), LAYOUTS[teacher].num_codebooks)
        ).astype(np.uint8)
        for teacher in teachers
    }
    audio = (0.1 * rng.standard_normal(num_samples)).astype(np.float32)
    return Example(name, audio, is_audio, tokens)


def collate(examples, **options):
    return make_collator(**options)(examples, 1.5, np.random.default_rng(0))


def test_features_of_a_clip_do_not_depend_on_the_batch():
    examples = [example("a", 16000), example("b", 9000), example("c", 12345)]
    batch = collate(examples)
    for row, one in enumerate(examples):
        alone, lens = Fbank(32)(torch.from_numpy(one.audio)[None], torch.tensor([len(one.audio)]))
        frames = int(lens)
        assert batch.fbank_lens[row] == frames == num_fbank_frames(len(one.audio))
        torch.testing.assert_close(batch.fbank[row, :frames], alone[0])
        assert (batch.fbank[row, frames:] == LOG_EPS).all()
    assert batch.ids == ["a", "b", "c"] and batch.audio_s == 1.5


@pytest.mark.parametrize("frontend_pad", [True, False])
def test_targets_stand_on_the_nearest_student_frame(frontend_pad):
    examples = [example("a", 16000), example("b", 24000, True, ("wavlm", "dasheng"))]
    batch = collate(examples, frontend_pad=frontend_pad)
    shift = 0 if frontend_pad else 2
    fbank_frames = [100, 150]
    count = [n // 2 if frontend_pad else (n - 7) // 2 for n in fbank_frames]
    for row, one in enumerate(examples):
        for teacher, tokens in one.tokens.items():
            for frame in range(count[row]):
                source = (frame + shift) // LAYOUTS[teacher].repeat
                is_valid = source < len(tokens)
                assert batch.token_valid[teacher][row, frame] == is_valid
                if is_valid:
                    assert batch.tokens[teacher][row, frame].tolist() == tokens[source].tolist()
        assert not batch.token_valid["wavlm"][row, count[row] :].any()
    assert not batch.token_valid["dasheng"][0].any(), "this clip has no such teacher"
    assert batch.is_audio.tolist() == [False, True]


@pytest.mark.parametrize("frontend_pad", [True, False])
def test_every_duration_fits_both_teachers(frontend_pad):
    """Frame counts differ by at most two for any number of samples; see MAX_MISMATCH."""
    frames = StudentFrames(frontend_pad)
    worst = 0
    for num_samples in range(4000, 8000):
        count = frames.count(num_fbank_frames(num_samples))
        for teacher, layout in LAYOUTS.items():
            length = teacher_frames(teacher, num_samples) * layout.repeat - frames.token_shift
            worst = max(worst, abs(length - count))
    assert worst <= 2


@pytest.mark.parametrize("extra", [-4, -3, -2, -1, 0, 1, 2, 3, 4])
def test_more_than_two_frames_apart_is_an_error_that_names_the_cut(extra):
    tokens = np.arange(1, 41 + extra, dtype=np.uint8)[:, None]
    valid = np.ones(len(tokens), bool)
    arguments = {"layout": TokenLayout(1), "shift": 0, "name": "cut xyz, teacher wavlm"}
    if abs(extra) > 2:
        with pytest.raises(TokenError, match=r"cut xyz, teacher wavlm: .* frames of tokens for 40"):
            align_tokens(tokens, valid, 40, **arguments)
        return
    aligned, is_valid = align_tokens(tokens, valid, 40, **arguments)
    assert aligned.shape == (40, 1)
    assert is_valid.sum() == min(40, 40 + extra)
    assert aligned[is_valid, 0].tolist() == list(range(1, 1 + min(40, 40 + extra)))
    assert not aligned[~is_valid].any()


def test_tokens_of_another_width_are_refused():
    wide = example("cut-7", 16000)
    wide.tokens["wavlm"] = np.zeros((49, 8), dtype=np.uint8)
    with pytest.raises(TokenError, match=r"cut-7, teacher wavlm.*expected 4 codebooks"):
        collate([wide])


def test_a_token_beyond_the_codebook_is_refused():
    layout = TokenLayout(1, codebook_size=16)
    tokens = np.array([[15], [16]], dtype=np.uint8)
    with pytest.raises(TokenError, match="cut c: token 16 in a codebook of 16"):
        align_tokens(tokens, np.ones(2, bool), 2, layout=layout, shift=0, name="cut c")


def test_a_gap_in_the_targets_stays_a_gap():
    one = example("a", 16000)
    one.valid["wavlm"] = np.arange(49) // 10 % 2 == 0
    batch = collate([one])
    valid = batch.token_valid["wavlm"][0]
    assert torch.equal(valid[:49], torch.from_numpy(one.valid["wavlm"]))
    assert not batch.tokens["wavlm"][0, ~valid].any()


def test_places_of_valid_frames_agree_with_the_mask():
    batch = collate([example("a", 16000), example("b", 24000, True, ("wavlm", "dasheng"))])
    for teacher, valid in batch.token_valid.items():
        assert torch.equal(batch.valid_frames[teacher], valid.flatten().nonzero().squeeze(1))


@pytest.mark.parametrize("frontend_pad", [True, False])
def test_a_student_frame_is_masked_if_the_middle_of_its_input_is(frontend_pad):
    frames = StudentFrames(frontend_pad)
    for num_frames in (7, 8, 20, 101):
        mask = np.random.default_rng(num_frames).random((2, num_frames)) < 0.5
        at_student = frames.mask(mask)
        assert at_student.shape == (2, frames.count(num_frames))
        for i in range(at_student.shape[1]):
            # Three convolutions see 9 frames, from 2 i on, 3 earlier where the input is padded.
            first = 2 * i - (3 if frontend_pad else 0)
            assert np.array_equal(at_student[:, i], mask[:, first + 4])


def test_moving_a_batch_moves_every_tensor_and_nothing_else():
    batch = collate([example("a", 16000)])
    moved = batch.to("meta")
    assert moved.ids == batch.ids and moved.audio_s == batch.audio_s
    for name, value in vars(moved).items():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", name
    assert batch.fbank.device.type == "cpu"


def test_token_rates():
    assert TokenLayout.of_rate("t", 50.0, 8).repeat == 1
    assert TokenLayout.of_rate("t", 12.5, 8).repeat == 4
    for rate_hz in (100.0, 30.0, 0.0):
        with pytest.raises(ConfigError, match=r"teachers.t.frame_rate_hz"):
            TokenLayout.of_rate("t", rate_hz, 8)


def test_pinning_a_batch_pins_every_tensor(monkeypatch):
    """There is no GPU here: what stands in for the page-locked copy is marked."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate([example("a", 16000), example("b", 24000, True, ("wavlm", "dasheng"))])
    # What a DataLoader's pinning thread calls: it knows our batch by its method alone.
    found = pin_memory(batch)
    tensors = list(tensors_of(found))
    assert len(tensors) == len(pinned) == 6 + 3 * len(batch.tokens)
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in pinned}
    assert found.ids == batch.ids and found.audio_s == batch.audio_s
    assert all(map(torch.equal, tensors, tensors_of(batch)))


def tensors_of(batch):
    for value in vars(batch).values():
        for one in value.values() if isinstance(value, dict) else [value]:
            if isinstance(one, torch.Tensor):
                yield one
