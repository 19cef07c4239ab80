"""The search on the table of inner products, against definitions and exhaustive search."""

import itertools

import pytest
import torch
from mvq_frames import random_centers
from torch import Tensor

from spear.mvq.search import ProductTable, block_frames, num_kept, refine, search


def all_codes(num_codebooks: int, codebook_size: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(codebook_size), repeat=num_codebooks)))


def naive_decode(centers: Tensor, codes: Tensor) -> Tensor:
    return sum(centers[n][codes[:, n]] for n in range(len(centers)))


def naive_errors(centers: Tensor, frames: Tensor, codes: Tensor) -> Tensor:
    return (frames.double() - naive_decode(centers.double(), codes)).square().sum(dim=1)


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(50, 12, generator=torch.Generator().manual_seed(7)) + 1


def test_table_gives_the_squared_error(frames: Tensor) -> None:
    centers = random_centers(3, 5, 12)
    table = ProductTable(centers)
    codes = torch.randint(5, (50, 3), generator=torch.Generator().manual_seed(1))
    unary = table.unary(frames).view(50, 3, 5)
    rows = codes + table.first_rows
    by_table = (frames - table.offset).square().sum(dim=1)
    for n in range(3):
        by_table = by_table + unary[torch.arange(50), n, codes[:, n]]
        for m in range(n):
            by_table = by_table + table.cross[rows[:, n], rows[:, m]]
    expected = naive_errors(centers, frames, codes).float()
    torch.testing.assert_close(by_table, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(table.squared_errors(frames, codes), expected)
    torch.testing.assert_close(table.decode(codes), naive_decode(centers, codes))


def test_table_has_no_products_within_a_codebook() -> None:
    table = ProductTable(random_centers(3, 4, 6))
    for n in range(3):
        own = slice(4 * n, 4 * n + 4)
        assert (table.cross[own, own] == 0).all()
    torch.testing.assert_close(table.cross, table.cross.t())


@pytest.mark.parametrize(
    ("num_codebooks", "codebook_size"), [(1, 7), (2, 5), (3, 4), (4, 3), (5, 2)]
)
@pytest.mark.parametrize("start", ["undecided", "random"])
def test_full_width_finds_the_exhaustive_optimum(
    frames: Tensor, num_codebooks: int, codebook_size: int, start: str
) -> None:
    centers = random_centers(num_codebooks, codebook_size, 12)
    table = ProductTable(centers)
    every = all_codes(num_codebooks, codebook_size)
    distances = torch.cdist(frames.double(), naive_decode(centers.double(), every)).square()
    codes = None
    if start == "random":
        codes = torch.randint(codebook_size, (50, num_codebooks))
    found = refine(table, table.unary(frames), codes, beam_width=codebook_size**num_codebooks)
    assert torch.equal(found, every[distances.argmin(dim=1)])


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("beam_width", [2, 3, 8])
def test_a_pass_never_makes_any_frame_worse(
    num_codebooks: int, shift: int, beam_width: int
) -> None:
    centers = random_centers(num_codebooks, 9, 10, seed=num_codebooks)
    table = ProductTable(centers)
    frames = torch.randn(64, 10, generator=torch.Generator().manual_seed(3))
    codes = torch.randint(9, (64, num_codebooks), generator=torch.Generator().manual_seed(4))
    errors = naive_errors(centers, frames, codes)
    for _ in range(4):
        codes = refine(table, table.unary(frames), codes, beam_width, shift)
        new_errors = naive_errors(centers, frames, codes)
        assert (new_errors <= errors * (1 + 1e-5) + 1e-5).all()
        errors = new_errors


def test_a_pass_beats_changing_one_code_at_a_time(frames: Tensor) -> None:
    centers = random_centers(8, 16, 12)
    table = ProductTable(centers)
    unary = table.unary(frames)
    start = torch.zeros(50, 8, dtype=torch.long)
    descended = start.clone()
    for n in list(range(8)) * 6:
        options = descended.repeat(16, 1, 1)
        options[:, :, n] = torch.arange(16).unsqueeze(1)
        errors = torch.stack([naive_errors(centers, frames, option) for option in options])
        descended[:, n] = errors.argmin(dim=0)
    searched = search(table, unary, start, num_passes=3, beam_width=16)
    mean = naive_errors(centers, frames, searched).mean()
    assert mean < 0.95 * naive_errors(centers, frames, descended).mean()


def test_frames_do_not_influence_each_other(frames: Tensor) -> None:
    table = ProductTable(random_centers(6, 16, 12))
    unary = table.unary(frames)
    together = search(table, unary, None, num_passes=3, beam_width=8)
    alone = torch.cat(
        [search(table, row, None, num_passes=3, beam_width=8) for row in unary.split(1)]
    )
    assert torch.equal(together, alone)


def test_search_splits_large_inputs_into_blocks() -> None:
    table = ProductTable(random_centers(16, 32, 8))
    size = block_frames(table, 32, torch.device("cpu"))
    assert size * (8 * 32) ** 2 <= 1 << 20
    frames = torch.randn(2 * size + 1, 8)
    unary = table.unary(frames)
    whole = search(table, unary, None, num_passes=1, beam_width=32)
    parts = [search(table, part, None, num_passes=1, beam_width=32) for part in unary.split(5)]
    assert torch.equal(whole, torch.cat(parts))


def test_no_pass_returns_the_guess_and_more_passes_only_help(frames: Tensor) -> None:
    centers = random_centers(7, 8, 12)
    table = ProductTable(centers)
    unary = table.unary(frames)
    guess = torch.randint(8, (50, 7), generator=torch.Generator().manual_seed(2))
    assert torch.equal(search(table, unary, guess, num_passes=0, beam_width=8), guess)
    errors = [
        naive_errors(centers, frames, search(table, unary, guess, num_passes=p, beam_width=8))
        for p in range(5)
    ]
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-5).all()
    assert errors[1].mean() < 0.5 * errors[0].mean()


def test_the_guess_is_not_changed_in_place(frames: Tensor) -> None:
    table = ProductTable(random_centers(4, 8, 12))
    guess = torch.zeros(50, 4, dtype=torch.long)
    search(table, table.unary(frames), guess, num_passes=2, beam_width=8)
    assert (guess == 0).all()


def test_equal_centres_give_the_same_answer_every_time(frames: Tensor) -> None:
    centers = random_centers(4, 8, 12)
    centers[:, 4:] = centers[:, :4]
    table = ProductTable(centers)
    unary = table.unary(frames)
    first = search(table, unary, None, num_passes=3, beam_width=8)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    again = search(table, unary[shuffled], None, num_passes=3, beam_width=8)
    assert torch.equal(first[shuffled], again)


def test_kept_candidates_double_as_in_the_reference() -> None:
    assert [num_kept(16, length) for length in (1, 2, 4, 8, 16)] == [16, 16, 32, 32, 64]


def test_no_frames_give_no_codes() -> None:
    table = ProductTable(random_centers(3, 4, 6))
    unary = table.unary(torch.empty(0, 6))
    assert search(table, unary, None, num_passes=3, beam_width=4).shape == (0, 3)
