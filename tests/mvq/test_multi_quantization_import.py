"""Import of `multi_quantization` state dicts, against its formulae written out here."""

import pytest
import torch
from torch import Tensor

from spear.errors import CheckpointError
from spear.mvq import Quantizer
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error

N, K, D = 4, 16, 12


def reference_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = random_centers(N, K, D)
    return {
        "centers": centers,
        "to_logits.weight": centers.view(N * K, D)
        + 0.1 * torch.randn(N * K, D, generator=generator),
        "to_logits.bias": torch.randn(N * K, generator=generator),
        "logits_scale": torch.tensor(0.03),
        "centers_scale": torch.tensor(-0.05),
        "id_buf": torch.tensor(list(b"585ce3cf"), dtype=torch.uint8),
    }


def reference_decode(state: dict[str, Tensor], codes: Tensor) -> Tensor:
    centers = (state["centers_scale"] * 10).exp() * state["centers"]
    return torch.stack([centers[n][codes[:, n].long()] for n in range(N)]).sum(dim=0)


def reference_guess(state: dict[str, Tensor], x: Tensor) -> Tensor:
    scaled = (state["logits_scale"] * 10).exp() * x
    logits = scaled @ state["to_logits.weight"].t() + state["to_logits.bias"]
    return logits.view(-1, N, K).argmax(dim=-1)


def reference_refine(state: dict[str, Tensor], x: Tensor, codes: Tensor) -> Tensor:
    """The package's pass for N = 4, K = 16, in D dimensions: shortlists of 8 per codebook, all
    pairs of neighbours, the best 8 of each, then the best of all pairs of these."""
    centers = (state["centers_scale"] * 10).exp() * state["centers"]
    found = []
    for frame, row in zip(x, codes, strict=True):
        old = torch.stack([centers[n, row[n]] for n in range(N)])
        error = old.sum(dim=0) - frame
        groups = []
        for n in range(N):
            deltas = centers[n] - old[n]
            best = (error + deltas).square().sum(dim=1).sort().indices[:8]
            groups.append((best.unsqueeze(1), deltas[best]))
        while len(groups) > 1:
            merged = []
            for (a, deltas_a), (b, deltas_b) in zip(groups[::2], groups[1::2], strict=True):
                every, other = (
                    each.flatten()
                    for each in torch.meshgrid(
                        torch.arange(len(a)), torch.arange(len(b)), indexing="ij"
                    )
                )
                deltas = deltas_a[every] + deltas_b[other]
                best = (error + deltas).square().sum(dim=1).sort(stable=True).indices[:8]
                merged.append((torch.cat((a[every], b[other]), dim=1)[best], deltas[best]))
            groups = merged
        found.append(groups[0][0][0])
    return torch.stack(found)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    x = correlated_frames(100, D)
    return x - x.mean(dim=0)


def test_decode_and_first_guess_are_the_references(frames: Tensor) -> None:
    state = reference_state()
    quantizer = Quantizer.from_multi_quantization(state)
    codes = torch.randint(K, (100, N))
    torch.testing.assert_close(quantizer.decode(codes), reference_decode(state, codes))
    guess = quantizer.encode(frames, num_passes=0)
    assert torch.equal(guess.long(), reference_guess(state, frames))


def test_tokens_are_no_worse_than_the_references(frames: Tensor) -> None:
    state = reference_state()
    quantizer = Quantizer.from_multi_quantization(state)
    theirs = reference_guess(state, frames)
    for _ in range(5):
        theirs = reference_refine(state, frames, theirs)
    ours = quantizer.encode(frames)
    their_error = relative_error(quantizer, frames, theirs)
    assert relative_error(quantizer, frames, ours) <= their_error * (1 + 1e-6)
    assert (ours.long() == theirs).all(dim=1).float().mean() > 0.8


def test_source_is_remembered_and_statistics_are_applied(frames: Tensor) -> None:
    mean, scale = torch.full((D,), 4.0), torch.full((D,), 2.0)
    plain = Quantizer.from_multi_quantization(reference_state())
    quantizer = Quantizer.from_multi_quantization(
        reference_state(), channel_mean=mean, channel_scale=scale, metadata={"note": "LS-960"}
    )
    assert quantizer.metadata == {
        "source": "multi_quantization",
        "source_id": "585ce3cf",
        "note": "LS-960",
    }
    assert torch.equal(quantizer.encode(frames * 2 + 4), plain.encode((frames * 2 + 4 - 4) / 2))


def test_other_state_dicts_are_refused() -> None:
    state = reference_state()
    del state["to_logits.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing keys \['to_logits.bias'\].*\['extra'\]"):
        Quantizer.from_multi_quantization(state)
    state = reference_state()
    state["to_logits.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="do not fit"):
        Quantizer.from_multi_quantization(state)
