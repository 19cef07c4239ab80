"""The windows of the pruned loss: what they keep, how they move, and gradients through them."""

import pytest
import torch

from spear.asr.rnnt.losses import (
    prune,
    prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_smoothed,
)
from spear.errors import ConfigError, DataError


def make(frames, label_lens, vocab_size=12, seed=0):
    torch.manual_seed(seed)
    size, most = len(frames), max(label_lens)
    am = 3.0 * torch.randn(size, max(frames), vocab_size)
    lm = torch.randn(size, most + 1, vocab_size)
    symbols = torch.randint(1, vocab_size, (size, most))
    return am, lm, symbols, torch.tensor(frames), torch.tensor(label_lens)


def windows(s_range, *case):
    _, shares = rnnt_loss_smoothed(*case)
    return prune_ranges(*shares, *case[3:], s_range=s_range)


@pytest.mark.parametrize("s_range", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_windows_form_a_way_through(s_range, seed):
    frames, label_lens = (40, 31, 12), (20, 3, 10)
    ranges = windows(s_range, *make(frames, label_lens, seed=seed))
    assert ranges.shape == (3, 40, s_range)
    assert ranges.diff(dim=2).eq(1).all()
    for own, length, num_labels in zip(ranges[..., 0], frames, label_lens, strict=True):
        steps = own[:length].diff()
        assert own[0] == 0
        assert own[length - 1] == max(num_labels - s_range + 1, 0)
        assert steps.ge(0).all()
        assert steps.lt(s_range).all()


def test_windows_follow_the_paths():
    """A model that is certain where each label is: there the windows are."""
    symbols = torch.arange(1, 10).unsqueeze(0)
    am = torch.zeros(1, 30, 10)
    am[0, :, 0] = 20.0
    at = torch.tensor([2, 5, 9, 10, 11, 17, 18, 25, 29])
    am[0, at, symbols[0]] = 40.0
    case = (am, torch.zeros(1, 10, 10), symbols, torch.tensor([30]), torch.tensor([9]))
    ranges = windows(3, *case)
    for frame in range(30):
        assert int((at < frame).sum()) in ranges[0, frame]

    kept = sum(prune(*case[:2], ranges))
    pruned = rnnt_loss_pruned(kept, symbols, ranges, *case[3:])
    full = rnnt_loss(am.unsqueeze(2) + case[1].unsqueeze(1), symbols, *case[3:])
    torch.testing.assert_close(pruned, full, rtol=1e-5, atol=1e-5)


def test_pruned_loss_is_never_below_the_full_one():
    case = make((25, 18), (10, 7))
    am, lm, symbols, *sizes = case
    full = rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, *sizes, reduction="none")
    losses = []
    for s_range in (2, 4, 8, 11):
        ranges = windows(s_range, *case)
        kept = sum(prune(am, lm, ranges))
        losses.append(rnnt_loss_pruned(kept, symbols, ranges, *sizes, reduction="none"))
        assert (losses[-1] >= full - 1e-4).all()
    torch.testing.assert_close(losses[-1], full)
    assert (losses[0] > full + 0.1).all()


def test_prune_takes_vectors_of_any_size_and_gives_their_gradients():
    ranges = windows(3, *make((9, 7), (5, 2)))
    am = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    lm = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    am_kept, lm_kept = prune(am, lm, ranges)
    assert am_kept.shape == lm_kept.shape == (2, 9, 3, 4)
    assert am_kept.untyped_storage().data_ptr() == am.untyped_storage().data_ptr()
    for b, t, r in ((0, 0, 0), (0, 8, 2), (1, 4, 1)):
        assert torch.equal(am_kept[b, t, r], am[b, t])
        assert torch.equal(lm_kept[b, t, r], lm[b, ranges[b, t, r]])
    assert torch.autograd.gradcheck(lambda a, n: prune(a, n, ranges), (am, lm))


def test_what_does_not_fit_is_refused():
    am, lm, symbols, *sizes = make((9, 7), (5, 2))
    _, (px, py) = rnnt_loss_smoothed(am, lm, symbols, *sizes)
    ranges = prune_ranges(px, py, *sizes)
    with pytest.raises(ConfigError, match="s_range is 1"):
        prune_ranges(px, py, *sizes, s_range=1)
    with pytest.raises(DataError, match="px has shape"):
        prune_ranges(py, py, *sizes)
    with pytest.raises(DataError, match="ranges have shape"):
        prune(am, lm, ranges[:, :4])
    with pytest.raises(DataError, match=r"ranges go from 0 to 5, but .* at most 3 labels"):
        prune(am, lm[:, :4], ranges)
    logits = torch.zeros(2, 9, 4, 12)
    with pytest.raises(DataError, match="windows of logits and ranges differ: 4 and 5"):
        rnnt_loss_pruned(logits, symbols, ranges, *sizes)
