"""The search on the table of inner products, against definitions and exhaustive search."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spear.mvq.search.joint as search_module
from spear.mvq.search.joint import search_by_torch, sweep
from spear.mvq.search.limits import num_kept
from spear.mvq.search.merge_pass import block_frames, merge_pass
from spear.mvq.search.products import ProductTable
from tests.mvq.mvq_frames import random_centers

Search = Callable[..., Tensor]


@pytest.fixture(params=["torch", "numba"])
def search(request: pytest.FixtureRequest) -> Search:
    """Both implementations."""
    if request.param == "torch":
        return search_by_torch
    pytest.importorskip("numba")
    return search_module.search


def integer_table(
    num_codebooks: int, codebook_size: int, dim: int, generator: torch.Generator
) -> ProductTable:
    """Small whole centres: all arithmetic on them is exact, and many choices are equally good."""
    shape = (num_codebooks, codebook_size, dim)
    centers = torch.randint(-3, 4, shape, generator=generator).float()
    table = ProductTable(centers)
    table.offset = torch.zeros(dim)
    table.centered = centers.flatten(0, 1)
    table.squared_norms = table.centered.square().sum(dim=1)
    for own in range(num_codebooks):
        rows = slice(own * codebook_size, (own + 1) * codebook_size)
        table.cross[rows] = 2 * table.centered[rows] @ table.centered.t()
        table.cross[rows, rows] = 0
    return table


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
    frames: Tensor, num_codebooks: int, codebook_size: int, start: str, search: Search
) -> None:
    centers = random_centers(num_codebooks, codebook_size, 12)
    table = ProductTable(centers)
    every = all_codes(num_codebooks, codebook_size)
    distances = torch.cdist(frames.double(), naive_decode(centers.double(), every)).square()
    codes = None
    if start == "random":
        codes = torch.randint(codebook_size, (50, num_codebooks))
    width = codebook_size**num_codebooks
    found = search(table, table.unary(frames), codes, num_passes=1, beam_width=width)
    assert torch.equal(found, every[distances.argmin(dim=1)])


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("beam_width", [2, 3, 8])
def test_a_pass_never_makes_any_frame_worse(num_codebooks: int, beam_width: int) -> None:
    centers = random_centers(num_codebooks, 9, 10, seed=num_codebooks)
    table = ProductTable(centers)
    frames = torch.randn(64, 10, generator=torch.Generator().manual_seed(3))
    codes = torch.randint(9, (64, num_codebooks), generator=torch.Generator().manual_seed(4))
    errors = naive_errors(centers, frames, codes)
    for _ in range(4):
        codes = merge_pass(table, table.unary(frames), codes, beam_width)
        new_errors = naive_errors(centers, frames, codes)
        assert (new_errors <= errors * (1 + 1e-5) + 1e-5).all()
        errors = new_errors


def test_a_pass_beats_changing_one_code_at_a_time(frames: Tensor, search: Search) -> None:
    centers = random_centers(8, 16, 12)
    table = ProductTable(centers)
    unary = table.unary(frames)
    start = torch.zeros(50, 8, dtype=torch.long)
    descended = sweep(table, unary, start)
    by_hand = start.clone()
    for n in list(range(8)) * 16:
        options = by_hand.repeat(16, 1, 1)
        options[:, :, n] = torch.arange(16).unsqueeze(1)
        errors = torch.stack([naive_errors(centers, frames, option) for option in options])
        by_hand[:, n] = errors.argmin(dim=0)
    assert torch.equal(descended, by_hand)
    searched = search(table, unary, start, num_passes=3, beam_width=16)
    mean = naive_errors(centers, frames, searched).mean()
    assert mean < 0.95 * naive_errors(centers, frames, descended).mean()


def test_frames_do_not_influence_each_other(frames: Tensor, search: Search) -> None:
    table = ProductTable(random_centers(6, 16, 12))
    unary = table.unary(frames)
    together = search(table, unary, None, num_passes=3, beam_width=8)
    alone = torch.cat(
        [search(table, row, None, num_passes=3, beam_width=8) for row in unary.split(1)]
    )
    assert torch.equal(together, alone)


def test_search_splits_large_inputs_into_blocks(search: Search) -> None:
    table = ProductTable(random_centers(16, 32, 8))
    size = block_frames(table, 32, torch.device("cpu"))
    assert size * (8 * 32) ** 2 <= 1 << 20
    frames = torch.randn(2 * size + 1, 8)
    unary = table.unary(frames)
    whole = search(table, unary, None, num_passes=1, beam_width=32)
    parts = [search(table, part, None, num_passes=1, beam_width=32) for part in unary.split(5)]
    assert torch.equal(whole, torch.cat(parts))


def test_no_pass_returns_the_guess_and_more_passes_only_help(
    frames: Tensor, search: Search
) -> None:
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


def test_the_guess_is_not_changed_in_place(frames: Tensor, search: Search) -> None:
    table = ProductTable(random_centers(4, 8, 12))
    guess = torch.zeros(50, 4, dtype=torch.long)
    search(table, table.unary(frames), guess, num_passes=2, beam_width=8)
    assert (guess == 0).all()


def test_equal_centres_give_the_same_answer_every_time(frames: Tensor, search: Search) -> None:
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


def test_no_frames_give_no_codes(search: Search) -> None:
    table = ProductTable(random_centers(3, 4, 6))
    unary = table.unary(torch.empty(0, 6))
    assert search(table, unary, None, num_passes=3, beam_width=4).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(2, 20)),
    beam_width=st.integers(2, 20),
    num_passes=st.integers(0, 4),
    has_guess=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_compiled_and_plain_search_agree_even_where_choices_are_equally_good(
    sizes: tuple[int, int], beam_width: int, num_passes: int, has_guess: bool, seed: int
) -> None:
    compiled = pytest.importorskip("spear.mvq.search.compiled", exc_type=ImportError)
    num_codebooks, codebook_size = sizes
    generator = torch.Generator().manual_seed(seed)
    table = integer_table(num_codebooks, codebook_size, 6, generator)
    frames = torch.randint(-9, 10, (40, 6), generator=generator).float()
    guess = torch.randint(codebook_size, (40, num_codebooks), generator=generator)
    arguments = (table, table.unary(frames), guess if has_guess else None)
    plain = search_by_torch(*arguments, num_passes=num_passes, beam_width=beam_width)
    assert torch.equal(compiled.search(*arguments, num_passes, beam_width), plain)
    assert plain.min() >= 0
    assert plain.max() < codebook_size


@settings(max_examples=30, deadline=None)
@given(
    num_codebooks=st.integers(1, 10),
    codebook_size=st.integers(2, 16),
    num_frames=st.integers(1, 150),
    seed=st.integers(0, 2**31),
)
def test_order_and_company_of_frames_change_nothing(
    num_codebooks: int, codebook_size: int, num_frames: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = ProductTable(random_centers(num_codebooks, codebook_size, 6, seed % 1000))
    unary = table.unary(torch.randn(num_frames, 6, generator=generator))
    order = torch.randperm(num_frames, generator=generator)
    how = {"num_passes": 2, "beam_width": 4}
    whole = search_module.search(table, unary, None, **how)
    shuffled = [search_module.search(table, unary[part], None, **how) for part in order.split(17)]
    assert torch.equal(whole[order], torch.cat(shuffled))


def test_without_numba_the_search_is_the_plain_one(
    frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "is_installed", lambda: False)
    search_module._compiled_search.cache_clear()
    try:
        assert search_module._compiled_search() is None
        table = ProductTable(random_centers(4, 8, 12))
        how = {"num_passes": 2, "beam_width": 4}
        found = search_module.search(table, table.unary(frames), None, **how)
        assert torch.equal(found, search_by_torch(table, table.unary(frames), None, **how))
    finally:
        search_module._compiled_search.cache_clear()
