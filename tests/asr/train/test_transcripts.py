"""Transcripts out of the ordinary are counted and named; a run without any to learn is refused."""

import logging

import pytest

from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.asr.train.data import TranscribedCuts
from spear.asr.train.transcripts import check_transcripts
from spear.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["AB CD"], TokenizerConfig())


def frames_at_50_hz(num_fbank_frames):
    return num_fbank_frames // 2


def cuts_of(write_shards, folder, utterances):
    return TranscribedCuts([str(write_shards(folder, utterances))], "train")


def test_each_kind_is_named(tokenizer, sing, write_shards, tmp_path, caplog):
    utterances = [
        ("fine", sing("AB"), "AB", "x"),
        ("empty", sing("AB"), " ", "x"),
        ("strange", sing("AB"), "AÖ", "x"),
        ("crammed", sing("A"), "ABCD" * 9, "x"),
        ("doubled", sing("A"), "A" * 13, "x"),  # fits but for the blanks between
    ]
    cuts = cuts_of(write_shards, tmp_path / "shards", utterances)
    findings = check_transcripts(cuts, tokenizer, frames_at_50_hz)
    assert findings.empty == ["empty"]
    assert findings.unknown == ["strange"]
    assert findings.crammed == ["crammed", "doubled"]
    with caplog.at_level(logging.WARNING):
        findings.log()
    assert len(caplog.records) == 3
    assert "2 of 5 transcripts need more frames" in caplog.text
    assert "(crammed, doubled)" in caplog.text


def test_only_the_first_few_are_listed(tokenizer, sing, write_shards, tmp_path, caplog):
    many = [(f"e{i}", sing("A"), "", "x") for i in range(8)] + [("a", sing("A"), "A", "x")]
    cuts = cuts_of(write_shards, tmp_path / "shards", many)
    with caplog.at_level(logging.WARNING):
        check_transcripts(cuts, tokenizer, frames_at_50_hz).log()
    assert "8 of 9 transcripts are empty" in caplog.text
    assert "e4, ...)" in caplog.text and "e5" not in caplog.text


def test_nothing_to_learn_is_an_error(tokenizer, sing, write_shards, tmp_path):
    hopeless = [("a", sing("A"), "", "x"), ("b", sing("A"), "AB" * 30, "x")]
    cuts = cuts_of(write_shards, tmp_path / "shards", hopeless)
    with pytest.raises(DataError, match="none of 2 transcripts can be learnt: 1 are empty, 1 need"):
        check_transcripts(cuts, tokenizer, frames_at_50_hz)
