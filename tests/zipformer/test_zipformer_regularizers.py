"""Gradient-shaping parts: each against the definition, differentiated by autograd."""

import math

import pytest
import torch
from torch import Tensor

from spear.zipformer.kernels.gradients import ScaleGrad, _LimitValue, limit_value
from spear.zipformer.modules import regularizers
from spear.zipformer.modules.regularizers import (
    Balancer,
    BalancerLimits,
    Covariance,
    Whiten,
    balanced_gradient,
    balancer_line,
    normal_mean,
)
from spear.zipformer.schedule import ScheduledFloat


def naive_balanced_grad(
    x: Tensor, grad: Tensor, limits: BalancerLimits, channel_dim: int
) -> Tensor:
    """The definition: autograd of the violation, scaled to a fixed RMS per channel."""
    x = x.double().detach().requires_grad_()
    dims = [dim for dim in range(x.ndim) if dim != channel_dim % x.ndim]
    mean = x.mean(dim=dims, keepdim=True)
    square = (x**2).mean(dim=dims, keepdim=True)
    m = mean / (square - mean**2).sqrt()
    rms = square.sqrt()
    violation = (m - m.clamp(limits.min_mean, limits.max_mean)).abs()
    violation = violation + (rms.clamp(limits.min_rms, limits.max_rms) / rms).log().abs()
    (direction,) = torch.autograd.grad(violation.sum(), x)
    size = (direction**2).mean(dim=dims, keepdim=True).sqrt().clamp_min(1e-20)
    return grad + grad.abs() * limits.grad_scale * direction / size


CASES = {
    "within": (1.0, 0.0),
    "too small": (0.01, 0.0),
    "too large": (20.0, 0.0),
    "too positive": (1.0, 3.0),
    "too negative and too large": (9.0, -12.0),
}


@pytest.mark.parametrize("channel_dim", [-1, 1])
@pytest.mark.parametrize(("scale", "shift"), CASES.values(), ids=CASES.keys())
def test_balancer_gradient_is_that_of_its_definition(
    channel_dim: int, scale: float, shift: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 16, 40, 16) * scale + shift
    grad = torch.randn_like(x)
    balancer = Balancer(
        min_positive=0.3, max_positive=0.7, min_abs=0.5, max_abs=4.0, prob=1.0,
        channel_dim=channel_dim,
    )  # fmt: skip
    leaf = x.clone().requires_grad_()
    output = balancer(leaf)
    assert torch.equal(output, x)
    output.backward(grad)
    expected = naive_balanced_grad(x, grad, balancer.limits(), channel_dim).float()
    torch.testing.assert_close(leaf.grad, expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(leaf.grad, grad) == (scale == 1.0 and shift == 0.0)


def test_balancer_changes_a_channel_out_of_bounds_by_its_scale_and_no_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3) * torch.tensor([1.0, 0.001, 1.0]) + torch.tensor([0.0, 0.0, 2.0])
    limits = BalancerLimits(normal_mean(0.3), normal_mean(0.7), 0.2, 10.0, 0.04)
    line = balancer_line(x, limits)
    factor = balanced_gradient(torch.ones_like(x), x, line) - 1.0
    rms = factor.square().mean(dim=0).sqrt()
    torch.testing.assert_close(rms, torch.tensor([0.0, 0.04, 0.04]), atol=1e-5, rtol=0.0)
    # A step goes against the gradient: away from zero, and down.
    assert (factor[:, 1] * x[:, 1] <= 0).all()
    assert factor[:, 2].mean() > 0


def test_balancer_brings_a_channel_back_into_its_bounds() -> None:
    torch.manual_seed(0)
    x = (torch.randn(200, 4) * 0.2 + 1.0).requires_grad_()
    balancer = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.5, max_abs=2.0, prob=1.0)
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        balancer(x).backward(torch.randn_like(x) * 0.5)
        optimizer.step()
    assert ((x > 0).float().mean(dim=0) < 0.7).all()


def test_balancer_survives_constant_and_zero_channels() -> None:
    x = torch.stack((torch.zeros(50), torch.full((50,), 3.0), torch.randn(50)), dim=1)
    limits = BalancerLimits(-0.1, 0.1, 0.5, 2.0, 0.04)
    line = balancer_line(x, limits)
    assert line.offset.isfinite().all() and line.slope.isfinite().all()


def test_a_balancer_works_in_parts_as_on_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(1000, 8) + 2.0, torch.randn(1000, 8)
    limits = BalancerLimits(-0.1, 0.1, 0.5, 2.0, 0.04)
    whole = balanced_gradient(grad, x, balancer_line(x, limits))
    monkeypatch.setattr(regularizers, "_PART_ELEMENTS", 300)
    parts = balanced_gradient(grad, x, balancer_line(x, limits))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_the_mean_for_a_share_of_positive_values(share: float) -> None:
    exact = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(2.0 * share - 1.0)))
    # icefall's approximation leaves out sqrt(2) and is crude far out; the sign and the order count.
    assert normal_mean(share) == pytest.approx(exact / math.sqrt(2.0), abs=0.05)


