"""Training: error, balance, reproducibility, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spear.errors import ConfigError, DataError
from spear.mvq import Quantizer, TrainingBudget, train_quantizer
from spear.mvq.evaluation import evaluate
from spear.mvq.quantizers.kmeans import lloyd
from spear.mvq.training.initialisation import balanced_bases, equalizing_rotation, initial_centers
from tests.mvq.mvq_frames import correlated_frames, relative_error

SMALL = TrainingBudget(num_iterations=6, frames_per_iteration=4000)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return correlated_frames(6000, 32)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return correlated_frames(1000, 32, seed=1)


@pytest.fixture(scope="module")
def trained(frames: Tensor) -> Quantizer:
    return train_quantizer(frames, 4, 64, budget=SMALL, normalize_channels=True)


def test_beats_its_own_start_on_held_out_frames(
    trained: Quantizer, frames: Tensor, held_out: Tensor
) -> None:
    """Product quantisation in balanced subspaces is where training begins."""
    normalized = trained.normalize(frames)
    centers = initial_centers(normalized, 4, 64, torch.Generator().manual_seed(0))
    start = Quantizer(
        centers, channel_mean=trained.channel_mean, channel_scale=trained.channel_scale
    )
    before = relative_error(start, held_out, start.encode(held_out))
    after = relative_error(trained, held_out, trained.encode(held_out))
    assert after < 0.9 * before


def test_beats_residual_kmeans_of_the_same_rate() -> None:
    """Residual quantisation, searched greedily: the classic of the same number of bits."""
    frames, held_out = (correlated_frames(n, 32, seed, 0.5) for n, seed in ((6000, 0), (1000, 1)))
    trained = train_quantizer(frames, 4, 64, budget=SMALL, normalize_channels=True)
    generator = torch.Generator().manual_seed(0)
    rest, test_rest = trained.normalize(frames), trained.normalize(held_out)
    spread = (test_rest - test_rest.mean(dim=0)).square().sum()
    for _ in range(4):
        means = lloyd(rest, 64, generator, range(8))
        rest = rest - means[torch.cdist(rest, means).argmin(dim=1)]
        test_rest = test_rest - means[torch.cdist(test_rest, means).argmin(dim=1)]
    residual_error = float(test_rest.square().sum() / spread)
    assert relative_error(trained, held_out, trained.encode(held_out)) < 0.9 * residual_error


def test_codebooks_are_used_evenly_and_have_no_order(trained: Quantizer, frames: Tensor) -> None:
    found = evaluate(trained, frames)
    assert min(found.entropies) >= 0.9
    assert sum(found.num_unused) == 0
    # In a residual hierarchy the first codebook is worth many times the last.
    assert max(found.errors_without) < 2.5 * min(found.errors_without)


def test_one_strong_direction_is_shared_by_all_codebooks() -> None:
    """As in log-mel, where loudness is most of the variance: it must not become one's own task."""
    x = correlated_frames(4000, 32)
    x[:, :] += 10 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))
    found = evaluate(train_quantizer(x, 4, 64, budget=SMALL), x)
    assert max(found.errors_without) < 4 * min(found.errors_without)
    assert min(found.entropies) >= 0.9


def test_first_guess_is_far_better_than_chance_also_with_a_large_mean(frames: Tensor) -> None:
    quantizer = train_quantizer(frames + 20, 4, 64, budget=SMALL, normalize_channels=False)
    found = evaluate(quantizer, frames[:1000] + 20)
    assert found.relative_error < found.first_guess_error < 0.6


def test_same_seed_same_bits_other_seed_others(frames: Tensor) -> None:
    budget = TrainingBudget(num_iterations=2, frames_per_iteration=1000)
    one, same, other = (
        train_quantizer(frames, 2, 16, seed=seed, budget=budget) for seed in (3, 3, 4)
    )
    assert one.id == same.id != other.id


def test_the_global_generator_is_left_alone(frames: Tensor) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    train_quantizer(frames[:500], 2, 8, budget=TrainingBudget(num_iterations=2))
    assert torch.equal(torch.randn(3), expected)


