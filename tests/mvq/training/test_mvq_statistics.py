"""Sufficient statistics, least squares and classifiers, against direct computation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spear.mvq.training.statistics import CodeStatistics
from spear.mvq.usage import count_codes, normalized_entropies
from tests.mvq.mvq_frames import correlated_frames, random_centers

N, K, D, FRAMES = 3, 4, 6, 500
EXACT = {"largest_value": 64.0, "max_frames": 1 << 15}


@pytest.fixture
def codes() -> Tensor:
    return torch.randint(K, (FRAMES, N), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def frames() -> Tensor:
    return correlated_frames(FRAMES, D)


def one_hot(codes: Tensor) -> Tensor:
    return F.one_hot(codes, K).view(len(codes), N * K).double()


def collect(frames: Tensor, codes: Tensor) -> CodeStatistics:
    statistics = CodeStatistics(N, K, frames.shape[1], **EXACT)
    statistics.accumulate(frames, codes)
    return statistics


def same(one: CodeStatistics, other: CodeStatistics) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_statistics_are_the_normal_equations(frames: Tensor, codes: Tensor) -> None:
    statistics = CodeStatistics(N, K, D, **EXACT)
    for part in (slice(0, 123), slice(123, None)):
        statistics.accumulate(frames[part], codes[part])
    chosen = one_hot(codes)
    torch.testing.assert_close(statistics.counts, chosen.t() @ chosen)
    torch.testing.assert_close(statistics.sums, chosen.t() @ frames.double(), rtol=1e-4, atol=0.02)
    scatter = frames.double().t() @ frames.double()
    torch.testing.assert_close(statistics.scatter, scatter, rtol=1e-4, atol=0.05)
    assert statistics.num_frames == FRAMES
    assert torch.equal(statistics.usage().long(), count_codes(codes, K))


def test_least_squares_equals_lstsq(frames: Tensor, codes: Tensor) -> None:
    chosen = one_hot(codes)
    expected = chosen @ torch.linalg.lstsq(chosen, frames.double(), driver="gelsd").solution
    centers = collect(frames, codes).least_squares(ridge=1e-6)
    found = chosen @ centers.double().view(N * K, D)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_ridge_and_inertia_are_what_they_say(frames: Tensor, codes: Tensor) -> None:
    ridge, inertia = 3.0, 5.0
    previous = random_centers(N, K, D)
    # The same objective as one tall least-squares problem with two blocks of extra rows.
    eye = torch.eye(N * K, dtype=torch.float64)
    tall = torch.cat((one_hot(codes), ridge**0.5 * eye, inertia**0.5 * eye))
    last = inertia**0.5 * previous.view(N * K, D).double()
    target = torch.cat((frames.double(), torch.zeros(N * K, D, dtype=torch.float64), last))
    expected = torch.linalg.lstsq(tall, target).solution.view(N, K, D).float()
    found = collect(frames, codes).least_squares(previous, ridge=ridge, inertia=inertia)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_unused_code_stays_where_it_was(frames: Tensor, codes: Tensor) -> None:
    codes = codes.clamp(max=K - 2)
    previous = random_centers(N, K, D)
    found = collect(frames, codes).least_squares(previous, ridge=0.0, inertia=1.0)
    torch.testing.assert_close(found[:, K - 1], previous[:, K - 1])


def test_least_squares_without_a_pull_is_refused(frames: Tensor, codes: Tensor) -> None:
    statistics = collect(frames, codes)
    with pytest.raises(ValueError, match="ridge"):
        statistics.least_squares(ridge=0.0)
    with pytest.raises(ValueError, match="previous"):
        statistics.least_squares(ridge=0.0, inertia=1.0)


def test_absorbing_weighs_old_frames_less(frames: Tensor, codes: Tensor) -> None:
    statistics, once = collect(frames, codes), collect(frames, codes)
    statistics.absorb(once, 0.25)
    torch.testing.assert_close(statistics.counts, 1.25 * once.counts)
    torch.testing.assert_close(statistics.sums, 1.25 * once.sums)
    assert statistics.num_frames == 1.25 * FRAMES
    statistics.clear()
    statistics.absorb(once, 0.25)
    assert same(statistics, once)


def test_sums_are_the_same_in_any_order(frames: Tensor, codes: Tensor) -> None:
    """Unlike plain sums in float64, which differ in their last bits."""
    noise = torch.rand(FRAMES, D, generator=torch.Generator().manual_seed(1))
    frames = frames * 10 ** (9 * noise - 8)
    once, again = collect(frames, codes), CodeStatistics(N, K, D, **EXACT)
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(2))
    for part in order.split(37):
        again.accumulate(frames[part], codes[part])
    assert same(once, again)
    plain = [frames[rows].double().sum(dim=0) for rows in (torch.arange(FRAMES), order)]
    assert not torch.equal(*plain)
    torch.testing.assert_close(once.sums[:K].sum(dim=0), plain[0], rtol=1e-4, atol=0.02)


def test_spread_is_the_variance_times_the_count(frames: Tensor, codes: Tensor) -> None:
    expected = (frames - frames.mean(dim=0)).double().square().sum()
    assert collect(frames, codes).spread() == pytest.approx(float(expected), rel=1e-4)


def test_classifiers_are_the_bayes_rule_of_gaussians() -> None:
    """With Gaussian classes of one covariance, no classifier is better than the closed form."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (20000, 1), generator=generator)
    means = torch.tensor([[2.0, 0], [-2, 0], [0, 0.5], [0, -0.5]])
    mixing = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    frames = means[labels[:, 0]] + torch.randn(20000, 2, generator=generator) @ mixing.t()
    statistics = CodeStatistics(1, K, 2, **EXACT)
    statistics.accumulate(frames, labels)
    weight, bias = statistics.classifiers(floor=1e-6)
    guess = (frames @ weight.t() + bias).argmax(dim=1)
    precision = torch.linalg.inv(mixing @ mixing.t())
    deltas = frames.unsqueeze(1) - means
    bayes = torch.einsum("fki,ij,fkj->fk", deltas, precision, deltas).argmin(dim=1)
    assert (guess == bayes).float().mean() > 0.98
    nearest = deltas.square().sum(dim=2).argmin(dim=1)
    hits = (guess == labels[:, 0]).float().mean()
    assert hits > (nearest == labels[:, 0]).float().mean() + 0.05


def test_entropy_of_uniform_single_and_known_usage() -> None:
    usage = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]])
    expected = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(normalized_entropies(usage), expected)
