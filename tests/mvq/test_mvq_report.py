"""What a report says, against definitions; its pictures; and `spear info quantizer`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spear.cli import main
from spear.mvq import Quantizer
from spear.mvq.evaluation import Evaluation, evaluate
from spear.mvq.interpretation import find_unusual
from spear.mvq.pictures import draw_codebooks, draw_usage, relative_usage
from spear.mvq.report import describe, evaluation_blocks, write_report
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error

TEACHER = {"name": "logmel", "frame_rate_hz": 25.0, "dim": 8, "weights_sha256": "ab"}
HISTORY = [
    {"iteration": 0, "relative_error": 0.5, "least_entropy": 0.8, "num_dead": 9},
    {"iteration": 1, "relative_error": 0.4, "least_entropy": 0.9, "num_dead": 0},
]


@pytest.fixture(scope="module")
def quantizer(frames: Tensor) -> Quantizer:
    centers = random_centers(4, 8, 8)
    return Quantizer(
        centers,
        classifier_weight=centers.view(32, 8),
        classifier_bias=torch.zeros(32),
        channel_mean=frames.mean(dim=0),
        channel_scale=frames.std(dim=0),
        metadata={"teacher": json.dumps(TEACHER), "history": json.dumps(HISTORY)},
    )


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return correlated_frames(600, 8)


@pytest.fixture(scope="module")
def found(quantizer: Quantizer, frames: Tensor) -> Evaluation:
    return evaluate(quantizer, frames)


def test_correlations_are_those_of_the_contributions(
    quantizer: Quantizer, frames: Tensor, found: Evaluation
) -> None:
    codes = quantizer.encode(frames).long()
    parts = torch.stack([quantizer.centers[n][codes[:, n]] for n in range(4)]).double()
    parts -= parts.mean(dim=1, keepdim=True)
    flat = parts.flatten(1)
    expected = torch.corrcoef(flat)  # their means over everything are 0 already
    torch.testing.assert_close(found.correlations, expected, rtol=1e-4, atol=1e-5)
    first, second, value = found.strongest_pairs(1)[0]
    off_diagonal = expected - torch.eye(4)
    assert abs(value) == pytest.approx(float(off_diagonal.abs().max()), rel=1e-4)
    assert value == pytest.approx(float(expected[first, second]), rel=1e-4)


def test_a_codebook_said_twice_is_found() -> None:
    centers = random_centers(1, 8, 8)
    twice = Quantizer(torch.cat((centers, centers)))
    # Frames near the doubled centres: both codebooks choose the same code.
    x = 2 * centers[0][torch.arange(400) % 8]
    assert evaluate(twice, x).strongest_pairs(1)[0][2] > 0.99


def test_guess_and_errors_are_the_naive_ones(
    quantizer: Quantizer, frames: Tensor, found: Evaluation
) -> None:
    guess = relative_error(quantizer, frames, quantizer.encode(frames, num_passes=0))
    assert found.first_guess_error == pytest.approx(guess, rel=1e-5)
    assert found.used_bits == pytest.approx(sum(found.entropies) * 3)


def test_report_says_what_it_should(
    tmp_path: Path, quantizer: Quantizer, found: Evaluation
) -> None:
    write_report(tmp_path, quantizer, found, found)
    report = (tmp_path / "report.md").read_text()
    for expected in ("12 (300 bits/s)", "How to read this", "What stands out"):
        assert expected in report
    write_report(tmp_path, quantizer, found, found)
    assert (tmp_path / "report.md").read_text() == report


@pytest.mark.usefixtures("pictures")
def test_report_shows_its_pictures(tmp_path: Path, quantizer: Quantizer, found: Evaluation) -> None:
    write_report(tmp_path, quantizer, found, found)
    report = (tmp_path / "report.md").read_text()
    for name in ("usage.png", "codebooks.png", "training.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in report
    newborn = Quantizer(quantizer.centers, metadata={})
    write_report(tmp_path / "short", newborn, found, found)
    assert not (tmp_path / "short" / "training.png").exists()


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("num_codebooks", "codebook_size"), [(1, 4096), (64, 256)])
def test_pictures_of_the_largest_quantisers(
    tmp_path: Path, num_codebooks: int, codebook_size: int
) -> None:
    usage = torch.zeros(num_codebooks, codebook_size, dtype=torch.long)
    usage[:, ::2] = 3
    large = Evaluation(
        num_frames=1000,
        relative_error=0.1,
        first_guess_error=None,
        errors_without=[0.2] * num_codebooks,
        entropies=[0.9] * num_codebooks,
        usage=usage,
        correlations=torch.eye(num_codebooks, dtype=torch.float64),
    )
    assert draw_usage(tmp_path / "usage.png", large)
    assert draw_codebooks(tmp_path / "books.png", {"train": large}) == (num_codebooks > 1)


def test_usage_is_sorted_and_unused_codes_are_not_hidden() -> None:
    usage = torch.tensor([[1, 4, 0, 3]])
    assert np.array_equal(relative_usage(usage), [[1.0, np.log2(1.5), -1.0, -np.inf]])
    many = torch.ones(2, 4096, dtype=torch.long)
    many[1, 7] = 0
    shown = relative_usage(many)
    assert shown.shape == (2, 512)
    assert np.isinf(shown[1, -1])
    assert np.isfinite(shown[0]).all()


def evaluation(**changes: object) -> Evaluation:
    values: dict[str, object] = {
        "num_frames": 1000,
        "relative_error": 0.1,
        "first_guess_error": 0.2,
        "errors_without": [0.2, 0.2, 0.2],
        "entropies": [0.98, 0.98, 0.98],
        "usage": torch.ones(3, 8, dtype=torch.long),
        "correlations": torch.eye(3, dtype=torch.float64),
    }
    return Evaluation(**{**values, **changes})  # type: ignore[arg-type]


def test_the_report_names_what_is_unusual_and_nothing_else() -> None:
    usual = evaluation()
    assert find_unusual(usual, usual) == []
    tied = torch.eye(3, dtype=torch.float64)
    tied[2, 1] = tied[1, 2] = -0.6
    unused = torch.ones(3, 8, dtype=torch.long)
    unused[0, 0] = 0
    cases = {
        "2.00 times the training error": (usual, evaluation(relative_error=0.2)),
        "70% of the variance is lost": (usual, evaluation(relative_error=0.7)),
        "1 of 24 codes are unused": (evaluation(usage=unused), usual),
        "below 0.85 in codebook 2": (evaluation(entropies=[0.9, 0.9, 0.5]), usual),
        "codebooks have an order": (usual, evaluation(errors_without=[0.2, 0.9, 0.2])),
        "Codebooks 1 and 2 (-0.60)": (usual, evaluation(correlations=tied)),
        "on 70 frames only, 8.8 for every code": (evaluation(num_frames=70), usual),
    }
    for expected, (train, held_out) in cases.items():
        assert any(expected in found for found in find_unusual(train, held_out)), expected


def test_descriptions_of_what_frames_say(quantizer: Quantizer, found: Evaluation) -> None:
    text = "\n".join(evaluation_blocks(quantizer, {"frames": found}))
    for expected in (f"{found.relative_error:.4f}", "unused codes", "bits/s)"):
        assert expected in text
    assert "25.0" in describe(quantizer)


def test_info_measures_on_frames(
    tmp_path: Path, quantizer: Quantizer, frames: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "q.safetensors"
    quantizer.save(path)
    np.save(tmp_path / "x.frames.npy", frames.numpy())
    (tmp_path / "x.frames.json").write_text(json.dumps({"teacher": TEACHER}))
    words = ["info", "quantizer", str(path)]
    assert main(words) == 0
    assert "relative error" not in capsys.readouterr().out
    assert main([*words, "--frames", str(tmp_path / "x")]) == 0
    error = relative_error(quantizer, frames, quantizer.encode(frames))
    assert f"{error:.4f}" in capsys.readouterr().out
    (tmp_path / "x.frames.json").write_text(
        json.dumps({"teacher": {**TEACHER, "weights_sha256": "cd"}})
    )
    assert main([*words, "--frames", str(tmp_path / "x")]) == 2
    assert "different teachers" in capsys.readouterr().err
    assert main([*words, "--pictures", str(tmp_path)]) == 2
    assert "give frames" in capsys.readouterr().err
