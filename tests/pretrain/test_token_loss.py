"""The chunked loss against the formula written out: values, gradients, types, empty inputs."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spear.errors import ConfigError
from spear.pretrain import chunked_loss
from spear.pretrain.losses import LossConfig, TokenHead, frame_weights, required_teachers

BENCHMARKS = Path(__file__).parents[2] / "local" / "benchmarks"


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
    monkeypatch.setattr(chunked_loss, "CHUNK_FRAMES", chunk_frames)
    head, hidden, tokens, is_masked = make_inputs()
    total, cross_entropy, predictions = head.loss(hidden, tokens, frame_weights(is_masked, alpha))
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
    of_tokens = F.cross_entropy(logits.flatten(0, 1), tokens.long().flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy.flatten(), of_tokens, rtol=1e-5, atol=1e-5)
    assert not cross_entropy.requires_grad


def test_more_classes_make_smaller_chunks(monkeypatch):
    monkeypatch.setattr(chunked_loss, "MAX_CHUNK_LOGITS", 100)
    assert [part.start for part in chunked_loss._chunks(6, 48)] == [0, 2, 4]
    assert len(chunked_loss._chunks(6, 1000)) == 6


def test_gradients_are_right_numerically():
    head, hidden, tokens, is_masked = make_inputs(5, 4, 2, 3)
    weights = frame_weights(is_masked, 0.3)
    head.loss(hidden, tokens, weights).total.backward()
    names = {parameter: name for name, parameter in head.named_parameters()}
    for tensor in (hidden, head.weight, head.bias):
        for place, slope in enumerate(tensor.grad.flatten().tolist()):
            values = []
            for step in (0.02, -0.02):
                moved = copy.deepcopy((hidden, head))
                one = moved[0] if tensor is hidden else moved[1].get_parameter(names[tensor])
                with torch.no_grad():
                    one.view(-1)[place] += step
                    values.append(moved[1].loss(moved[0], tokens, weights).total.item())
            # The sum is float32, so the numerical difference is coarse.
            assert slope == pytest.approx((values[0] - values[1]) / 0.04, abs=2e-3)


def test_what_is_certain_costs_nothing_and_what_is_excluded_all_that_it_should():
    """The probability of the second token is 0 in float32, its cross-entropy is not infinite."""
    head = TokenHead(1, 1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[300.0], [-300.0]]))
        head.bias.zero_()
    hidden, tokens = torch.ones(2, 1), torch.tensor([[0], [1]])
    loss = head.loss(hidden, tokens, torch.ones(2))
    assert loss.cross_entropy.tolist() == [[0.0], [600.0]]


def test_what_is_not_finite_shows_in_the_total():
    head, hidden, tokens, is_masked = make_inputs()
    with torch.no_grad():
        hidden[3, 0] = float("nan")
    assert head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total.isnan()


def test_a_second_backward_pass_is_refused():
    head, hidden, tokens, is_masked = make_inputs()
    total = head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        total.backward()


def test_it_equals_torchs_cross_entropy_for_16_times_256_classes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from token_loss import Inputs, compare

    assert max(compare(Inputs.make("Base, speech", 600, "cpu"))) < 1e-5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_it_takes_a_quarter_of_the_plain_versions_memory(monkeypatch):
    """16 x 256 classes; chunks are to all frames as in five minutes of audio."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(chunked_loss, "CHUNK_FRAMES", 256)
    from token_loss import Inputs, Step
    from zipformer_speed import memory_mib

    inputs, mib = Inputs.make("Base, speech", 4000, "cpu"), {}
    for side in ("plain", "spear"):
        inputs.clear()
        before = memory_mib("cpu", reset=True)
        Step(side, inputs, use_bf16=False)()
        mib[side] = memory_mib("cpu") - before
    assert mib["plain"] > 2 * 4000 * 4096 * 4 / 2**20  # it was measured indeed
    assert mib["spear"] <= mib["plain"] / 4


def test_without_gradients_the_value_is_the_same():
    head, hidden, tokens, is_masked = make_inputs()
    total = head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total
    with torch.no_grad():
        again = head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total
    assert torch.equal(total.detach(), again) and not again.requires_grad


def test_bfloat16_computes_like_a_linear_layer_under_autocast():
    head, hidden, tokens, is_masked = make_inputs(200, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total
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
    total = head.loss(hidden[:0], tokens[:0], frame_weights(is_masked[:0], 0.5)).total
    total.backward()
    assert total.item() == 0.0
    assert not head.weight.grad.any() and not head.bias.grad.any() and not hidden.grad.any()


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
    total = head.loss(hidden, tokens, frame_weights(is_masked, 0.5)).total
    logits = head(hidden).view(-1, 16)
    expected = 0.5 * F.cross_entropy(logits, tokens.flatten().long(), reduction="sum")
    torch.testing.assert_close(total, expected)
