"""Selecting cuts by speaker and by seconds."""

import pytest
import select_cuts
from lhotse import CutSet, MonoCut, SupervisionSegment


def make_cut(name, speaker, duration):
    supervision = SupervisionSegment(name, name, 0.0, duration, speaker=speaker)
    return MonoCut(name, 0.0, duration, 0, supervisions=[supervision])


@pytest.fixture
def manifest(tmp_path):
    cuts = [
        make_cut(f"{speaker}-{number:02d}", speaker, 1.0 + 0.1 * number)
        for speaker in ("anna", "ben", "carl")
        for number in range(10)
    ]
    path = tmp_path / "all_cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def select(manifest, *words):
    output = manifest.parent / "new" / "selected.jsonl.gz"
    status = select_cuts.main(["--cuts", str(manifest), "--output", str(output), *words])
    return status, list(CutSet.from_file(output)) if output.exists() else None


def test_speakers_are_chosen_or_left_out(manifest):
    _, only = select(manifest, "--speakers", "ben", "carl")
    assert {cut.id.split("-")[0] for cut in only} == {"ben", "carl"}
    _, rest = select(manifest, "--but-speakers", "ben")
    assert {cut.id.split("-")[0] for cut in rest} == {"anna", "carl"}
    assert len(only) == len(rest) == 20


def test_seconds_are_a_limit_that_is_nearly_reached(manifest):
    for seconds in (5.0, 17.3, 43.5):
        status, cuts = select(manifest, "--seconds", str(seconds))
        assert status == 0
        total = sum(cut.duration for cut in cuts)
        assert seconds - 1.9 < total <= seconds + 1e-6


def test_speakers_take_turns(manifest):
    _, cuts = select(manifest, "--seconds", "20")
    counts = [sum(cut.id.startswith(name) for cut in cuts) for name in ("anna", "ben", "carl")]
    assert max(counts) - min(counts) <= 1


def test_less_is_a_part_of_more_and_another_seed_another_set(manifest):
    ids = {
        (seconds, seed): {c.id for c in select(manifest, "--seconds", seconds, "--seed", seed)[1]}
        for seconds in ("8", "20")
        for seed in ("0", "1")
    }
    assert ids["8", "0"] < ids["20", "0"]
    assert ids["8", "1"] < ids["20", "1"]
    assert ids["20", "0"] != ids["20", "1"]


def test_cuts_are_in_the_order_of_their_ids(manifest):
    _, cuts = select(manifest, "--seconds", "20")
    assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "44"], "44 s are asked for, and there are 43.5 s"),
        (["--seconds", "0.5"], "the first cut is longer than 0.5 s"),
        (["--speakers", "dora"], "no cut of 'dora'; the speakers are anna, ben, carl"),
        (["--but-speakers", "anna", "ben", "carl"], "no cut is left"),
        (["--cuts", "none.jsonl"], "none.jsonl: no such manifest"),
    ],
)
def test_what_cannot_be_is_one_line(manifest, words, message, capsys):
    status, cuts = select(manifest, *words)
    assert status == 2
    assert cuts is None
    assert capsys.readouterr().err == f"select_cuts.py: error: {message}\n"


def test_a_cut_without_a_speaker_is_named(tmp_path, capsys):
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([MonoCut("lonely", 0.0, 1.0, 0)]).to_file(path)
    assert select(path)[0] == 2
    assert "cut 'lonely' has no single speaker" in capsys.readouterr().err
