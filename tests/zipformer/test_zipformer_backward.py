"""Every backward pass that is written by hand, against autograd over plain operations."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spear.zipformer.frames import Frames
from spear.zipformer.kernels import depthwise, recompute
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.modules import activations, attention_scores
from spear.zipformer.modules.activations import (
    SWOOSH_L,
    SWOOSH_R,
    SwooshShape,
    swoosh,
    swoosh_backward,
)
from spear.zipformer.modules.attention_scores import Projections, attention_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["with numba", "without"])
def _loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the compiled loops and with tensor operations."""
    if request.param == "with numba":
        pytest.importorskip("numba")
    else:
        for module in (activations, depthwise):
            monkeypatch.setattr(module, "is_installed", lambda: False)


def exact_swoosh(x: Tensor, shape: SwooshShape) -> Tensor:
    wide = x.double()
    z = wide - shape.offset
    return torch.logaddexp(torch.zeros_like(z), z) - 0.08 * wide - shape.constant


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("shape", [SWOOSH_L, SWOOSH_R], ids=["L", "R"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_swoosh_and_its_slope(shape: SwooshShape, layout: str) -> None:
    x = torch.cat((torch.linspace(-120, 120, 3900), torch.randn(3900))).view(4, 6, 25, 13)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x[:, ::2]
    leaf = x.double().requires_grad_()
    expected = exact_swoosh(leaf, shape)
    torch.testing.assert_close(swoosh(x, shape).double(), expected, atol=1e-6, rtol=2e-7)
    grad = torch.randn_like(x)
    (slope,) = torch.autograd.grad(expected, leaf, grad.double())
    (by_autograd,) = torch.autograd.grad(swoosh(x.requires_grad_(), shape), x, grad)
    torch.testing.assert_close(by_autograd.double(), slope, atol=1e-6, rtol=1e-6)
    y = swoosh_backward(x.detach(), grad, shape)
    torch.testing.assert_close(y.double(), expected, atol=1e-6, rtol=2e-7)
    torch.testing.assert_close(grad.double(), slope, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("_loops")
def test_swoosh_hides_no_broken_number() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    y, grad = swoosh(x, SWOOSH_L), torch.ones(4)
    assert y.isfinite().tolist() == [False, False, False, True]
    swoosh_backward(x, grad, SWOOSH_L)
    assert grad[0].isnan() and grad[1:].isfinite().all()


def test_compiled_loops_give_the_same_bits_with_any_number_of_threads() -> None:
    pytest.importorskip("numba")
    from spear.zipformer.kernels import depthwise_loops, swoosh_loops

    x, grad = torch.randn(3, 41, 20, 48), torch.randn(3, 37, 18, 48)
    threads, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            slope = torch.ones_like(x)
            y = swoosh_loops.swoosh_backward(x, slope, 4.0, 0.035)
            results.append((y, slope, depthwise_loops.kernel_gradient(x, grad)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("kernel", [(1, 5), (7, 7), (3, 1)])
def test_depthwise_convolution_and_its_gradients(kernel: tuple[int, int]) -> None:
    x = torch.randn(2, 9, 11, 6, requires_grad=True)
    weight = torch.randn(6, 1, *kernel, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    padding = (kernel[0] // 2, kernel[1] // 2)
    plain = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=6)
    ours = depthwise.depthwise_conv(x, weight, bias)
    torch.testing.assert_close(ours, plain.permute(0, 2, 3, 1))
    grad, inputs = torch.randn_like(ours), (x, weight, bias)
    expected = torch.autograd.grad(plain, inputs, grad.permute(0, 3, 1, 2))
    for our, their in zip(torch.autograd.grad(ours, inputs, grad), expected, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-5)


HEADS = 3


def plain_weights(given: Projections, hidden: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The formula, entry by entry of the offsets, with the penalty as a term of the loss."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    scores = split(given.query) @ split(given.key).transpose(2, 3)
    num_targets, num_sources = scores.shape[2:]
    if given.pos_query is not None:
        by_offset = split(given.pos_query) @ given.encoded
        rows = [
            by_offset[:, :, i, num_targets - 1 - i : num_targets - 1 - i + num_sources]
            for i in range(num_targets)
        ]
        scores = scores + torch.stack(rows, dim=2)
    excess = penalty * (scores.abs() - 25.0).relu().sum()
    weights = scores.masked_fill(hidden, -1000.0).softmax(-1)
    return weights, excess


def make_projections(num_remembered: int, positions: bool, scale: float) -> Projections:
    num_targets, num_sources = 6, 6 + num_remembered
    shapes = [(3, num_targets, HEADS * 4), (3, num_sources, HEADS * 4)]
    if positions:
        shapes += [(3, num_targets, HEADS * 2), (HEADS, 2, num_targets + num_sources - 1)]
    tensors = [(scale * torch.randn(shape)).requires_grad_() for shape in shapes]
    return Projections(*tensors, *([None, None] if not positions else []))


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
@pytest.mark.parametrize("num_remembered", [0, 5])
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_attention_weights_and_their_gradients(
    at_a_time: int,
    num_remembered: int,
    positions: bool,
    penalty: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = make_projections(num_remembered, positions, scale=4.0)
    num_sources = given.key.shape[1]
    monkeypatch.setattr(attention_scores, "_PART_ELEMENTS", at_a_time * HEADS * 6 * num_sources)
    lens = torch.tensor([num_sources, num_sources - 3, num_sources - 1])
    hidden = (torch.arange(num_sources) >= lens[:, None])[:, None, None]
    ours = attention_weights(given, hidden, HEADS, penalty)
    plain, excess = plain_weights(given, hidden, penalty)
    theirs = (plain, plain, plain[:, 0])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)
    inputs = [x for x in given if x is not None]
    uses = [torch.randn_like(x) for x in theirs]
    if num_remembered:
        uses[1].zero_()  # as when only one module is used
    loss = sum((x * use).sum() for x, use in zip(theirs, uses, strict=True)) + excess
    expected = torch.autograd.grad(loss, inputs)
    used = ours if not num_remembered else (ours.first, ours.one_head)
    grads = uses if not num_remembered else (uses[0], uses[2])
    for our, their in zip(torch.autograd.grad(used, inputs, grads), expected, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)
    assert penalty == 0.0 or float(excess.detach()) > 0.0  # or nothing was tested


def test_half_precision_attention_stays_close_to_float32() -> None:
    given = make_projections(0, positions=True, scale=1.0)
    hidden = torch.zeros(3, 1, 1, 6, dtype=torch.bool)
    half = Projections(*(x.detach().bfloat16().requires_grad_() for x in given))
    ours = attention_weights(half, hidden, HEADS).first
    plain = attention_weights(given, hidden, HEADS).first
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), plain, atol=0.02, rtol=0.05)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, given, grad)
    for our, their in zip(torch.autograd.grad(ours, half, grad.bfloat16()), expected, strict=True):
        assert float((our.float() - their).norm() / their.norm()) < 0.05


def test_recomputing_gives_the_same_gradients_and_keeps_only_the_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recompute, "_MIN_ELEMENTS", 0)
    calls: list[str] = []

    def function(x: Tensor, weight: Tensor, log: Callable[[str], None]) -> Tensor:
        log("activation")
        hidden = x.sigmoid() * x.tanh()
        log("product")
        return F.linear(hidden, weight)

    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        plain = function(x, weight, lambda name: None)
    assert len(kept) > 2
    y = recomputed(functools.partial(function, log=calls.append), x, weight)
    assert torch.equal(y, plain)
    expected = torch.autograd.grad(plain.sum(), (x, weight))
    for our, their in zip(torch.autograd.grad(y.sum(), (x, weight)), expected, strict=True):
        assert torch.equal(our, their)
    assert calls == ["activation", "product"] * 2
    with torch.no_grad():
        assert torch.equal(recomputed(lambda x: x + 1.0, x), x + 1.0)
    monkeypatch.undo()
    calls.clear()
    recomputed(functools.partial(function, log=calls.append), x, weight).sum().backward()
    assert calls == ["activation", "product"]  # small tensors are kept


def test_padding_is_looked_for_only_where_looking_is_free() -> None:
    x = torch.randn(2, 4, 3)
    full = Frames(torch.tensor([4, 4]), 4)
    assert not full.may_have_padding and full.zero_padding(x) is x
    some = Frames(torch.tensor([4, 2]), 4)
    assert some.may_have_padding and (some.zero_padding(x)[1, 2:] == 0).all()