def whitening_metric(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    covariance = Covariance.of(x, num_groups)
    return covariance.metric(), covariance.metric_gradient().view(x.shape)


def naive_metric(x: Tensor, num_groups: int) -> Tensor:
    """The definition by eigenvalues: mean(eig^2) / mean(eig)^2 over all groups."""
    groups = x.reshape(-1, x.shape[-1]).chunk(num_groups, dim=1)
    eigenvalues = torch.cat([torch.linalg.eigvalsh(torch.cov(g.t(), correction=0)) for g in groups])
    return eigenvalues.square().mean() / eigenvalues.mean() ** 2


@pytest.mark.parametrize("num_groups", [1, 4])
def test_whitening_metric_and_its_gradient(num_groups: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(6, 50, 16) @ torch.randn(16, 16) + 2.0).double().requires_grad_()
    metric, grad = whitening_metric(x.detach(), num_groups)
    expected = naive_metric(x, num_groups)
    torch.testing.assert_close(metric, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x)[0])


def test_the_metric_is_one_for_white_data_and_the_width_for_a_line() -> None:
    torch.manual_seed(0)
    white = torch.linalg.qr(torch.randn(64, 8)).Q
    white = torch.linalg.qr(white - white.mean(0)).Q
    assert float(whitening_metric(white, 1)[0]) == pytest.approx(1.0, abs=1e-4)
    line = torch.randn(64, 1) * torch.randn(1, 8)
    assert float(whitening_metric(line, 1)[0]) == pytest.approx(8.0, abs=1e-3)


@pytest.mark.parametrize("num_groups", [1, 2])
def test_whiten_adds_a_gradient_of_a_given_size_above_its_limit_only(num_groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8) @ torch.randn(8, 8)
    grad = torch.randn_like(x)
    metric, penalty = whitening_metric(x, num_groups)
    added = []
    for limit in (float(metric) - 0.1, float(metric) + 0.1):
        leaf = x.clone().requires_grad_()
        Whiten(limit, grad_scale=0.02, num_groups=num_groups, prob=1.0)(leaf).backward(grad)
        added.append(leaf.grad - grad)
    assert torch.equal(added[1], torch.zeros_like(grad))
    # grad_scale is meant for a probability of 0.25.
    expected = penalty * (0.25 * 0.02 * grad.norm() / penalty.norm())
    torch.testing.assert_close(added[0], expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("module", [Balancer(prob=1.0, min_abs=5.0), Whiten(1.0, 0.1, prob=1.0)])
def test_both_keep_the_type_of_a_half_precision_gradient(module: torch.nn.Module) -> None:
    leaf = torch.randn(4, 30, 8).to(torch.bfloat16).requires_grad_()
    grad = torch.randn(4, 30, 8).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(leaf).backward(grad)
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.isfinite().all()
    assert not torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("module", [Balancer(prob=1.0, min_abs=5.0), Whiten(1.0, 0.1, prob=1.0)])
def test_neither_acts_in_evaluation(module: torch.nn.Module) -> None:
    leaf = torch.randn(30, 8, requires_grad=True)
    grad = torch.randn(30, 8)
    module.eval()(leaf).backward(grad)
    module.train()
    assert torch.equal(leaf.grad, grad)


def test_they_act_as_often_as_they_say() -> None:
    torch.manual_seed(0)
    leaf = torch.randn(10, 4, requires_grad=True)
    balancer = Balancer(prob=ScheduledFloat((0.0, 0.25), default=0.25))
    acted = sum(balancer(leaf) is not leaf for _ in range(1000))
    assert acted == pytest.approx(250, abs=60)


def test_limited_parameter_is_pushed_back_inside() -> None:
    x = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    _LimitValue.apply(x, 0.0, 1.0).backward(torch.tensor([0.3, -0.3, 0.3, -0.3, 0.3, -0.3]))
    assert torch.equal(x.grad, torch.tensor([-0.3, -0.3, 0.3, -0.3, 0.3, 0.3]))


def test_limiting_happens_sometimes() -> None:
    torch.manual_seed(0)
    x = torch.zeros(2, requires_grad=True)
    assert sum(limit_value(x, 0.0, 1.0) is not x for _ in range(500)) == pytest.approx(300, abs=50)


def test_scale_grad_acts_in_training_only() -> None:
    module, x = ScaleGrad(0.2), torch.ones(3, requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 0.2))
    assert module.eval()(x) is x
