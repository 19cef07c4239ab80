"""The compiled passes beside torch's operations; see test_scaled_adam.py for what both promise."""

import pytest
import torch
from torch import Tensor, nn

from spear.optim import ScaledAdam, group

pytest.importorskip("numba")
# More than a block, parts of one, many small ones, and a number by itself.
SHAPES = [(300, 700), (128, 513), (16384,), (7, 5), (7, 5), (1, 3, 2), (), (1,)]


def train(num_steps: int = 13) -> tuple[list[Tensor], ScaledAdam]:
    """Returns parameters after some steps, and their optimiser."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(s, generator=generator) * 0.2) for s in SHAPES]
    optimizer = ScaledAdam(parameters, lr=0.05)
    for step in range(num_steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameter.grad *= 30.0 if step == 11 else 1.0
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer


def test_both_ways_differ_by_rounding_only(monkeypatch):
    ours, optimizer = train(12)  # the last step is a clipped one
    monkeypatch.setattr(group, "is_installed", lambda: False)
    theirs, other = train(12)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    first, second = optimizer.state_dict()["parameters"], other.state_dict()["parameters"]
    for name, state in first.items():
        for key, value in state.items():
            torch.testing.assert_close(value, second[name][key], rtol=2e-4, atol=1e-5, msg=key)
    factors = [each.clip_factor_tensor.item() for each in (optimizer, other)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-5) and factors[0] < 0.5


def test_a_run_goes_on_without_numba(monkeypatch):
    expected, _ = train(13)
    half_way = train(6)[1].state_dict()
    monkeypatch.setattr(group, "is_installed", lambda: False)
    got, other = train(6)
    other.load_state_dict(half_way)
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        torch.randn(shape, generator=generator)
    for step in range(13):
        grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
        if step < 6:
            continue
        for parameter, grad in zip(other.param_groups[0]["params"], grads, strict=True):
            parameter.grad = grad * (30.0 if step == 11 else 1.0)
        other.step()
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = train()
        torch.set_num_threads(2)
        two, _ = train()
    finally:
        torch.set_num_threads(before)
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)


def test_sums_of_large_tensors_are_exact_to_float32():
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(torch.randn(2_000_003, generator=generator) + 5.0)
    optimizer = ScaledAdam([parameter], lr=1e-9, clipping_scale=None)
    parameter.grad = torch.randn(parameter.shape, generator=generator)
    size = parameter.detach().double().square().mean().sqrt()
    products = (parameter.detach().double() * parameter.grad.double()).sum()
    optimizer.step()
    state = optimizer.state_dict()["parameters"]["parameter.0"]
    assert state["param_rms"].item() == pytest.approx(size.item(), rel=1e-6)
    assert state["scale_grads"][0].item() == pytest.approx(products.item(), rel=1e-4)
    norm = optimizer.plain_grad_norm_tensor.item()
    assert norm == pytest.approx(parameter.grad.double().norm().item(), rel=1e-6)


def test_parameters_may_move_in_memory_between_steps():
    parameter = nn.Parameter(torch.ones(40_000))
    optimizer = ScaledAdam([parameter], lr=0.05)
    for _ in range(3):
        parameter.grad = torch.ones(40_000)
        optimizer.step()
    old = parameter.data
    before = old.clone()
    parameter.data = old.clone()
    parameter.grad = torch.ones(40_000)
    optimizer.step()
    assert torch.equal(old, before)
    assert (parameter < before).all()
