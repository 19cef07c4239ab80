"""The transducer losses: against all alignments, against k2's numbers, and at the edges."""

import itertools
import math

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

INF = float("inf")


def lengths(*values):
    return torch.tensor(values)


def make(num_frames, num_labels, vocab_size=5, dtype=torch.float64, seed=0):
    """One batch of full lattices with ragged lengths."""
    generator = torch.Generator().manual_seed(seed)
    size = len(num_frames)
    most_frames, most_labels = max(num_frames), max(num_labels)
    shape = (size, most_frames, most_labels + 1, vocab_size)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    symbols = torch.randint(1, vocab_size, (size, most_labels), generator=generator)
    return logits, symbols, lengths(*num_frames), lengths(*num_labels)


def make_pair(num_frames, num_labels, vocab_size=6, dtype=torch.float64, seed=0):
    """One batch of an encoder's and a decoder's logits."""
    logits, symbols, *sizes = make(num_frames, num_labels, vocab_size, dtype, seed)
    return logits[:, :, 0].clone(), logits[:, 0].clone(), symbols, *sizes


def brute_force(log_probs, labels, allowed=None):
    """Sums over every order of T blanks, the last at the end, and all labels."""
    num_frames, num_labels = len(log_probs), len(labels)
    total = []
    for places in itertools.combinations(range(num_frames + num_labels - 1), num_labels):
        t = u = 0
        score = 0.0
        for step in range(num_frames + num_labels):
            if allowed is not None and u not in allowed[t]:
                score = -INF
                break
            if step in places:
                score, u = score + float(log_probs[t, u, labels[u]]), u + 1
            else:
                score, t = score + float(log_probs[t, u, 0]), t + 1
        total.append(score)
    return -float(torch.tensor(total, dtype=torch.float64).logsumexp(0))


@pytest.mark.parametrize(
    ("num_frames", "num_labels"), [((4, 3), (3, 1)), ((1, 1), (2, 0)), ((2, 3), (5, 4))]
)
def test_full_loss_sums_over_all_alignments(num_frames, num_labels):
    logits, symbols, frames, label_lens = make(num_frames, num_labels)

    losses = rnnt_loss(logits, symbols, frames, label_lens, reduction="none")

    log_probs = logits.log_softmax(-1)
    for b, (t, s) in enumerate(zip(num_frames, num_labels, strict=True)):
        expected = brute_force(log_probs[b, :t], symbols[b, :s].tolist())
        assert float(losses[b]) == pytest.approx(expected, rel=1e-12)


def test_another_blank():
    logits, symbols, *sizes = make((4, 3), (2, 1))
    turned = logits.roll(-1, dims=-1)  # id 0 becomes the last
    expected = rnnt_loss(logits, symbols, *sizes, reduction="none")
    assert torch.equal(rnnt_loss(turned, symbols - 1, *sizes, blank=4, reduction="none"), expected)


def test_pruned_loss_sums_over_the_alignments_within_the_windows():
    logits, symbols, frames, label_lens = make((5,), (4,))
    ranges = torch.tensor([[[0, 1, 2], [1, 2, 3], [1, 2, 3], [2, 3, 4], [2, 3, 4]]])
    kept = logits.gather(2, ranges.unsqueeze(-1).expand(-1, -1, -1, 5))

    losses = rnnt_loss_pruned(kept, symbols, ranges, frames, label_lens, reduction="none")

    expected = brute_force(logits[0].log_softmax(-1), symbols[0].tolist(), ranges[0].tolist())
    assert float(losses[0]) == pytest.approx(expected, rel=1e-12)


def test_windows_of_every_place_give_the_full_loss():
    am, lm, symbols, *sizes = make_pair((6, 4), (3, 2))
    _, shares = rnnt_loss_smoothed(am, lm, symbols, *sizes)
    ranges = prune_ranges(*shares, *sizes, s_range=7)
    assert ranges.shape == (2, 6, 4)
    am_kept, lm_kept = prune(am, lm, ranges)
    pruned = rnnt_loss_pruned(am_kept + lm_kept, symbols, ranges, *sizes, reduction="none")
    full = rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, *sizes, reduction="none")
    torch.testing.assert_close(pruned, full)


