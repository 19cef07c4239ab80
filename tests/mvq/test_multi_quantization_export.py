"""Export to `multi_quantization`: there and back, and into the package itself where it is."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from spear.errors import ConfigError
from spear.mvq import Quantizer, TrainingBudget, train_quantizer
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error

N, K, D = 4, 16, 12
BUDGET = TrainingBudget(num_iterations=3, frames_per_iteration=1000)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return correlated_frames(1000, D)


@pytest.fixture(scope="module")
def plain(frames: Tensor) -> Quantizer:
    return train_quantizer(frames, N, K, budget=BUDGET)


@pytest.fixture(scope="module")
def normalized(frames: Tensor) -> Quantizer:
    return train_quantizer(frames, N, K, normalize_channels=True, budget=BUDGET)


def with_statistics(quantizer: Quantizer, mean: Tensor, scale: Tensor) -> Quantizer:
    return Quantizer(
        quantizer.centers,
        classifier_weight=quantizer.classifier_weight,
        classifier_bias=quantizer.classifier_bias,
        channel_mean=mean,
        channel_scale=scale,
    )


def test_there_and_back_is_the_same_quantiser(plain: Quantizer, frames: Tensor) -> None:
    back = Quantizer.from_multi_quantization(plain.to_multi_quantization())
    assert back.id == plain.id
    assert torch.equal(back.encode(frames), plain.encode(frames))
    assert back.metadata["source_id"] == plain.id[:8]
    assert Quantizer.from_multi_quantization(back.to_multi_quantization()).metadata == back.metadata


def test_an_own_scale_for_every_channel_is_refused(normalized: Quantizer, frames: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"cannot be folded.*of_normalized_frames=True"):
        normalized.to_multi_quantization()
    back = Quantizer.from_multi_quantization(
        normalized.to_multi_quantization(of_normalized_frames=True),
        channel_mean=normalized.channel_mean,
        channel_scale=normalized.channel_scale,
    )
    assert back.id == normalized.id
    assert torch.equal(back.encode(frames), normalized.encode(frames))


def test_one_scale_for_all_channels_is_folded_in(plain: Quantizer, frames: Tensor) -> None:
    mean = torch.linspace(-3, 3, D)
    scaled = with_statistics(plain, mean, torch.full((D,), 0.3))
    x = (frames * 0.3) + mean
    back = Quantizer.from_multi_quantization(scaled.to_multi_quantization())
    assert bool((back.channel_scale == 1).all())
    codes, folded = scaled.encode(x), back.encode(x)
    # Rounding may tip the scales where two choices are all but equally good.
    assert (codes == folded).all(dim=1).float().mean() > 0.99
    torch.testing.assert_close(back.decode(codes), scaled.decode(codes), rtol=1e-5, atol=1e-5)
    guesses = scaled.encode(x, num_passes=0), back.encode(x, num_passes=0)
    assert (guesses[0] == guesses[1]).float().mean() > 0.99


def test_without_classifiers_the_nearest_centre_is_guessed(frames: Tensor) -> None:
    centers = random_centers(N, K, D)
    state = Quantizer(centers).to_multi_quantization()
    logits = frames @ state["to_logits.weight"].t() + state["to_logits.bias"]
    guess = logits.view(-1, N, K).argmax(dim=2)
    means = centers.mean(dim=1)
    for n in range(N):
        target = frames - (means.sum(dim=0) - means[n])
        assert torch.equal(guess[:, n], torch.cdist(target, centers[n]).argmin(dim=1))


@pytest.mark.parametrize(("num_codebooks", "codebook_size"), [(3, 16), (4, 24), (4, 8)])
def test_sizes_that_the_package_cannot_hold_are_refused(
    num_codebooks: int, codebook_size: int
) -> None:
    quantizer = Quantizer(random_centers(num_codebooks, codebook_size, D))
    with pytest.raises(ConfigError, match=f"{num_codebooks} codebooks of {codebook_size} codes"):
        quantizer.to_multi_quantization()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reference package. It imports h5py for a reader that nobody needs here."""
    if "h5py" not in sys.modules:
        monkeypatch.setitem(sys.modules, "h5py", types.ModuleType("h5py"))
    return pytest.importorskip("multi_quantization")


def test_the_package_itself_takes_the_export(
    package: Any, plain: Quantizer, normalized: Quantizer, frames: Tensor
) -> None:
    for quantizer in (plain, normalized):
        reference = package.Quantizer(D, K, N)
        reference.load_state_dict(quantizer.to_multi_quantization(of_normalized_frames=True))
        assert reference.get_id() == quantizer.id[:8]
        target = quantizer.normalize(frames)
        with torch.no_grad():
            guess = reference.encode(target, 0, as_bytes=False)
            refined = reference.encode(target, 5, as_bytes=False)
            decoded = reference.decode(refined)
        ours = quantizer.encode(frames)
        assert (quantizer.encode(frames, num_passes=0) == guess).float().mean() > 0.999
        torch.testing.assert_close(
            quantizer.denormalize(decoded), quantizer.decode(refined), rtol=1e-4, atol=1e-4
        )
        their_error = relative_error(quantizer, frames, refined)
        our_error = relative_error(quantizer, frames, ours)
        assert our_error <= their_error * (1 + 1e-6)
        assert their_error < our_error * 1.05


def test_a_quantiser_of_the_package_comes_back_to_it(package: Any, frames: Tensor) -> None:
    torch.manual_seed(0)
    reference = package.Quantizer(D, K, N)
    with torch.no_grad():
        reference.centers_scale.fill_(0.02)
        reference.logits_scale.fill_(-0.03)
    again = package.Quantizer(D, K, N)
    again.load_state_dict(
        Quantizer.from_multi_quantization(reference.state_dict()).to_multi_quantization()
    )
    assert again.get_id() == reference.get_id()
    codes = reference.encode(frames, 5, as_bytes=False)
    assert (again.encode(frames, 5, as_bytes=False) == codes).float().mean() > 0.99
    torch.testing.assert_close(again.decode(codes), reference.decode(codes))
