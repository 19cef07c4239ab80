"""K-means, residual VQ and random projection against naive references, behind one interface."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from spear.cli import main
from spear.errors import CheckpointError, ConfigError, DataError, TokenError
from spear.mvq import (
    BaselineBudget,
    CodebookQuantizer,
    KMeansQuantizer,
    Quantizer,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    describe,
    load_quantizer,
    train_baseline,
)
from spear.mvq.evaluation import evaluate
from spear.mvq.quantizers.kmeans import NearestCenter, lloyd
from spear.mvq.quantizers.random_projection import random_projections
from spear.mvq.report import write_report
from spear.mvq.training.baselines import fit_decoding
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error

DIM = 16
SIZES = {"kmeans": (1, 300), "residual": (4, 24), "random-projection": (3, 40)}
KINDS = tuple(SIZES)


def frames_for(num_frames: int, seed: int = 0) -> Tensor:
    return correlated_frames(num_frames, DIM, seed)


@pytest.fixture(scope="module")
def trained() -> dict[str, CodebookQuantizer]:
    metadata = {"teacher": json.dumps({"name": "wavlm", "frame_rate_hz": 50.0})}
    return {
        kind: train_baseline(
            kind, frames_for(2000), *sizes, normalize_channels=True, metadata=metadata
        )
        for kind, sizes in SIZES.items()
    }


def naive_nearest(points: Tensor, centers: Tensor) -> Tensor:
    codes = []
    for point in points.double():
        distances = [float((point - center).square().sum()) for center in centers.double()]
        codes.append(distances.index(min(distances)))
    return torch.tensor(codes)


def test_kmeans_takes_the_nearest_centre(trained: dict[str, CodebookQuantizer]) -> None:
    quantizer, frames = trained["kmeans"], frames_for(60, seed=1)
    expected = naive_nearest(quantizer.normalize(frames), quantizer.centers[0])
    codes = quantizer.encode(frames)
    assert codes.dtype == torch.uint16
    assert torch.equal(codes[:, 0].long(), expected)
    decoded = quantizer.denormalize(quantizer.centers[0][expected])
    torch.testing.assert_close(quantizer.decode(codes), decoded)


def test_residual_codes_are_those_of_stage_after_stage(
    trained: dict[str, CodebookQuantizer],
) -> None:
    quantizer, frames = trained["residual"], frames_for(60, seed=1)
    residual, expected = quantizer.normalize(frames), []
    for centers in quantizer.centers:
        expected.append(naive_nearest(residual, centers))
        residual = residual - centers[expected[-1]]
    codes = quantizer.encode(frames)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.long(), torch.stack(expected, dim=1))
    lost = quantizer.normalize(frames) - quantizer.normalize(quantizer.decode(codes))
    torch.testing.assert_close(lost, residual, rtol=1e-4, atol=1e-5)


def test_every_residual_stage_helps(trained: dict[str, CodebookQuantizer]) -> None:
    quantizer, frames = trained["residual"], frames_for(500, seed=1)
    codes, errors = quantizer.encode(frames), []
    for depth in range(1, 5):
        part = ResidualQuantizer(
            quantizer.centers[:depth],
            channel_mean=quantizer.channel_mean,
            channel_scale=quantizer.channel_scale,
        )
        assert torch.equal(part.encode(frames), codes[:, :depth])
        errors.append(relative_error(part, frames, codes[:, :depth]))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.5 * errors[0]


def test_random_projection_takes_the_largest_cosine(
    trained: dict[str, CodebookQuantizer],
) -> None:
    quantizer, frames = trained["random-projection"], frames_for(60, seed=1)
    assert isinstance(quantizer, RandomProjectionQuantizer)
    codes = quantizer.encode(frames)
    points = quantizer.normalize(frames)
    for n in range(3):
        for point, code in zip(points, codes[:, n].long(), strict=True):
            projected = quantizer.projection[n] @ point
            cosines = F.cosine_similarity(projected[None], quantizer.directions[n])
            assert int(cosines.argmax()) == int(code)


def test_random_projections_are_drawn_as_in_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    projection, directions = random_projections(48, 2, 500, 16, generator)
    bound = (6 / (48 + 16)) ** 0.5
    assert projection.shape == (2, 16, 48)
    assert float(projection.abs().max()) <= bound
    assert float(projection.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    torch.testing.assert_close(directions.norm(dim=2), torch.ones(2, 500))
    assert float(directions.mean()) == pytest.approx(0, abs=0.01)


def test_random_projections_decoding_is_the_least_squares_one() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 5, generator=generator) + 4
    codes = torch.randint(8, (300, 2), generator=generator)
    one_hot = torch.cat([F.one_hot(codes[:, n], 8) for n in range(2)], dim=1).double()
    best = one_hot @ torch.linalg.pinv(one_hot) @ points.double()
    table = fit_decoding(points, codes, 8)
    found = table[0][codes[:, 0]] + table[1][codes[:, 1]]
    torch.testing.assert_close(found.double(), best, rtol=1e-4, atol=1e-4)


def test_with_one_codebook_the_decoding_holds_class_means() -> None:
    points, codes = frames_for(200), torch.arange(200)[:, None] % 7
    table = fit_decoding(points, codes, 9)
    for code in range(7):
        mean = points[codes[:, 0] == code].mean(dim=0)
        torch.testing.assert_close(table[0, code], mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(table[0, 8], points.mean(dim=0))  # no frame has it


def test_lloyd_ends_where_centres_are_means_of_their_points() -> None:
    points = frames_for(600)
    centers = lloyd(points, 20, torch.Generator().manual_seed(0), range(100))
    codes = NearestCenter(centers)(points)
    for code in range(20):
        own = points[codes == code]
        torch.testing.assert_close(centers[code], own.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_lloyd_revives_empty_clusters() -> None:
    points = torch.cat((torch.zeros(95, 3), torch.eye(3), 5 + torch.eye(3)[:2]))
    centers = lloyd(points, 6, torch.Generator().manual_seed(0), range(20))
    found = {int(code) for code in NearestCenter(centers)(points)}
    assert len(found) == 6


def test_lloyd_depends_on_no_common_offset() -> None:
    points = frames_for(400)
    plain = lloyd(points, 16, torch.Generator().manual_seed(0), range(10))
    moved = lloyd(points + 1000, 16, torch.Generator().manual_seed(0), range(10))
    torch.testing.assert_close(moved - 1000, plain, rtol=0, atol=2e-3)


@pytest.mark.parametrize("cls", [KMeansQuantizer, ResidualQuantizer])
def test_the_first_of_equally_near_centres_is_taken(cls: type[CodebookQuantizer]) -> None:
    centers = random_centers(1, 40, 8)
    centers[0, 31] = centers[0, 7]
    codes = cls(centers).encode(centers[0])[:, 0].tolist()
    assert codes == [*range(31), 7, *range(32, 40)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 599), length=st.integers(1, 600), seed=st.integers(0, 3))
def test_tokens_depend_on_no_batch_mate(
    trained: dict[str, CodebookQuantizer], kind: str, start: int, length: int, seed: int
) -> None:
    frames, quantizer = frames_for(600, seed=2), trained[kind]
    whole = quantizer.encode(frames).long()
    part = slice(start, start + length)
    assert torch.equal(quantizer.encode(frames[part]).long(), whole[part])
    order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer.encode(frames[order]).long(), whole[order])


@pytest.mark.parametrize("kind", KINDS)
def test_the_interface_is_that_of_the_quantiser(
    trained: dict[str, CodebookQuantizer], kind: str, tmp_path: Path
) -> None:
    quantizer, frames = trained[kind], frames_for(90, seed=1)
    num_codebooks, codebook_size = SIZES[kind]
    assert (quantizer.dim, quantizer.num_codebooks, quantizer.codebook_size) == (
        DIM,
        num_codebooks,
        codebook_size,
    )
    codes = quantizer.encode(frames.view(3, 30, DIM))
    assert codes.shape == (3, 30, num_codebooks)
    assert torch.equal(quantizer(frames), codes.view(90, num_codebooks))
    assert quantizer.encode(frames[:0]).shape == (0, num_codebooks)
    assert quantizer.encode(frames[0]).shape == (num_codebooks,)
    assert quantizer.decode(codes).shape == (3, 30, DIM)
    assert torch.equal(quantizer.encode(frames.half()), quantizer.encode(frames.half().float()))
    small = quantizer.encode(frames, max_batch_frames=7)
    assert relative_error(quantizer, frames, small) == pytest.approx(
        relative_error(quantizer, frames, quantizer.encode(frames)), rel=1e-3
    )
    path = tmp_path / "q.safetensors"
    quantizer.save(path)
    loaded = load_quantizer(path)
    assert type(loaded) is type(quantizer)
    assert (loaded.id, loaded.metadata) == (quantizer.id, quantizer.metadata)
    assert torch.equal(loaded.encode(frames), quantizer.encode(frames))
    other = tmp_path / "other.safetensors"
    type(quantizer).load(path).save(other)
    assert other.read_bytes() == path.read_bytes()
    with pytest.raises(CheckpointError, match=f"of kind '{kind}', not 'mvq'"):
        Quantizer.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_works_on_every_kind(
    trained: dict[str, CodebookQuantizer],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantizer = trained[kind]
    train, held_out = evaluate(quantizer, frames_for(2000)), evaluate(quantizer, frames_for(300, 1))
    frames = frames_for(300, 1)
    expected = relative_error(quantizer, frames, quantizer.encode(frames))
    assert held_out.relative_error == pytest.approx(expected, rel=1e-4)
    assert held_out.relative_error < 0.4
    assert held_out.first_guess_error is None
    write_report(tmp_path, quantizer, train, held_out)
    assert kind in (tmp_path / "report.md").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["codebook_size"] == SIZES[kind][1]
    assert kind in describe(quantizer)
    quantizer.save(tmp_path / "q.safetensors")
    assert main(["info", "quantizer", str(tmp_path / "q.safetensors")]) == 0
    assert kind in capsys.readouterr().out


def test_more_learning_gives_less_error(trained: dict[str, CodebookQuantizer]) -> None:
    frames = frames_for(1000, seed=1)
    errors = {kind: evaluate(one, frames).relative_error for kind, one in trained.items()}
    assert errors["residual"] < errors["kmeans"] < errors["random-projection"] < 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides(trained: dict[str, CodebookQuantizer], kind: str) -> None:
    first = trained[kind]
    again = train_baseline(kind, frames_for(2000).numpy(), *SIZES[kind], normalize_channels=True)
    assert again.id == first.id
    other = train_baseline(kind, frames_for(2000), *SIZES[kind], normalize_channels=True, seed=1)
    assert other.id != first.id


def test_kinds_with_equal_tensors_have_ids_of_their_own() -> None:
    centers = random_centers(1, 8, 4)
    assert KMeansQuantizer(centers).id != ResidualQuantizer(centers).id


def test_only_the_rows_asked_for_are_learnt_from() -> None:
    frames, rows = frames_for(600), torch.arange(0, 600, 2)
    found = train_baseline("kmeans", frames, 1, 20, rows=rows)
    assert found.id == train_baseline("kmeans", frames[::2], 1, 20).id


def test_a_sample_is_drawn_where_there_are_too_many_frames() -> None:
    frames = frames_for(600)
    budget = BaselineBudget(max_frames=100)
    found = train_baseline("kmeans", frames, 1, 100, budget=budget)
    assert evaluate(found, frames).relative_error > 0
    rows = {tuple(row.tolist()) for row in frames}
    assert all(tuple(center.tolist()) in rows for center in found.centers[0])


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("kmeans", (1, 4097), "2 to 4096, not 4097"),
        ("kmeans", (2, 16), "num_codebooks must be 1, not 2"),
        ("residual", (2, 257), "2 to 256, not 257"),
        ("residual", (65, 16), "1 to 64, not 65"),
        ("random-projection", (1, 8193), "2 to 8192, not 8193"),
        ("random-projection", (3, 8192), "more than 16,384 codes"),
        ("mvq", (2, 16), "no baseline is called 'mvq'"),
    ],
)
def test_impossible_sizes_are_refused(kind: str, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_baseline(kind, frames_for(50), *sizes)


@pytest.mark.parametrize(
    "budget",
    [
        BaselineBudget(num_iterations=0),
        BaselineBudget(projected_dim=0),
        BaselineBudget(max_frames=15),
    ],
)
def test_impossible_budgets_are_refused(budget: BaselineBudget) -> None:
    with pytest.raises(ConfigError, match="baseline"):
        train_baseline("kmeans", frames_for(50), 1, 16, budget=budget)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_frames_are_refused(trained: dict[str, CodebookQuantizer], kind: str) -> None:
    num_codebooks, codebook_size = SIZES[kind]
    with pytest.raises(DataError, match=f"{codebook_size - 1} frames are too few"):
        train_baseline(kind, frames_for(codebook_size - 1), num_codebooks, codebook_size)
    with pytest.raises(DataError, match="must be"):
        train_baseline(kind, frames_for(400)[0], num_codebooks, codebook_size)
    bad = frames_for(400)
    bad[123, 4] = float("nan")
    with pytest.raises(DataError, match="frame 123"):
        train_baseline(kind, bad, num_codebooks, codebook_size)
    quantizer = trained[kind]
    with pytest.raises(DataError, match="NaN"):
        quantizer.encode(bad)
    with pytest.raises(ConfigError, match=r"trained on wavlm.*width 15"):
        quantizer.encode(bad[:, :15])
    with pytest.raises(TokenError, match="another quantiser"):
        quantizer.decode(torch.full((4, num_codebooks), codebook_size))


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_named(
    trained: dict[str, CodebookQuantizer], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "q.safetensors"
    with pytest.raises(CheckpointError, match="no quantiser at"):
        load_quantizer(path)
    trained[kind].save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_quantizer(path)
    path.write_bytes(content[:-3] + b"\x00\x00\x3f")
    with pytest.raises(CheckpointError, match="is broken"):
        load_quantizer(path)
    path.write_bytes(content)
    tensors = load_file(path)
    save_file(tensors, path, {"format_version": "1", "kind": "magic"})
    with pytest.raises(CheckpointError, match="kind 'magic'"):
        load_quantizer(path)
    save_file({**tensors, "more": torch.zeros(2)}, path, {"format_version": "1", "kind": kind})
    with pytest.raises(CheckpointError, match="no quantiser of format version"):
        load_quantizer(path)


def test_files_without_a_kind_hold_the_multi_codebook_quantiser(tmp_path: Path) -> None:
    quantizer = Quantizer(random_centers(2, 4, 8))
    path = tmp_path / "q.safetensors"
    quantizer.save(path)
    metadata = {"format_version": "1", "id": quantizer.id}
    save_file(load_file(path), path, metadata)
    assert isinstance(load_quantizer(path), Quantizer)
    assert Quantizer.load(path).metadata == {}