def test_without_smoothing_the_smoothed_loss_is_that_of_the_sum():
    am, lm, symbols, *sizes = make_pair((6, 4), (3, 2))
    loss, _ = rnnt_loss_smoothed(am, lm, symbols, *sizes, lm_scale=0.0, reduction="none")
    full = rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, *sizes, reduction="none")
    torch.testing.assert_close(loss, full)


def test_smoothed_loss_mixes_log_probabilities():
    """With every label of full length, against the definition with nothing taken apart."""
    am, lm, symbols, *sizes = make_pair((4, 4), (2, 2))
    loss, _ = rnnt_loss_smoothed(
        am, lm, symbols, *sizes, am_scale=0.2, lm_scale=0.3, reduction="none"
    )
    unigram = lm.softmax(-1).mean((0, 1)).log()
    joint = (am.unsqueeze(2) + lm.unsqueeze(1)).log_softmax(-1)
    mixed = 0.5 * joint + 0.3 * lm.log_softmax(-1).unsqueeze(1)
    mixed = mixed + 0.2 * (am + unigram).log_softmax(-1).unsqueeze(2)
    for b in range(2):
        expected = brute_force(mixed[b], symbols[b].tolist())
        assert float(loss[b]) == pytest.approx(expected, rel=1e-9)


def test_shares_are_the_gradient_of_the_arcs():
    am, lm, symbols, frames, label_lens = make_pair((6, 4), (3, 2))
    _, (px, py) = rnnt_loss_smoothed(am, lm, symbols, frames, label_lens, lm_scale=0.0)
    assert px.shape == (2, 3, 7)
    assert py.shape == (2, 4, 6)
    assert not px.requires_grad
    torch.testing.assert_close(px.sum((1, 2)), label_lens.double())
    torch.testing.assert_close(py.sum((1, 2)), frames.double())
    torch.testing.assert_close(py.sum(1)[0], torch.ones(6, dtype=torch.float64))
    assert py[1, :, 4:].eq(0).all()
    assert px[1, 2].eq(0).all()


def test_gradients_by_finite_differences():
    logits, symbols, *sizes = make((4, 2), (2, 1), vocab_size=4)
    am, lm, *_ = make_pair((4, 2), (2, 1), vocab_size=4)
    _, shares = rnnt_loss_smoothed(am, lm, symbols, *sizes)
    ranges = prune_ranges(*shares, *sizes, s_range=2)
    inputs = [x.requires_grad_() for x in (logits, am, lm)]

    def all_losses(logits, am, lm):
        smoothed, _ = rnnt_loss_smoothed(
            am, lm, symbols, *sizes, am_scale=0.1, lm_scale=0.25, reduction="none"
        )
        am_kept, lm_kept = prune(am, lm, ranges)
        joined = (am_kept + lm_kept).tanh()
        pruned = rnnt_loss_pruned(joined, symbols, ranges, *sizes, reduction="none")
        return smoothed, pruned, rnnt_loss(logits, symbols, *sizes, reduction="none")

    assert torch.autograd.gradcheck(all_losses, inputs)


@pytest.mark.parametrize("case", ["a", "b"])
def test_numbers_of_k2(golden_dir, case):
    stored = torch.load(golden_dir / "k2_rnnt.pt", weights_only=True)[case]
    sizes = (stored["frames"], stored["symbol_lengths"])
    am, lm = (stored[name].clone().requires_grad_() for name in ("am", "lm"))
    scales = {name: stored[name] for name in ("am_scale", "lm_scale")}

    loss, shares = rnnt_loss_smoothed(am, lm, stored["symbols"], *sizes, reduction="none", **scales)
    loss.sum().backward()
    torch.testing.assert_close(loss, stored["simple_loss"], rtol=1e-6, atol=0.0)
    for name, found in (
        ("simple_grad_am", am.grad),
        ("simple_grad_lm", lm.grad),
        ("px_grad", shares[0]),
        ("py_grad", shares[1]),
    ):
        torch.testing.assert_close(found, stored[name], rtol=0.0, atol=2e-5)

    ranges = prune_ranges(*shares, *sizes, s_range=stored["s_range"])
    assert torch.equal(ranges, stored["ranges"])
    logits = stored["pruned_logits"].clone().requires_grad_()
    loss = rnnt_loss_pruned(logits, stored["symbols"], ranges, *sizes, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss, stored["pruned_loss"], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits.grad, stored["pruned_grad"], rtol=0.0, atol=2e-5)

    logits = (stored["am"].unsqueeze(2) + stored["lm"].unsqueeze(1)).tanh().requires_grad_()
    loss = rnnt_loss(logits, stored["symbols"], *sizes, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss, stored["full_loss"], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits.grad, stored["full_grad"], rtol=0.0, atol=2e-5)


