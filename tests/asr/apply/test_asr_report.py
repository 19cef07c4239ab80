"""The report of a decoding: its numbers are those of the score, the worst come first."""

import pytest

from spear.asr.apply.decode import DecodeConfig, run
from spear.asr.apply.error_report import NUM_WORST, SplitResult, group_by_length, write_report
from spear.asr.scoring import ErrorCounts, Recognition, score

RESULTS = [
    Recognition("utt2", "ONE TWO THREE", "ONE TOO FOUR", "anna"),
    Recognition("utt1", "FOUR FIVE", "FOUR FIVE", "bert"),
    Recognition("utt3", "SIX | <unk>", "", "anna"),
    Recognition("utt4", "", "NOISE"),
]


def scored(recognitions, num_recordings=None):
    return SplitResult(num_recordings or len(recognitions), recognitions, score(recognitions))


def tables(folder):
    lines = (folder / "report.md").read_text().splitlines()
    return [line for line in lines if line.startswith("| ")]


@pytest.mark.usefixtures("pictures")
def test_rates_and_worst_utterances(tmp_path):
    results = {
        "test": scored(RESULTS, num_recordings=7),
        "audio": SplitResult(3, audio_s=80.0, decoding_s=2.0),
    }
    write_report(tmp_path, results, "averaged")
    scores = results["test"].scores
    assert (scores.words.num_ref, scores.words.num_errors) == (8, 6)
    cer, (low, high) = scores.characters.percent, scores.interval
    counts = f"75.00 | {low:.2f} to {high:.2f} | 1 | 3 | 2 | {cer:.2f} | 3"
    assert tables(tmp_path) == [
        "| split | scored | not scored | words | WER % | 95% interval | ins | del | sub | CER % | "
        "wrong | RTF |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| test | 4 | 3 | 8 | {counts} |  |",
        "| audio | 0 | 3 |  |  |  |  |  |  |  |  | 0.0250 |",
        "| utterance | errors | words | reference | recognised |",
        "| --- | ---: | ---: | --- | --- |",
        "| `utt3` | 3 | 3 | `SIX \\| <unk>` |  |",
        "| `utt2` | 2 | 3 | `ONE TWO THREE` | `ONE TOO FOUR` |",
        "| `utt4` | 1 | 0 |  | `NOISE` |",
    ]
    text = (tmp_path / "report.md").read_text()
    assert "## Most errors in test" in text and "`errs-test.txt`" in text
    assert "Weights: averaged." in text and "](report.png)" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_worst_are_shown_in_a_fixed_order(tmp_path):
    many = [Recognition(f"u{i:02d}", "A " * (1 + i % 3), "") for i in range(40)]
    write_report(tmp_path, {"test": scored(many)}, "last")
    shown = [line.split(" | ")[0] for line in tables(tmp_path)[5:]]
    assert shown == [f"| `u{3 * i + 2:02d}`" for i in range(NUM_WORST)]
    first = (tmp_path / "report.md").read_bytes()
    write_report(tmp_path, {"test": scored(many[::-1])}, "last")
    assert (tmp_path / "report.md").read_bytes() == first


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("result", [SplitResult(3), scored([Recognition("u", "A", "A")])])
def test_without_errors_there_is_no_list(tmp_path, result):
    write_report(tmp_path, {"test": result}, "last")
    assert "Most errors" not in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").exists() == (result.scores is not None)


def test_groups_hold_every_word_once():
    errors = [ErrorCounts(length, 0, 0, 1) for length in (0, 1, 2, 3, 4, 5, 9)]
    groups = group_by_length(errors, 3)
    assert groups == {
        1: ErrorCounts(6, 0, 0, 3),
        4: ErrorCounts(9, 0, 0, 2),
        7: ErrorCounts(9, 0, 0, 1),
    }
    assert list(groups) == [1, 4, 7]
    assert list(group_by_length(errors, 1)) == [1, 2, 3, 4, 5, 9]


@pytest.mark.usefixtures("pictures")
def test_decoding_leaves_its_report(trained_run, sing, write_shards, tmp_path):
    utterances = [
        ("one", sing("AB CD"), "AB CD", "x"),
        ("two", sing("DA"), "DA BC", "y"),
        ("three", sing("D"), None, None),
    ]
    shards = write_shards(tmp_path / "wrong", utterances)
    output = tmp_path / "out"
    run(DecodeConfig(str(trained_run), [str(shards)], output_dir=str(output)))
    assert tables(output)[2].startswith("| wrong | 2 | 1 | 4 | 25.00 | 0.00 to 50.00 | 0 | ")
    assert tables(output)[5] == "| `two` | 1 | 2 | `DA BC` | `DA` |"
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")
