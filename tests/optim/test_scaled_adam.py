import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spear.optim import Eden, ScaledAdam, stack
from spear.optim import group as optim_group

SHAPES = {"w1": (8, 6), "w2": (8, 6), "conv": (4, 3, 5), "b": (6,), "scale": (), "one": (1, 1)}


@pytest.fixture(autouse=True, params=["compiled", "torch", "device"])
def way(request, monkeypatch):
    """Every test here is done by the compiled loops, by torch's operations, and as on a GPU."""
    if request.param != "compiled":
        monkeypatch.setattr(optim_group, "is_installed", lambda: False)
        monkeypatch.setattr(stack, "_lies_here", lambda flag: request.param == "torch")
    elif not optim_group.is_installed():
        pytest.skip("numba is not installed")
    return request.param


def make_parameters(seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator) * 0.3)
        for name, shape in shapes.items()
    }


def gradient(name: str, step: int, shape: torch.Size, outlier: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + len(name) + ord(name[-1]))
    return torch.randn(shape, generator=generator) * (500.0 if outlier else 3.0)


def do_step(
    optimizer: ScaledAdam, parameters: dict[str, Any], step: int, outlier: bool = False
) -> None:
    for name, parameter in parameters.items():
        parameter.grad = None
        if parameter.requires_grad:
            parameter.grad = gradient(name, step, parameter.shape, outlier)
    optimizer.step()


