"""CR-CTC: the formula against a loop, its gradients, and what it refuses."""

import math

import pytest
import torch

from spear.asr.consistency import ConsistencyConfig, consistency_loss
from spear.errors import ConfigError
from spear.finetune.spec_augment import SpecAugmentConfig


def random_log_probs(seed=0, shape=(4, 6, 5)):
    scores = torch.randn(shape, generator=torch.manual_seed(seed), dtype=torch.float64)
    return scores.log_softmax(dim=-1)


def divergence(q, p):
    """KL(q || p) of two lists of log-probabilities."""
    return sum(math.exp(a) * (a - b) for a, b in zip(q.tolist(), p.tolist(), strict=True))


def test_it_is_the_papers_formula_summed_over_valid_frames():
    log_probs, lens = random_log_probs(), torch.tensor([6, 3, 6, 3])
    expected = sum(
        divergence(log_probs[(row + 2) % 4, frame], log_probs[row, frame])
        for row, length in enumerate(lens.tolist())
        for frame in range(length)
    )
    everybody = torch.ones(4, dtype=torch.bool)
    assert consistency_loss(log_probs, lens, everybody).item() == pytest.approx(expected)


def test_who_does_not_take_part_counts_nothing_even_if_broken():
    log_probs, lens = random_log_probs(), torch.tensor([6, 3, 6, 3])
    takes_part = torch.tensor([True, False, True, False])
    alone = consistency_loss(log_probs[[0, 2]], lens[[0, 2]], takes_part[[0, 2]])
    log_probs[1], log_probs[3] = math.nan, math.inf
    torch.testing.assert_close(consistency_loss(log_probs, lens, takes_part), alone)


def test_padding_does_not_matter():
    log_probs, lens = random_log_probs(), torch.tensor([6, 3, 6, 3])
    longer = torch.nn.functional.pad(log_probs, (0, 0, 0, 4), value=-1.0)
    everybody = torch.ones(4, dtype=torch.bool)
    expected = consistency_loss(log_probs, lens, everybody)
    torch.testing.assert_close(consistency_loss(longer, lens, everybody), expected)


def test_the_other_copy_is_taken_as_given():
    scores = torch.randn(2, 1, 5, generator=torch.manual_seed(1), requires_grad=True)
    log_probs = scores.log_softmax(dim=-1)
    consistency_loss(log_probs, torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool)).backward()
    # With the target given, the gradient by the scores is p - q.
    p, q = log_probs.detach().exp()
    torch.testing.assert_close(scores.grad, torch.stack([p - q, q - p]))


def test_equal_copies_have_no_loss():
    log_probs = random_log_probs()[[0, 1, 0, 1]]
    loss = consistency_loss(log_probs, torch.full((4,), 6), torch.ones(4, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_masks_grow_only_where_it_is_on():
    masks = SpecAugmentConfig(num_time_masks=10, max_time_fraction=0.15)
    assert ConsistencyConfig().scale_masks(masks) is masks
    more = ConsistencyConfig(weight=0.2).scale_masks(masks)
    assert (more.num_time_masks, more.max_time_fraction) == (25, pytest.approx(0.375))
    assert ConsistencyConfig(0.2, 10.0).scale_masks(masks).max_time_fraction == 1.0
    assert (ConsistencyConfig().num_copies, ConsistencyConfig(0.1).num_copies) == (1, 2)


@pytest.mark.parametrize("changes", [{"weight": -0.1}, {"time_mask_ratio": 0.0}])
def test_impossible_values_are_refused(changes):
    with pytest.raises(ConfigError, match=f"consistency.{next(iter(changes))}"):
        ConsistencyConfig(**changes)