def losses_of(am, lm, symbols, frames, label_lens):
    """All three losses (B,) with their gradients, and the windows."""
    am, lm = am.clone().requires_grad_(), lm.clone().requires_grad_()
    sizes = (frames, label_lens)
    simple, shares = rnnt_loss_smoothed(
        am, lm, symbols, *sizes, am_scale=0.0, lm_scale=0.25, reduction="none"
    )
    ranges = prune_ranges(*shares, *sizes, s_range=2)
    kept = torch.stack(torch.broadcast_tensors(*prune(am, lm, ranges))).sum(0)
    pruned = rnnt_loss_pruned(kept, symbols, ranges, *sizes, reduction="none")
    full = rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, *sizes, reduction="none")
    found = torch.stack([simple, pruned, full])
    return found.detach(), *torch.autograd.grad(found.sum(), (am, lm)), ranges


def test_padding_plays_no_part():
    """Whatever it holds, and however much of it there is."""
    am, lm, symbols, frames, label_lens = make_pair((6, 4), (3, 1), dtype=torch.float32)
    alone = losses_of(am[1:, :4], lm[1:, :2], symbols[1:, :1], frames[1:], label_lens[1:])
    am[1, 4:], lm[1, 2:], symbols[1, 1:] = float("nan"), INF, -7
    together = losses_of(am, lm, symbols, frames, label_lens)

    torch.testing.assert_close(together[0][:, 1:], alone[0])
    torch.testing.assert_close(together[1][1:, :4], alone[1])
    torch.testing.assert_close(together[2][1:, :2], alone[2])
    assert together[1][1, 4:].eq(0).all()
    assert together[2][1, 2:].eq(0).all()
    assert torch.equal(together[3][1:, :4], alone[3])


def test_acoustic_scale_ignores_padding_too():
    am, lm, symbols, frames, label_lens = make_pair((6,), (3,))
    options = {"am_scale": 0.3, "reduction": "none"}
    expected, _ = rnnt_loss_smoothed(am, lm, symbols, frames, label_lens, **options)
    longer = torch.nn.functional.pad(lm, (0, 0, 0, 2), value=5.0)
    more = torch.nn.functional.pad(symbols, (0, 2), value=1)
    found, _ = rnnt_loss_smoothed(am, longer, more, frames, label_lens, **options)
    torch.testing.assert_close(found, expected)


def test_empty_transcripts_are_all_blanks():
    am, lm, symbols, *sizes = make_pair((3, 2), (0, 0))
    assert symbols.shape == (2, 0)
    found, *_, ranges = losses_of(am, lm, symbols, *sizes)
    blanks = -(am + lm).log_softmax(-1)[..., 0]
    expected = torch.stack([blanks[0].sum(), blanks[1, :2].sum()])
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[2], expected)
    assert ranges.eq(0).all()


def test_no_frames():
    """Nothing said in nothing is certain; anything else is impossible."""
    am, lm, symbols, *_ = make_pair((3, 3), (2, 2))
    sizes = (lengths(0, 0), lengths(2, 0))
    losses, grad_am, grad_lm, _ = losses_of(am, lm, symbols, *sizes)
    assert losses.tolist() == [[INF, 0.0]] * 3
    assert grad_am.eq(0).all()
    assert grad_lm.eq(0).all()
    losses, *_ = losses_of(am[:, :0], lm, symbols, *sizes)
    assert losses.tolist() == [[INF, 0.0]] * 3


def test_more_labels_than_windows_reach_are_impossible():
    """Two frames and windows of two places: one label a frame."""
    am, lm, symbols, *sizes = make_pair((2, 3), (3, 3))
    (simple, pruned, full), grad_am, grad_lm, _ = losses_of(am, lm, symbols, *sizes)
    assert simple.isfinite().all()
    assert full.isfinite().all()
    assert pruned.isfinite().tolist() == [False, True]
    assert grad_am.isfinite().all()
    assert grad_lm.isfinite().all()


