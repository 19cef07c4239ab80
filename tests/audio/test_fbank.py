import math
from pathlib import Path

import pytest
import torch
from lhotse import Fbank as LhotseFbank
from lhotse import FbankConfig

from spear.audio import LOG_EPS, Fbank, num_fbank_frames
from spear.audio.fbank import filter_bands, mel_filters, mirror_edges


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_equals_the_reference_release(golden_dir: Path) -> None:
    reference = torch.load(golden_dir / "spear_tiny_50hz" / "reference.pt", weights_only=True)
    fbank, lens = Fbank()(reference["audio"], reference["audio_lens"])
    assert lens.tolist() == reference["fbank_lens"].tolist()
    torch.testing.assert_close(fbank, reference["fbank"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("num_samples", [239, 400, 401, 560, 1000, 1081, 15999, 16000])
@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_equals_lhotse(num_samples: int, num_mel_bins: int) -> None:
    audio = noise(num_samples)
    expected = LhotseFbank(FbankConfig(num_filters=num_mel_bins)).extract(audio, 16000)
    fbank, _ = Fbank(num_mel_bins)(audio[None], torch.tensor([num_samples]))
    torch.testing.assert_close(fbank[0], expected, atol=1e-4, rtol=0)


def test_batch_mates_change_nothing_and_padding_is_log_eps() -> None:
    lens = [16000, 1, 90, 7777, 4321]
    batch = torch.full((5, 16000), math.nan)
    for row, length in zip(batch, lens, strict=True):
        row[:length] = noise(length)
    fbank, frames = Fbank()(batch, torch.tensor(lens))
    assert fbank.shape == (5, 100, 128)
    assert frames.tolist() == [num_fbank_frames(length) for length in lens]
    for row, length in enumerate(lens):
        alone, _ = Fbank()(noise(length)[None], torch.tensor([length]))
        num_frames = num_fbank_frames(length)
        torch.testing.assert_close(fbank[row, :num_frames], alone[0], atol=1e-5, rtol=0)
        assert (fbank[row, num_frames:] == LOG_EPS).all()


def test_chunks_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, lens = noise(7, 3200), torch.tensor([3200, 3000, 100, 3200, 1, 2000, 3199])
    whole, _ = Fbank()(audio, lens)
    monkeypatch.setattr("spear.audio.fbank.FRAMES_AT_ONCE", {"cpu": 40})
    torch.testing.assert_close(Fbank()(audio, lens)[0], whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(0, 0), (79, 0), (80, 1), (160, 1), (240, 2)]
)
def test_frame_count(num_samples: int, num_frames: int) -> None:
    assert num_fbank_frames(num_samples) == num_frames
    fbank, lens = Fbank()(noise(1, num_samples), torch.tensor([num_samples]))
    assert fbank.shape == (1, num_frames, 128)
    assert lens.tolist() == [num_frames]


def test_silence_is_finite_and_above_padding() -> None:
    fbank, _ = Fbank()(torch.zeros(1, 1600), torch.tensor([1600]))
    assert torch.isfinite(fbank).all()
    assert (fbank > LOG_EPS).all()


def test_edges_are_mirrored_at_each_utterances_own_end() -> None:
    audio = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0]])
    mirrored = mirror_edges(audio, torch.tensor([3, 4]), num_frames=1)
    assert mirrored.shape == (2, 400)
    assert mirrored[0, 117:127].tolist() == [3, 2, 1, 1, 2, 3, 3, 2, 1, 1]
    assert mirrored[1, 118:126].tolist() == [5, 4, 4, 5, 6, 7, 7, 6]


def test_mixed_precision_does_not_reach_the_features() -> None:
    audio, lens = noise(1, 8000), torch.tensor([8000])
    expected, _ = Fbank()(audio, lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fbank, _ = Fbank()(audio, lens)
    assert fbank.dtype == torch.float32
    torch.testing.assert_close(fbank, expected)


def test_nothing_of_it_is_in_a_checkpoint() -> None:
    assert not Fbank().state_dict()


@pytest.mark.parametrize("num_mel_bins", [4, 23, 80, 128, 300])
def test_bands_hold_every_weight_of_every_filter(num_mel_bins: int) -> None:
    weights = mel_filters(num_mel_bins)
    rebuilt = torch.zeros_like(weights)
    for low, high, filters in filter_bands(weights):
        rebuilt[low:high, filters] = weights[low:high, filters]
    assert torch.equal(rebuilt, weights)


def test_bands_leave_out_most_of_the_zeros() -> None:
    weights = mel_filters(128)
    kept = sum((high - low) * 16 for low, high, _ in filter_bands(weights))
    assert (weights != 0).sum() < kept < 0.3 * weights.numel()


def test_filters_that_see_nothing_are_no_error() -> None:
    weights = torch.zeros(257, 32)
    weights[5, 0] = 1.0
    assert filter_bands(weights) == [(5, 6, slice(0, 16)), (0, 0, slice(16, 32))]


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_an_offset_and_a_low_level_cost_no_accuracy(scale: float, offset: float) -> None:
    audio = scale * noise(8000) + offset
    fbank, _ = Fbank()(audio[None], torch.tensor([8000]))
    expected = LhotseFbank(FbankConfig(num_filters=128)).extract(audio, 16000)
    torch.testing.assert_close(fbank[0], expected, atol=1e-4, rtol=0)


def test_a_long_utterance_is_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, lens = noise(2, 32000), torch.tensor([32000, 20011])
    whole, _ = Fbank()(audio, lens)
    sizes = []
    log_mel = Fbank._log_mel

    def watch(self: Fbank, frames: torch.Tensor) -> torch.Tensor:
        sizes.append(frames.shape[0] * frames.shape[1])
        return log_mel(self, frames)

    monkeypatch.setattr("spear.audio.fbank.FRAMES_AT_ONCE", {"cpu": 30})
    monkeypatch.setattr(Fbank, "_log_mel", watch)
    torch.testing.assert_close(Fbank()(audio, lens)[0], whole, atol=1e-5, rtol=0)
    assert max(sizes) == 30
    assert sum(sizes) == 200 + 125, "frames of padding are not computed"


def test_an_utterance_without_a_frame_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, lens = noise(3, 3200), torch.tensor([3200, 79, 1600])
    monkeypatch.setattr("spear.audio.fbank.FRAMES_AT_ONCE", {"cpu": 20})  # one row at a time
    fbank, frames = Fbank()(audio, lens)
    assert frames.tolist() == [20, 0, 10]
    assert (fbank[1] == LOG_EPS).all()
    assert (fbank[2, :10] > LOG_EPS).all()
