"""Error rates against numbers counted by hand, and against a plain edit distance."""

import math
import random

import pytest

from spear.asr.scoring import (
    GAP,
    ErrorCounts,
    Recognition,
    align,
    bootstrap_interval,
    character_errors,
    format_alignment,
    score,
    word_errors,
    write_score_files,
)


def edit_distance(ref, hyp):
    """The textbook recursion, row by row."""
    row = list(range(len(hyp) + 1))
    for i, said in enumerate(ref, 1):
        previous, row = row, [i]
        for j, heard in enumerate(hyp, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (said != heard)))
    return row[-1]


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        ("a b c", "a b c", ErrorCounts(3, 0, 0, 0)),
        ("a b c", "a x c", ErrorCounts(3, 0, 0, 1)),
        ("a b c", "a c", ErrorCounts(3, 0, 1, 0)),
        ("a b c", "a b c d", ErrorCounts(3, 1, 0, 0)),
        ("a b c", "", ErrorCounts(3, 0, 3, 0)),
        ("", "a b", ErrorCounts(0, 2, 0, 0)),
        ("", "", ErrorCounts(0, 0, 0, 0)),
        ("* a", "a", ErrorCounts(2, 0, 1, 0)),
        ("one two three four", "two tree four five", ErrorCounts(4, 1, 1, 1)),
    ],
)
def test_errors_counted_by_hand(ref, hyp, expected):
    assert word_errors(ref, hyp) == expected


def test_the_number_of_errors_is_the_edit_distance():
    rng = random.Random(0)
    for _ in range(200):
        ref, hyp = (" ".join(rng.choice("abc") for _ in range(rng.randrange(9))) for _ in range(2))
        counts = word_errors(ref, hyp)
        assert counts.num_errors == edit_distance(ref.split(), hyp.split())
        assert len(hyp.split()) == counts.num_ref - counts.num_del + counts.num_ins


def test_characters_count_spaces_between_words():
    assert character_errors("ab cd", "abcd") == ErrorCounts(5, 0, 1, 0)
    assert character_errors("ab", " ab ") == ErrorCounts(2, 0, 0, 0)


def test_kaldis_line():
    counts = ErrorCounts(num_ref=221, num_ins=2, num_del=3, num_sub=7)
    assert counts.line() == "%WER 5.43 [ 12 / 221, 2 ins, 3 del, 7 sub ]"


def test_rates_without_reference_words():
    assert ErrorCounts().percent == 0.0
    assert ErrorCounts(num_ins=2).percent == math.inf


def test_alignments_are_readable():
    pairs = align(["a", "b", "c"], ["a", "x", "c", "d"])
    assert pairs == [("a", "a"), ("b", "x"), ("c", "c"), (GAP, "d")]
    assert format_alignment(pairs) == "a (b->x) c (*->d)"
    assert format_alignment(align(["a", "b"], ["b"])) == "(a->*) b"


RESULTS = [
    Recognition("utt2", "ONE TWO THREE", "ONE TOO THREE", "anna"),
    Recognition("utt1", "FOUR FIVE", "FOUR FIVE", "bert"),
    Recognition("utt3", "SIX", "", "anna"),
    Recognition("utt4", "", "NOISE"),
]


def test_totals_and_speakers():
    scores = score(RESULTS)
    assert scores.words == ErrorCounts(6, 1, 1, 1)
    assert (scores.num_utterances, scores.num_wrong_utterances) == (4, 3)
    assert scores.speakers == {
        "-": ErrorCounts(0, 1, 0, 0),
        "anna": ErrorCounts(4, 0, 1, 1),
        "bert": ErrorCounts(2, 0, 0, 0),
    }
    assert scores.summary()["wer"] == 50.0
    assert scores.summary()["num_words"] == 6


def test_an_infinite_rate_is_null_in_json():
    assert score([Recognition("u", "", "A")]).summary()["wer"] is None


def test_the_interval_of_many_like_utterances_is_that_of_the_binomial():
    rng = random.Random(1)
    counts = [ErrorCounts(1, 0, 0, int(rng.random() < 0.2)) for _ in range(2000)]
    low, high = bootstrap_interval(counts)
    rate = sum(one.num_sub for one in counts) / len(counts)
    half_width = 100 * 1.96 * math.sqrt(rate * (1 - rate) / len(counts))
    assert high - 100 * rate == pytest.approx(half_width, rel=0.15)
    assert 100 * rate - low == pytest.approx(half_width, rel=0.15)
    assert bootstrap_interval(counts) == (low, high)


def test_errors_that_come_together_widen_the_interval():
    apart = [ErrorCounts(10, 0, 0, 2)] * 100
    together = [ErrorCounts(10, 0, 0, 10 if i % 5 == 0 else 0) for i in range(100)]
    assert bootstrap_interval(apart) == pytest.approx((20.0, 20.0))
    low, high = bootstrap_interval(together)
    assert low < 15.0 and high > 25.0


def test_intervals_without_reference_words():
    assert bootstrap_interval([ErrorCounts()]) == (0.0, 0.0)
    assert bootstrap_interval([ErrorCounts(num_ins=1)]) == (math.inf, math.inf)
    assert score([Recognition("u", "", "A")]).summary()["wer_high"] is None


def test_files(tmp_path):
    write_score_files(tmp_path, "test", RESULTS)
    wer = (tmp_path / "wer-test.txt").read_text().splitlines()
    assert wer[0] == "%WER 50.00 [ 3 / 6, 1 ins, 1 del, 1 sub ]"
    assert wer[1].startswith("%CER ")
    assert wer[2] == "%SER 75.00 [ 3 / 4 ]"
    assert wer[3].startswith("95% interval of the WER")
    assert any(line.split() == ["anna", "4", "0", "1", "1", "50.00"] for line in wer)
    recogs = (tmp_path / "recogs-test.txt").read_text().splitlines()
    assert recogs[:2] == ["utt1:\tref=FOUR FIVE", "utt1:\thyp=FOUR FIVE"]
    assert "utt3:\thyp=" in recogs
    errs = (tmp_path / "errs-test.txt").read_text()
    assert "utt2\t1\tONE (TWO->TOO) THREE" in errs
    assert "1\tTWO -> TOO" in errs
    assert "1\tSIX -> *" in errs
    assert "1\t* -> NOISE" in errs