def test_impossible_logits_have_no_gradient_and_count_nothing():
    logits, symbols, *sizes = make((4, 3), (2, 1))
    logits[0, :, :, symbols[0, 1]] = -INF
    logits.requires_grad_()
    losses = rnnt_loss(logits, symbols, *sizes, reduction="none")
    assert losses[0] == INF
    mean = rnnt_loss(logits, symbols, *sizes)
    total = rnnt_loss(logits, symbols, *sizes, reduction="sum")
    assert mean == total == losses[1]
    mean.backward()
    assert logits.grad[0].eq(0).all()
    assert logits.grad[1, :3, :2].ne(0).all()
    nothing = rnnt_loss(logits[:1], symbols[:1], sizes[0][:1], sizes[1][:1])
    assert nothing == 0


def test_what_is_not_a_number_is_not_hidden():
    logits, symbols, *sizes = make((4, 3), (2, 1))
    logits[0, 0, 0, 0] = float("nan")
    assert rnnt_loss(logits, symbols, *sizes).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    am, lm, symbols, *sizes = make_pair((30, 25), (8, 5), dtype=torch.float32)
    am, lm = am.to(dtype), lm.to(dtype)
    exact = rnnt_loss_smoothed(am.float(), lm.float(), symbols, *sizes, reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rnnt_loss_smoothed(am, lm, symbols, *sizes, reduction="none")
    torch.testing.assert_close(found, exact)
    ranges = prune_ranges(*found[1], *sizes, s_range=3)
    logits = sum(prune(am, lm, ranges)).detach().requires_grad_()
    wide = logits.detach().float().requires_grad_()
    losses = []
    for x in (logits, wide):
        losses.append(rnnt_loss_pruned(x, symbols, ranges, *sizes))
        losses[-1].backward()
    assert losses[0].dtype == torch.float32
    assert losses[0] == losses[1]
    assert logits.grad.dtype == dtype
    assert torch.equal(logits.grad, wide.grad.to(dtype))


def test_same_bits_every_time():
    inputs = make_pair((50, 40), (12, 20), dtype=torch.float32)
    for one, two in zip(losses_of(*inputs), losses_of(*inputs), strict=True):
        assert torch.equal(one, two)


def test_long_recordings_keep_their_digits():
    """Two thousand frames of certainty but for one share of a half: log 2 each."""
    logits = torch.zeros(1, 2000, 2, 2)
    losses = rnnt_loss(logits, torch.tensor([[1]]), lengths(2000), lengths(1), reduction="none")
    assert float(losses) == pytest.approx(2001 * math.log(2) - math.log(2000), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"symbols": torch.tensor([[1, 0], [1, 1]])}, DataError, "label 1 of utterance 0 is 0"),
        ({"symbols": torch.tensor([[1, 9], [1, 1]])}, DataError, "labels are 0 to 4"),
        ({"symbols": torch.ones(2, 3, dtype=torch.long)}, DataError, r"expected \(2, 2\)"),
        ({"frames": lengths(9, 3)}, DataError, "frames .* between 0 and 4"),
        ({"frames": lengths(3)}, DataError, "for 2 utterances"),
        ({"symbol_lengths": lengths(-1, 2)}, DataError, "between 0 and 2"),
        ({"blank": 5}, ConfigError, "blank is 5"),
        ({"reduction": "max"}, ConfigError, "none, sum or mean"),
        ({"backend": "warp"}, ConfigError, "torch or k2"),
        ({"logits": torch.zeros(2, 4, 5)}, DataError, r"expected \(B, T, S \+ 1, C\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, match):
    logits, symbols, frames, label_lens = make((4, 3), (2, 2))
    options = {
        "logits": logits,
        "symbols": symbols,
        "frames": frames,
        "symbol_lengths": label_lens,
        **change,
    }
    with pytest.raises(error, match=match):
        rnnt_loss(**options)


def test_pairs_that_do_not_fit_are_refused():
    am, lm, symbols, *sizes = make_pair((4, 3), (2, 2))
    with pytest.raises(DataError, match="vocabularies of am and lm differ: 5 and 6"):
        rnnt_loss_smoothed(am[..., :5], lm, symbols, *sizes)
    with pytest.raises(DataError, match="batch sizes"):
        rnnt_loss_smoothed(am[:1], lm, symbols, *sizes)
    with pytest.raises(ConfigError, match="together at most 1"):
        rnnt_loss_smoothed(am, lm, symbols, *sizes, am_scale=0.9)
