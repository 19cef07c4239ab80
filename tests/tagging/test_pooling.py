"""Pooling against its formulae, and where formulae in floats would break."""

import pytest
import torch

from spear.tagging.pooling import pool


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return 3 * torch.randn(3, 7, 5), torch.tensor([7, 4, 1])


def test_linear_softmax_is_its_formula(batch):
    logits, lens = batch
    found = pool(logits, lens, "linear-softmax")
    for row, num in enumerate(lens.tolist()):
        p = logits[row, :num].double().sigmoid()
        expected = (p**2).sum(0) / p.sum(0)
        torch.testing.assert_close(found[row].double().sigmoid(), expected, rtol=1e-5, atol=1e-7)


def test_mean_is_the_mean_of_logits(batch):
    logits, lens = batch
    found = pool(logits, lens, "mean")
    for row, num in enumerate(lens.tolist()):
        torch.testing.assert_close(found[row], logits[row, :num].mean(0))


@pytest.mark.parametrize("pooling", ["mean", "linear-softmax"])
def test_padding_does_not_count_whatever_stands_in_it(batch, pooling):
    logits, lens = batch
    expected = pool(logits, lens, pooling)
    for value in (1e4, float("nan"), float("inf")):
        spoilt = logits.clone()
        spoilt[1, 4:] = value
        spoilt[2, 1:] = value
        torch.testing.assert_close(pool(spoilt, lens, pooling), expected)


def test_linear_softmax_stays_finite_with_its_gradients_for_the_surest_frames():
    logits = torch.tensor([200.0, -200.0, 90.0, -90.0]).view(1, 4, 1).repeat(1, 1, 2)
    logits[..., 1] = -200.0  # nowhere: the plain formula is 0 / 0 in float32
    logits.requires_grad_(True)
    pooled = pool(logits, torch.tensor([4]), "linear-softmax")
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(logits.grad).all()
    assert pooled[0, 0] > 50
    assert pooled[0, 1].item() == pytest.approx(-200.0, abs=1.0)


def test_pooling_is_float32_under_autocast(batch):
    logits, lens = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool(logits.bfloat16(), lens, "linear-softmax")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool(logits.bfloat16().float(), lens, "linear-softmax"))


def test_a_short_event_counts_more_than_in_the_mean():
    logits = torch.full((1, 100, 1), -8.0)
    logits[0, 50] = 8.0
    lens = torch.tensor([100])
    assert pool(logits, lens, "linear-softmax").sigmoid() > 0.95
    assert pool(logits, lens, "mean").sigmoid() < 0.01
