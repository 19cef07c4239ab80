"""Metrics of predicted tokens against sums written out."""

import math

import pytest
import torch

from spear.mvq.usage import count_codes, entropies
from spear.pretrain.chunked_loss import TokenLoss
from spear.pretrain.token_metrics import (
    UnigramBaseline,
    token_metrics,
    usage_metrics,
)

TOKENS = torch.tensor([[0, 1], [0, 2], [3, 1], [0, 0]], dtype=torch.uint8)
PREDICTIONS = torch.tensor([[0, 1], [0, 0], [3, 1], [1, 1]])
CROSS_ENTROPY = torch.tensor([[0.1, 0.5], [0.3, 0.1], [1.0, 2.0], [3.0, 4.0]])
IS_MASKED = torch.tensor([True, True, False, False])
LOSS = TokenLoss(torch.zeros(()), CROSS_ENTROPY, PREDICTIONS)


def make_baseline(counts=((6, 0, 0, 2), (1, 3, 0, 0))):
    baseline = UnigramBaseline(2, 4)
    baseline.set_counts(torch.tensor(counts))
    return baseline


def values(metrics):
    return {name: (metric.total / metric.count).tolist() for name, metric in metrics.items()}


def test_metrics_count_what_they_say():
    found = values(token_metrics(LOSS, TOKENS, IS_MASKED, make_baseline()))
    assert found["masked_accuracy"] == 0.75
    assert found["unmasked_accuracy"] == 0.5
    assert found["baseline_accuracy"] == 0.75  # 0 0 and 1 of 1 2
    assert found["codebook_baseline_accuracy"] == [1.0, 0.5]
    assert found["codebook_masked_accuracy"] == [1.0, 0.5]
    assert found["codebook_unmasked_accuracy"] == [0.5, 0.5]
    assert found["masked_loss(nats)"] == pytest.approx(0.25)
    assert found["codebook_masked_loss(nats)"] == pytest.approx([0.2, 0.3])
    assert found["codebook_unmasked_loss(nats)"] == pytest.approx([2.0, 3.0])


def test_information_is_what_the_student_knows_beyond_the_frequencies():
    found = values(token_metrics(LOSS, TOKENS, IS_MASKED, make_baseline()))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)  # of both codebooks
    expected = [(entropy - 0.2) / math.log(2), (entropy - 0.3) / math.log(2)]
    assert found["codebook_information(bits)"] == pytest.approx(expected)
    assert found["information(bits)"] == pytest.approx(sum(expected))
    assert found["unigram_entropy(nats)"] == pytest.approx(entropy)


def test_a_student_that_answers_with_the_frequencies_knows_nothing():
    """Over data with those frequencies its cross-entropy is their entropy."""
    baseline = make_baseline([[2, 1, 1, 0], [1, 1, 1, 1]])
    tokens = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 3]])
    shares = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4])
    cross_entropy = -torch.stack([shares[n, tokens[:, n]].log() for n in range(2)], dim=1)
    loss = TokenLoss(torch.zeros(()), cross_entropy, tokens)
    everywhere = torch.ones(4, dtype=torch.bool)
    found = values(token_metrics(loss, tokens, everywhere, baseline))
    assert found["information(bits)"] == pytest.approx(0.0, abs=1e-5)


def test_usage_is_the_entropy_of_the_tokens_of_a_batch():
    found = values(token_metrics(LOSS, TOKENS, IS_MASKED, make_baseline()))
    first = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    second = -0.5 * math.log(0.5) - 2 * 0.25 * math.log(0.25)
    expected = [first / math.log(4), second / math.log(4)]
    assert found["codebook_target_usage"] == pytest.approx(expected)
    assert found["target_usage"] == pytest.approx(sum(expected) / 2)


def test_usage_is_one_for_uniform_and_zero_for_constant_tokens():
    uniform = torch.arange(256).repeat(3).unsqueeze(1).expand(-1, 5)
    assert entropies(count_codes(uniform, 256)).tolist() == pytest.approx([math.log(256)] * 5)
    assert entropies(count_codes(torch.full((9, 2), 7), 256)).tolist() == [0.0, 0.0]


def test_shares_of_tokens_are_those_of_each_codebook():
    found = values(usage_metrics(LOSS, TOKENS, 4))
    assert found["target_tokens"] == [[0.75, 0.0, 0.0, 0.25], [0.25, 0.5, 0.25, 0.0]]
    assert found["predicted_tokens"] == [[0.5, 0.25, 0.0, 0.25], [0.25, 0.75, 0.0, 0.0]]


def test_nothing_is_counted_where_there_is_nothing():
    nothing = TokenLoss(torch.zeros(()), CROSS_ENTROPY[:0], PREDICTIONS[:0])
    metrics = token_metrics(nothing, TOKENS[:0], IS_MASKED[:0], make_baseline())
    metrics |= usage_metrics(nothing, TOKENS[:0], 4)
    for metric in metrics.values():
        assert not metric.count.any() and not metric.total.any()


def test_without_counts_all_tokens_are_alike():
    baseline = make_baseline([[0] * 4] * 2)
    assert baseline.entropy.tolist() == pytest.approx([math.log(4)] * 2)
    assert baseline.frequent.tolist() == [0, 0]
    assert baseline.state_dict() == {}  # of the data, not of the model


def test_counts_may_be_of_codes_above_255():
    baseline = UnigramBaseline(1, 300)
    baseline.set_counts(torch.nn.functional.one_hot(torch.tensor([299]), 300))
    assert baseline.frequent.tolist() == [299] and baseline.entropy.tolist() == [0.0]
