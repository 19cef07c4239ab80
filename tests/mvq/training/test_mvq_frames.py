"""Training frames: what is known of their channels, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear.errors import DataError
from spear.mvq import TrainingBudget, train_baseline, train_quantizer
from spear.mvq.training import frames as frames_module
from spear.mvq.training.frames import channel_statistics, normalization
from tests.mvq.mvq_frames import correlated_frames


def test_statistics_are_exact_where_float16_sums_would_not_be() -> None:
    x = (torch.randn(40000, 3) + 100).half()
    found = channel_statistics(x, torch.arange(40000))
    torch.testing.assert_close(found.mean, x.double().mean(dim=0).float())
    torch.testing.assert_close(found.scale, x.double().std(dim=0, unbiased=False).float())


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(2, 90), block_frames=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_blocks_are_put_together_to_the_whole(
    num_frames: int, block_frames: int, seed: int
) -> None:
    x = 3 * torch.randn(num_frames, 4, generator=torch.Generator().manual_seed(seed)) + 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "_BLOCK_FRAMES", block_frames)
        found = channel_statistics(x.numpy(), torch.arange(num_frames))
    torch.testing.assert_close(found.mean, x.mean(dim=0))
    torch.testing.assert_close(found.scale, x.std(dim=0, unbiased=False), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.lowest, x.amin(dim=0))
    assert torch.equal(found.highest, x.amax(dim=0))


def test_without_normalisation_nothing_is_changed() -> None:
    found = channel_statistics(correlated_frames(100, 5), torch.arange(100))
    mean, scale = normalization(found, normalize_channels=False)
    assert (mean == 0).all()
    assert (scale == 1).all()
    assert normalization(found, normalize_channels=True) == (found.mean, found.scale)


@pytest.mark.parametrize(
    "train", [train_quantizer, lambda x, *n: train_baseline("residual", x, *n)]
)
def test_frames_without_content_are_refused(train) -> None:
    with pytest.raises(DataError, match="all 500 training frames are equal"):
        train(torch.full((500, 4), 3.0), 2, 16)
    with pytest.raises(DataError, match="0 frames are too few"):
        train(torch.empty(0, 4), 2, 16)


def test_the_whole_is_never_read_at_once() -> None:
    """So that a sample may be larger than memory: a quarter at most, where a block is that."""

    class Watched(np.ndarray):
        most = 0

        def __getitem__(self, key):
            found = np.asarray(super().__getitem__(key))
            Watched.most = max(Watched.most, len(found))
            return found

    x = correlated_frames(4 * (1 << 14), 4).numpy()
    budget = TrainingBudget(num_iterations=2, frames_per_iteration=3000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spear.mvq.training.alternation._INITIAL_FRAMES", 5000)
        train_quantizer(x.view(Watched), 2, 16, budget=budget)
    assert 0 < Watched.most <= 1 << 14