def test_a_memory_map_gives_the_same_as_a_tensor(frames: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", frames.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    budget = TrainingBudget(num_iterations=2, frames_per_iteration=1000)
    from_map = train_quantizer(mapped, 3, 16, budget=budget, normalize_channels=True)
    from_tensor = train_quantizer(frames, 3, 16, budget=budget, normalize_channels=True)
    assert from_map.id == from_tensor.id


def test_only_the_given_rows_are_read(frames: Tensor) -> None:
    spoiled = frames.clone()
    spoiled[1::2] = float("nan")
    rows = torch.arange(0, len(frames), 2)
    budget = TrainingBudget(num_iterations=2, frames_per_iteration=1000)
    options = {"budget": budget, "normalize_channels": True}
    one = train_quantizer(spoiled, 2, 16, rows=rows, **options)
    assert one.id == train_quantizer(frames, 2, 16, rows=rows, **options).id
    kept = frames[::2].double()
    torch.testing.assert_close(one.channel_mean, kept.mean(dim=0).float())
    torch.testing.assert_close(one.channel_scale, kept.std(dim=0, unbiased=False).float())


def test_normalisation_makes_channels_matter_equally(frames: Tensor) -> None:
    stretched = frames * torch.logspace(-3, 3, 32)
    quantizer = train_quantizer(stretched, 4, 64, budget=SMALL, normalize_channels=True)
    decoded = quantizer.decode(quantizer.encode(stretched[:1000]))
    per_channel = (decoded - stretched[:1000]).square().mean(dim=0) / stretched.var(dim=0)
    assert per_channel.max() < 0.8
    hasty = TrainingBudget(num_iterations=1, frames_per_iteration=500)
    plain = train_quantizer(stretched, 4, 64, budget=hasty, normalize_channels=False)
    assert (plain.channel_mean == 0).all()
    assert (plain.channel_scale == 1).all()


def test_a_constant_channel_is_harmless(frames: Tensor) -> None:
    flat = frames[:2000].clone()
    flat[:, 5] = 7.0
    quantizer = train_quantizer(flat, 2, 16, budget=SMALL, normalize_channels=True)
    assert quantizer.channel_scale[5] == 1
    decoded = quantizer.decode(quantizer.encode(flat))
    torch.testing.assert_close(decoded[:, 5], flat[:, 5], rtol=1e-3, atol=1e-3)


def test_few_frames_do_not_break_it(held_out: Tensor) -> None:
    quantizer = train_quantizer(correlated_frames(300, 32), 4, 256, budget=SMALL)
    # As many codes per codebook as frames: all is memorised, but new frames must not explode.
    assert relative_error(quantizer, held_out, quantizer.encode(held_out)) < 1.0


@pytest.mark.parametrize("num_codebooks", [1, 3, 12])
def test_more_codebooks_than_dimensions_and_odd_numbers(num_codebooks: int) -> None:
    x = correlated_frames(2000, 6)
    quantizer = train_quantizer(x, num_codebooks, 5, budget=SMALL, normalize_channels=True)
    error = relative_error(quantizer, x, quantizer.encode(x))
    assert error < {1: 0.75, 3: 0.35, 12: 0.05}[num_codebooks]


def test_half_precision_frames_are_trained_on_in_full(frames: Tensor) -> None:
    half = frames[:2000].half()
    budget = TrainingBudget(num_iterations=2)
    assert (
        train_quantizer(half, 2, 16, budget=budget).id
        == train_quantizer(half.float(), 2, 16, budget=budget).id
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_training_frames_not_finite_are_named(frames: Tensor, bad: float) -> None:
    spoiled = frames.clone()
    spoiled[4321, 0] = bad
    with pytest.raises(DataError, match="frame 4321"):
        train_quantizer(spoiled, 2, 16)


def test_wrong_sizes_are_refused(frames: Tensor) -> None:
    with pytest.raises(DataError, match="100 frames are too few for codebooks of 256"):
        train_quantizer(frames[:100], 2, 256)
    with pytest.raises(DataError, match=r"\(F, D\)"):
        train_quantizer(frames.view(2, 3000, 32), 2, 16)
    with pytest.raises(ConfigError, match="num_codebooks"):
        train_quantizer(frames, 0, 16)
    with pytest.raises(ConfigError, match="codebook_size"):
        train_quantizer(frames, 2, 257)
    with pytest.raises(ConfigError, match=r"budget\.memory"):
        train_quantizer(frames, 2, 16, budget=TrainingBudget(memory=1.0))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_rotation_makes_all_variances_equal(size: int) -> None:
    variances = torch.logspace(3, -4, size, dtype=torch.float64)
    rotation = equalizing_rotation(variances)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.t(), identity)
    turned = rotation @ variances.diag() @ rotation.t()
    torch.testing.assert_close(turned.diagonal(), variances.mean().expand(size))
    assert torch.equal(equalizing_rotation(torch.ones(size, dtype=torch.float64)), identity)


@pytest.mark.parametrize(("dim", "num_codebooks"), [(24, 6), (25, 6), (8, 8), (5, 12)])
def test_codebooks_share_the_space_evenly(dim: int, num_codebooks: int) -> None:
    x = torch.randn(500, dim, dtype=torch.float64) * torch.logspace(1, -1, dim)
    covariance = x.t() @ x / 500
    bases = balanced_bases(covariance, num_codebooks, torch.Generator().manual_seed(0))
    shares = torch.stack([(basis.t() @ covariance @ basis).trace() for basis in bases])
    assert shares.max() < 1.2 * shares.min()
    if num_codebooks <= dim:
        joined = torch.cat(bases, dim=1)
        torch.testing.assert_close(joined.t() @ joined, torch.eye(dim, dtype=torch.float64))
