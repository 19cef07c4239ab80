"""CTC against brute force over every alignment, and greedy decoding against a plain loop."""

import itertools
import math

import pytest
import torch

from spear.asr.ctc import CtcHead, ctc_loss, greedy_decode, num_frames_needed


def collapse(frames):
    """Merges repeats, then removes blanks: the definition, one frame at a time."""
    labels, previous = [], 0
    for token in frames:
        if token not in (previous, 0):
            labels.append(token)
        previous = token
    return labels


def naive_loss(log_probs, labels):
    """-log of the summed probability of every frame sequence that leaves `labels`."""
    num_frames, vocab_size = log_probs.shape
    total = 0.0
    for path in itertools.product(range(vocab_size), repeat=num_frames):
        if collapse(path) == list(labels):
            total += math.exp(sum(log_probs[t, token].item() for t, token in enumerate(path)))
    return math.inf if total == 0.0 else -math.log(total)


def random_log_probs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def pad(sequences):
    width = max(1, *map(len, sequences))
    tokens = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])
    return tokens, torch.tensor([len(s) for s in sequences])


@pytest.mark.parametrize("labels", [[], [1], [2, 1], [1, 1], [1, 2, 1], [2, 2, 1]])
def test_loss_is_the_sum_over_all_alignments(labels):
    log_probs = random_log_probs(1, 5, 3, seed=len(labels))
    tokens, token_lens = pad([labels])
    loss = ctc_loss(log_probs, torch.tensor([5]), tokens, token_lens)
    assert loss.total.item() == pytest.approx(naive_loss(log_probs[0], labels), rel=1e-5)
    assert loss.num_frames.item() == 5


def test_a_batch_is_the_sum_of_its_utterances_and_ignores_padding():
    log_probs = random_log_probs(3, 5, 3)
    lens = torch.tensor([5, 3, 4])
    labels = [[1, 2], [2], [1, 1]]
    tokens, token_lens = pad(labels)
    expected = sum(naive_loss(log_probs[i, : lens[i]], labels[i]) for i in range(3))
    loss = ctc_loss(log_probs, lens, tokens, token_lens)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.num_frames.item() == 12
    tokens[1, 1] = 2  # padding of the second utterance
    assert torch.equal(ctc_loss(log_probs, lens, tokens, token_lens).total, loss.total)


@pytest.mark.parametrize(("labels", "num_frames"), [([1, 1], 2), ([1, 2, 1], 2), ([2, 2, 2], 4)])
def test_impossible_utterances_are_left_out_and_marked(labels, num_frames):
    log_probs = random_log_probs(2, 6, 3).requires_grad_()
    assert naive_loss(log_probs[0, :num_frames], labels) == math.inf
    tokens, token_lens = pad([labels, [1, 2]])
    loss = ctc_loss(log_probs, torch.tensor([num_frames, 6]), tokens, token_lens)
    assert loss.feasible.tolist() == [False, True]
    assert loss.num_frames.item() == 6
    assert loss.total.item() == pytest.approx(naive_loss(log_probs[1], [1, 2]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.total, log_probs)
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    assert torch.isfinite(gradient).all()
    assert gradient[1].abs().sum() > 0


def test_a_batch_without_any_possible_utterance_is_zero_with_zero_gradient():
    log_probs = random_log_probs(2, 2, 3).requires_grad_()
    tokens, token_lens = pad([[1, 1], [1, 2, 1]])
    loss = ctc_loss(log_probs, torch.tensor([2, 0]), tokens, token_lens)
    assert loss.total.item() == 0.0
    assert loss.num_frames.item() == 0
    assert torch.autograd.grad(loss.total, log_probs)[0].abs().max().item() == 0.0


def test_frames_needed_counts_labels_and_equal_neighbours():
    tokens, token_lens = pad([[1, 1, 1], [1, 2, 1], [], [3, 3], [4]])
    assert num_frames_needed(tokens, token_lens).tolist() == [5, 3, 0, 3, 1]
    assert num_frames_needed(*pad([[1], []])).tolist() == [1, 0]


def test_greedy_decoding_collapses_like_the_definition():
    log_probs = random_log_probs(6, 40, 4, seed=3)
    lens = torch.tensor([40, 31, 1, 0, 17, 40])
    for i, hypothesis in enumerate(greedy_decode(log_probs, lens)):
        frames = log_probs[i, : lens[i]].argmax(-1).tolist()
        assert hypothesis.tokens == collapse(frames)
        assert [frames[t] for t in hypothesis.frames] == hypothesis.tokens
        assert all(t == 0 or frames[t - 1] != frames[t] for t in hypothesis.frames)


def test_greedy_decoding_of_a_known_path():
    path = [0, 2, 2, 0, 2, 1, 1, 3, 0]
    scores = torch.nn.functional.one_hot(torch.tensor([path]), 4).float()
    (hypothesis,) = greedy_decode(scores, torch.tensor([8]))
    assert hypothesis.tokens == [2, 2, 1, 3]
    assert hypothesis.frames == [1, 4, 5, 7]
    (shorter,) = greedy_decode(scores, torch.tensor([5]))
    assert shorter.tokens == [2, 2]


def test_greedy_decoding_without_frames():
    assert greedy_decode(torch.zeros(2, 0, 3), torch.zeros(2, dtype=torch.int64))[1].tokens == []


def test_head_gives_float32_log_probabilities_under_autocast():
    head = CtcHead(8, 5, dropout=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = head(torch.randn(2, 3, 8))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3))
