"""The chunked loss against the formula written out: values, gradients, types, empty inputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spear.errors import ConfigError
from spear.pretrain import losses
from spear.pretrain.losses import (
    LossConfig,
    TokenHead,
    frame_weights,
    required_teachers,
    token_metrics,
    usage_entropy,
)


def make_inputs(num_frames=37, dim=12, num_codebooks=3, codebook_size=16, seed=0):
    torch.manual_seed(seed)
    head = TokenHead(dim, num_codebooks, codebook_size)
    hidden = torch.randn(num_frames, dim, requires_grad=True)
    tokens = torch.randint(0, codebook_size, (num_frames, num_codebooks), dtype=torch.uint8)
    is_masked = torch.rand(num_frames) < 0.4
    return head, hidden, tokens, is_masked


def naive_loss(logits, tokens, is_masked, alpha):
    """sum over t and n of w_t CE, one frame and one codebook after the other."""
    total = torch.zeros(())
    for frame in range(logits.size(0)):
        weight = alpha if is_masked[frame] else 1 - alpha
        for book in range(logits.size(1)):
            log_probs = torch.log_softmax(logits[frame, book], dim=0)
            total = total - weight * log_probs[int(tokens[frame, book])]
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("chunk_frames", [1, 7, 37, 1000])
def test_loss_and_gradients_equal_the_formula(alpha, chunk_frames, monkeypatch):
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", chunk_frames * 48)
    head, hidden, tokens, is_masked = make_inputs()
    total, predictions = head.loss(hidden, tokens, frame_weights(is_masked, alpha))
    (0.37 * total).backward()
    grads = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    hidden.grad = head.weight.grad = head.bias.grad = None
    logits = head(hidden).unflatten(1, (3, 16))
    expected = naive_loss(logits, tokens, is_masked, alpha)
    (0.37 * expected).backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    for mine, naive in zip(grads, (hidden.grad, head.weight.grad, head.bias.grad), strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-4, atol=1e-6)
    assert torch.equal(predictions, logits.argmax(-1))


def test_gradients_are_right_numerically():
    head, hidden, tokens, is_masked = make_inputs(5, 4, 2, 3)
    head, hidden = head.double(), hidden.detach().double().requires_grad_()
    # The sum is float32, so the numerical difference is coarse.
    check = torch.autograd.gradcheck(
        lambda *inputs: losses._ChunkedCrossEntropy.apply(
            *inputs, tokens, frame_weights(is_masked, 0.5), 3, True
        )[0],
        (hidden, head.weight, head.bias),
        eps=1e-2,
        atol=5e-3,
        rtol=5e-3,
    )
    assert check


def test_without_gradients_the_value_is_the_same():
    head, hidden, tokens, is_masked = make_inputs()
    total, _ = head.loss(hidden, tokens, frame_weights(is_masked, 0.5))
    with torch.no_grad():
        again, _ = head.loss(hidden, tokens, frame_weights(is_masked, 0.5))
    assert torch.equal(total.detach(), again) and not again.requires_grad


def test_bfloat16_computes_like_a_linear_layer_under_autocast():
    head, hidden, tokens, is_masked = make_inputs(200, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = head.loss(hidden, tokens, frame_weights(is_masked, 0.5))
        logits = head(hidden)
        assert logits.dtype == torch.bfloat16
    expected = naive_loss(logits.float().unflatten(1, (3, 16)), tokens, is_masked, 0.5)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-3)
    total.backward()
    assert head.weight.grad.dtype == torch.float32
    exact = make_inputs(200, 64)
    exact[0].loss(exact[1], tokens, frame_weights(is_masked, 0.5))[0].backward()
    torch.testing.assert_close(head.weight.grad, exact[0].weight.grad, rtol=0.05, atol=0.3)


def test_no_frames_give_zero_and_still_reach_every_parameter():
    """DDP waits for the gradient of a head whose teacher no clip of the batch has."""
    head, hidden, tokens, is_masked = make_inputs()
    total, _ = head.loss(hidden[:0], tokens[:0], frame_weights(is_masked[:0], 0.5))
    total.backward()
    assert total.item() == 0.0
    assert not head.weight.grad.any() and not head.bias.grad.any() and not hidden.grad.any()
    metrics = token_metrics(tokens[:0].long(), tokens[:0], is_masked[:0], tokens[0], 16)
    assert all(metric.count.item() == 0 for metric in metrics.values())
    assert all(torch.isfinite(metric.total) for metric in metrics.values())


def test_metrics_count_what_they_say():
    tokens = torch.tensor([[0, 1], [0, 2], [3, 1], [0, 0]], dtype=torch.uint8)
    predictions = torch.tensor([[0, 1], [0, 0], [3, 1], [1, 1]])
    is_masked = torch.tensor([True, True, False, False])
    frequent = torch.tensor([0, 1], dtype=torch.uint8)
    metrics = token_metrics(predictions, tokens, is_masked, frequent, 4)
    values = {name: (m.total / m.count).item() for name, m in metrics.items()}
    assert values["masked_accuracy"] == 0.75
    assert values["unmasked_accuracy"] == 0.5
    assert values["baseline_accuracy"] == 0.75
    first, second = np.array([0.75, 0.25]), np.array([0.5, 0.25, 0.25])
    expected = np.mean([-(p * np.log(p)).sum() for p in (first, second)]) / np.log(4)
    assert values["target_usage"] == pytest.approx(expected)


def test_usage_is_one_for_uniform_and_zero_for_constant_tokens():
    uniform = torch.arange(256).repeat(3).unsqueeze(1).expand(-1, 5)
    assert usage_entropy(uniform, 256).item() == pytest.approx(1.0)
    assert usage_entropy(torch.full((9, 2), 7), 256).item() == 0.0


@pytest.mark.parametrize(
    ("mode", "speech", "audio"),
    [
        ("asymmetric", ("w",), ("w", "d")),
        ("joint", ("w", "d"), ("w", "d")),
        ("disjoint", ("w",), ("d",)),
    ],
)
def test_modes_say_who_learns_from_whom(mode, speech, audio):
    assert required_teachers(mode, {"w": "speech", "d": "audio"}) == {
        "speech": speech,
        "audio": audio,
    }


@pytest.mark.parametrize("wrong", [{"alpha": 1.2}, {"audio_weight": -0.1}])
def test_impossible_weights_are_refused(wrong):
    with pytest.raises(ConfigError, match="loss"):
        LossConfig(**wrong)


def test_the_loss_is_that_of_cross_entropy_for_equal_weights():
    head, hidden, tokens, is_masked = make_inputs()
    total, _ = head.loss(hidden, tokens, frame_weights(is_masked, 0.5))
    logits = head(hidden).view(-1, 16)
    expected = 0.5 * F.cross_entropy(logits, tokens.flatten().long(), reduction="sum")
    torch.testing.assert_close(total, expected)