def values(parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class NaiveScaledAdam:
    """The algorithm for one group, a parameter and a float64 number at a time."""

    def __init__(self, initial: dict[str, Tensor], lr: float, clipping_scale: float | None) -> None:
        self.p = {name: value.double().clone() for name, value in initial.items()}
        self.lr, self.clipping_scale = lr, clipping_scale
        self.v = {name: torch.zeros_like(value) for name, value in self.p.items()}
        self.delta = {name: torch.zeros_like(value) for name, value in self.p.items()}
        self.rms = {name: value.square().mean().sqrt().item() for name, value in self.p.items()}
        self.size_grads: dict[str, list[float]] = {name: [] for name in self.p}
        self.size_v = dict.fromkeys(self.p, 0.0)
        self.norms: list[float] = []
        self.threshold = math.inf
        self.factor = 1.0
        self.step_count = 0

    def clip(self, grads: dict[str, Tensor]) -> float:
        squares = [
            (g * (0.1 if g.numel() == 1 else self.rms[name])).square().sum().item()
            for name, g in grads.items()
        ]
        norm = math.sqrt(sum(squares))
        step = self.step_count
        if step == 0 or self.clipping_scale is None:
            return 1.0
        self.norms.append(norm)
        if step in (10, 20, 40) or step % 100 == 0:
            window = sorted(self.norms[-100:])
            early = 2.0 if step in (10, 20, 40) else 1.0
            self.threshold = self.clipping_scale * early * window[len(window) // 4 * 2]
        return min(1.0, self.threshold / norm)

    def step(self, grads: dict[str, Tensor]) -> None:
        self.factor = self.clip(grads)
        n = self.step_count = self.step_count + 1
        for name, p in self.p.items():
            g = grads[name].double() * self.factor
            is_scalar = p.numel() == 1
            self.v[name] = 0.98 * self.v[name] + 0.02 * g**2
            correction = 1 - 0.98**n
            v = self.v[name] / correction if correction < 0.99 else self.v[name]
            delta = -self.lr * (0.1 if is_scalar else 1.0) * g / (v.sqrt() + 1e-8)
            if not is_scalar:
                delta = self.sized(name, delta, g, n)
            self.delta[name] = 0.9 * self.delta[name] + 0.1 * delta
            p.add_(self.delta[name])
            if is_scalar:
                p.clamp_(-10.0, 10.0)

    def sized(self, name: str, delta: Tensor, g: Tensor, n: int) -> Tensor:
        p = self.p[name]
        self.size_grads[name].append((p * g).sum().item())
        if n % 4 == 0:
            self.rms[name] = p.square().mean().sqrt().item()
        delta = delta * max(self.rms[name], 1e-5)
        if n % 4 == 0 and n > 1:
            recent = self.size_grads[name][-4:]
            beta = 0.98**4
            mean_square = sum(x * x for x in recent) / 4
            self.size_v[name] = beta * self.size_v[name] + (1 - beta) * mean_square
            bias = math.sqrt(1 - beta ** (n // 4))
            change = -self.lr * 0.1 * bias * sum(recent) / (math.sqrt(self.size_v[name]) + 1e-8)
            change = 0.0 if self.rms[name] < 1e-5 else max(-0.1, min(0.1, change))
            delta = delta + p * min(change, (3.0 - self.rms[name]) / self.rms[name])
        return delta


def test_every_update_agrees_with_icefall(golden_dir):
    golden = torch.load(golden_dir / "scaled_adam.pt", weights_only=True)
    parameters = {name: nn.Parameter(value.clone()) for name, value in golden["init"].items()}
    optimizer = ScaledAdam(
        list(parameters.items()), lr=golden["lr"], clipping_scale=golden["clipping_scale"]
    )
    scheduler = Eden(
        optimizer,
        lr_batches=golden["lr_batches"],
        lr_epochs=golden["lr_epochs"],
        warmup_batches=golden["warmup_batches"],
        warmup_start=golden["warmup_start"],
    )
    snapshots = {int(step): values for step, values in golden["snapshots"].items()}
    assert max(snapshots) == len(golden["lrs"])
    for index, expected_lr in enumerate(golden["lrs"].tolist()):
        for name, parameter in parameters.items():
            parameter.grad = golden["grads"][name][index].clone()
        optimizer.step()
        scheduler.step_batch(index)
        assert scheduler.get_last_lr()[0] == pytest.approx(expected_lr, rel=1e-12)
        for name, expected in snapshots.get(index + 1, {}).items():
            largest = expected.abs().max().item()
            torch.testing.assert_close(
                parameters[name].detach(), expected, rtol=1e-6, atol=1e-6 * largest
            )
        if index + 1 == golden["epoch_1_at_step"]:
            scheduler.step_epoch(1)


@pytest.mark.parametrize("clipping_scale", [None, 2.0])
def test_batched_updates_equal_those_of_one_number_at_a_time(clipping_scale):
    parameters = make_parameters()
    naive = NaiveScaledAdam(values(parameters), 0.04, clipping_scale)
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04, clipping_scale=clipping_scale)
    num_clipped = 0
    for step in range(230):
        outlier = step % 37 == 30
        do_step(optimizer, parameters, step, outlier)
        naive.step({n: gradient(n, step, p.shape, outlier) for n, p in parameters.items()})
        assert optimizer.clip_factor_tensor.item() == pytest.approx(naive.factor, rel=1e-4)
        num_clipped += naive.factor < 1
    assert (num_clipped > 5) == (clipping_scale is not None)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.detach().double(), naive.p[name], rtol=1e-4, atol=2e-5, msg=name
        )


def test_sizes_stay_within_their_limits():
    parameters = make_parameters(shapes={"w": (3, 3), "scale": ()})
    with torch.no_grad():
        parameters["w"].mul_(10.0 / parameters["w"].square().mean().sqrt())
    groups = [
        {"named_params": [("w", parameters["w"])], "lr": 1e-4},
        {"named_params": [("scale", parameters["scale"])], "lr": 0.5},
    ]
    optimizer = ScaledAdam(groups, lr=0.5, clipping_scale=None)
    for _ in range(300):
        parameters["w"].grad = -parameters["w"].detach().clone()  # asks to grow for ever
        parameters["scale"].grad = torch.tensor(-1.0)
        optimizer.step()
    assert parameters["scale"].item() == 10.0
    assert parameters["w"].square().mean().sqrt().item() < 3.1


def test_first_update_after_unfreezing_is_that_of_a_fresh_start():
    parameters = make_parameters()
    frozen = {"w1", "b", "scale"}
    for name in frozen:
        parameters[name].requires_grad_(False)
    initial = values(parameters)
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    for step in range(50):
        do_step(optimizer, parameters, step)
    for name in frozen:
        assert torch.equal(parameters[name], initial[name])
    assert frozen.isdisjoint(optimizer.state_dict()["parameters"])
    for name in frozen:
        parameters[name].requires_grad_(True)
    do_step(optimizer, parameters, 50, outlier=True)  # nor does old clipping touch the first step

    fresh = {name: nn.Parameter(initial[name].clone()) for name in frozen}
    do_step(ScaledAdam(list(fresh.items()), lr=0.04), fresh, 50, outlier=True)
    assert_same_bits({name: parameters[name].detach() for name in frozen}, values(fresh))
    assert not torch.equal(parameters["w1"], initial["w1"])


def test_a_group_that_thaws_leaves_the_clipping_of_others_alone():
    parameters = make_parameters(shapes={"w1": (8, 6), "w2": (8, 6)})
    parameters["w1"].requires_grad_(False)
    groups = [{"named_params": [(name, parameters[name])]} for name in ("w1", "w2")]
    optimizer = ScaledAdam(groups, lr=0.04)
    for step in range(30):
        do_step(optimizer, parameters, step)
    parameters["w1"].requires_grad_(True)
    do_step(optimizer, parameters, 30, outlier=True)
    first, second = optimizer.state_dict()["clipping"]
    assert first["step"] == 1 and first["threshold"].isinf()
    assert second["step"] == 31 and second["threshold"].isfinite()
    assert optimizer.clip_factor_tensor < 0.1


def test_a_frozen_parameter_with_a_gradient_left_over_stays():
    parameters = make_parameters()
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    do_step(optimizer, parameters, 0)
    before = values(parameters)
    parameters["w2"].requires_grad_(False)
    for step in (1, 2):
        for name, parameter in parameters.items():
            parameter.grad = gradient(name, step, parameter.shape)
        optimizer.step()
    assert torch.equal(parameters["w2"], before["w2"])
    assert not torch.equal(parameters["w1"], before["w1"])
    steps = {n: state["step"] for n, state in optimizer.state_dict()["parameters"].items()}
    assert steps["w2"] == 1 and steps["w1"] == 3


def test_a_step_without_a_gradient_keeps_a_parameters_state():
    def run(with_pause: bool) -> Tensor:
        parameters = make_parameters(shapes={"w1": (8, 6), "w2": (8, 6)})
        optimizer = ScaledAdam(list(parameters.items()), lr=0.04, clipping_scale=None)
        for step in range(7):
            for name, parameter in parameters.items():
                parameter.grad = gradient(name, step, parameter.shape)
            optimizer.step()
            if with_pause and step == 4:
                parameters["w1"].grad = None
                optimizer.step()
        return parameters["w1"].detach()

    assert torch.equal(run(with_pause=True), run(with_pause=False))


@pytest.mark.parametrize("break_at", [1, 3, 10, 12, 41, 99])
def test_resume_is_equal_to_the_bit(break_at):
    def thaw(parameters: dict[str, Any], step: int) -> None:
        parameters["w1"].requires_grad_(step >= 12)

    straight = make_parameters()
    straight_optimizer = ScaledAdam(list(straight.items()), lr=0.04)
    for step in range(115):
        thaw(straight, step)
        do_step(straight_optimizer, straight, step, outlier=step % 13 == 0)
        if step == break_at:
            stored = io.BytesIO()
            torch.save(straight_optimizer.state_dict(), stored)
            resumed = {name: nn.Parameter(value) for name, value in values(straight).items()}

    other = ScaledAdam(list(resumed.items()), lr=0.01)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    for step in range(break_at + 1, 115):
        thaw(resumed, step)
        do_step(other, resumed, step, outlier=step % 13 == 0)
    assert_same_bits(values(straight), values(resumed))
    first, second = straight_optimizer.state_dict(), other.state_dict()
    for name, state in first["parameters"].items():
        for key, value in state.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(second["parameters"][name][key])
            )


def test_a_saved_state_does_not_change_with_later_steps():
    parameters = make_parameters()
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    do_step(optimizer, parameters, 0)
    saved = optimizer.state_dict()
    before = {name: state["delta"].clone() for name, state in saved["parameters"].items()}
    norms = saved["clipping"][0]["norms"].clone()
    for step in range(1, 12):
        do_step(optimizer, parameters, step)
    assert_same_bits(before, {n: s["delta"] for n, s in saved["parameters"].items()})
    assert torch.equal(saved["clipping"][0]["norms"], norms)


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that makes the host wait for a number from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device():
    parameters = make_parameters()
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    with NoHostReads():
        for step in range(105):
            do_step(optimizer, parameters, step, outlier=step == 50)
            norm = optimizer.grad_norm_tensor, optimizer.clip_factor_tensor
    assert norm[0].item() > 0 and norm[1].item() >= 0
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostReads():
        norm[0].item()


BAD = {
    "infinite": lambda grad: grad.fill_(float("inf")),
    "nan": lambda grad: grad.view(-1)[-1:].fill_(float("nan")),
    "too large to be squared": lambda grad: grad.fill_(1e30),
    "said to be": lambda grad: grad,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_step_never_happened(kind):
    """Also at the very first step, at one that updates sizes, and at one that sets a threshold."""

    def run(bad_before: tuple[int, ...]) -> ScaledAdam:
        parameters = make_parameters()
        items = list(parameters.items())
        groups = [{"named_params": items[:2]}, {"named_params": items[2:]}]
        optimizer = ScaledAdam(groups, lr=0.04)
        for step in range(50):
            for name, parameter in parameters.items():
                parameter.grad = gradient(name, 777, parameter.shape)
            if step in bad_before:
                BAD[kind](parameters["w1"].grad)  # in one tensor of one group
                optimizer.step(is_good=torch.tensor(kind != "said to be"))
                assert not optimizer.happened_tensor
                assert optimizer.clip_factor_tensor.item() == 0.0
            do_step(optimizer, parameters, step, outlier=step == 45)
            assert optimizer.happened_tensor
        optimizer.zero_grad()
        return optimizer

    smooth, rough = run(()), run((0, 1, 3, 10, 40, 41, 49))
    one, two = smooth.state_dict(), rough.state_dict()
    for group, other in zip(smooth.param_groups, rough.param_groups, strict=True):
        for parameter, twin in zip(group["params"], other["params"], strict=True):
            assert torch.equal(parameter, twin)
    for name, state in one["parameters"].items():
        assert_same_bits(state, two["parameters"][name])
    for state, twin in zip(one["clipping"], two["clipping"], strict=True):
        assert_same_bits(state, twin)


def test_a_bad_step_keeps_the_sign_of_zero():
    parameter = nn.Parameter(torch.tensor([-0.0, 1.0, -2.0]))
    optimizer = ScaledAdam([("w", parameter)], lr=0.04)
    parameter.grad = torch.ones(3)
    optimizer.step(is_good=torch.tensor(False))
    assert torch.equal(parameter.signbit(), torch.tensor([True, False, True]))


def test_the_plain_norm_is_that_of_all_gradients():
    parameters = make_parameters()
    items = list(parameters.items())
    groups = [{"named_params": items[:2]}, {"named_params": items[2:]}]
    optimizer = ScaledAdam(groups, lr=0.04)
    do_step(optimizer, parameters, 3)
    grads = torch.cat([parameter.grad.flatten() for parameter in parameters.values()])
    assert optimizer.plain_grad_norm_tensor.item() == pytest.approx(grads.norm().item())


def test_the_order_in_memory_of_a_gradient_does_not_matter():
    """Convolutions give gradients channels last, and a transposed weight has a transposed one."""

    def run(reorder: Callable[[Tensor], Tensor]) -> Tensor:
        parameters = make_parameters(shapes={"w1": (4, 3, 5, 2), "w2": (4, 3, 5, 2)})
        optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
        for step in range(6):
            for name, parameter in parameters.items():
                parameter.grad = reorder(gradient(name, step, parameter.shape))
            optimizer.step()
        return parameters["w2"].detach()

    expected = run(lambda grad: grad)
    got = run(lambda grad: grad.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    got = run(lambda grad: grad.transpose(0, 3).contiguous().transpose(0, 3))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_parameters_of_two_types_and_orders_share_a_group():
    """A bfloat16 weight is updated from float32 state; a transposed one in its own order."""
    shape = (6, 4)
    exact = make_parameters(shapes={"w1": shape, "w2": shape})
    optimizer = ScaledAdam(list(exact.items()), lr=0.04)
    mixed = {
        "w1": nn.Parameter(exact["w1"].detach().bfloat16()),
        "w2": nn.Parameter(exact["w2"].detach().clone().t().contiguous().t()),
    }
    other = ScaledAdam(list(mixed.items()), lr=0.04)
    for step in range(8):
        for name in exact:
            grad = gradient(name, step, torch.Size(shape)).bfloat16()
            exact[name].grad, mixed[name].grad = grad.float(), grad.to(mixed[name].dtype)
        optimizer.step()
        other.step()
    assert other.state_dict()["parameters"]["w1"]["delta"].dtype == torch.float32
    torch.testing.assert_close(mixed["w1"].float(), exact["w1"], rtol=0.02, atol=0.01)
    torch.testing.assert_close(mixed["w2"], exact["w2"], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_with_counters_that_are_numbers_is_read():
    parameters = make_parameters()
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    for step in range(14):
        do_step(optimizer, parameters, step)
    state = optimizer.state_dict()
    for saved in state["parameters"].values():
        saved["step"] = int(saved["step"])
    for saved in state["clipping"]:
        saved |= {"step": int(saved["step"]), "window_start": 10, "num_clipped": 1}
    resumed = {name: nn.Parameter(value) for name, value in values(parameters).items()}
    other = ScaledAdam(list(resumed.items()), lr=0.04)
    other.load_state_dict(state)
    for step in range(14, 20):
        do_step(optimizer, parameters, step)
        do_step(other, resumed, step)
    assert_same_bits(values(parameters), values(resumed))


def test_groups_have_rates_of_their_own_and_are_not_changed():
    parameters = make_parameters()
    groups = [
        {"named_params": [("w1", parameters["w1"])], "lr_scale": 0.05},
        {"named_params": [("w2", parameters["w2"])], "lr": 0.01},
        {"named_params": [("b", parameters["b"])], "lr": 0.01, "lr_scale": 0.5},
        {"params": [parameters["conv"], parameters["scale"]]},
        {"named_params": []},
    ]
    optimizer = ScaledAdam(groups, lr=0.04)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.002, 0.01, 0.005, 0.04])
    assert groups[0] == {"named_params": [("w1", parameters["w1"])], "lr_scale": 0.05}


def test_what_cannot_be_loaded_is_refused_by_name():
    parameters = make_parameters()
    optimizer = ScaledAdam(list(parameters.items()), lr=0.04)
    do_step(optimizer, parameters, 0)
    state = optimizer.state_dict()
    fewer = ScaledAdam([("w1", parameters["w1"])], lr=0.04)
    with pytest.raises(ValueError, match=r"a parameter '(?!w1)"):
        fewer.load_state_dict(state)
    other = make_parameters(shapes={**SHAPES, "w1": (8, 7)})
    with pytest.raises(ValueError, match=r"'w1' has shape \(8, 6\), the parameter \(8, 7\)"):
        ScaledAdam(list(other.items()), lr=0.04).load_state_dict(state)
    groups = [{"params": [parameter]} for parameter in parameters.values()]
    with pytest.raises(ValueError, match="1 groups, this one 6"):
        ScaledAdam(groups, lr=0.04).load_state_dict(state)


def test_wrong_arguments_are_refused():
    parameters = make_parameters()
    with pytest.raises(ValueError, match="same name: w"):
        ScaledAdam([("w", parameters["w1"]), ("w", parameters["w2"])], lr=0.1)
    with pytest.raises(ValueError, match="betas"):
        ScaledAdam(list(parameters.items()), lr=0.1, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="size_update_period"):
        ScaledAdam(list(parameters.items()), lr=0.1, size_update_period=0)
