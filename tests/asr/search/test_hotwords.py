"""Preferred phrases: what they add is what a plain count says, in either beam search."""

import logging
import math

import numpy as np
import pytest
import torch
from test_ctc_beam import labellings, spoken
from test_transducer_decode import all_transcripts, make_networks

from spear.asr.apply.search import SearchConfig
from spear.asr.search.ctc_beam import BeamConfig, CtcBeamSearch
from spear.asr.search.hotwords import Hotwords, HotwordsConfig, load_hotwords
from spear.asr.search.transducer_search import beam_search
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.errors import ConfigError, DataError

TEXTS = ["AB CD", "BA DC", "A B"]


def occurrences(tokens, phrase):
    return sum(tokens[i : i + len(phrase)] == phrase for i in range(len(tokens)))


def bonus(tokens, phrases):
    """The definition: score per token x tokens for every completed occurrence."""
    return sum(occurrences(tokens, p) * score * len(p) for p, score in phrases)


def through(hotwords, tokens):
    """The bonus as a search adds it up."""
    state, total = hotwords.start, 0.0
    for token in tokens:
        gains = hotwords.gains(state, 6)
        state, gain = hotwords.step(state, token)
        assert gains[token].item() == pytest.approx(gain)
        total += gain
    return total + hotwords.finish(state)


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_of_gains_is_the_plain_count(seed):
    rng = np.random.default_rng(seed)
    phrases = [
        (rng.integers(1, 6, rng.integers(1, 5)).tolist(), float(rng.uniform(0.5, 3)))
        for _ in range(rng.integers(1, 6))
    ]
    hotwords = Hotwords(phrases)
    for _ in range(20):
        tokens = rng.integers(1, 6, rng.integers(0, 30)).tolist()
        assert through(hotwords, tokens) == pytest.approx(bonus(tokens, phrases))


def test_the_beginning_stands_for_a_separator():
    hotwords = Hotwords([([3, 1, 2], 1.0)], first=3)
    assert through(hotwords, [1, 2]) == pytest.approx(3.0)
    assert through(hotwords, [1, 2, 3, 1, 2]) == pytest.approx(6.0)
    assert through(hotwords, [4, 1, 2]) == pytest.approx(0.0)
    assert through(hotwords, []) == pytest.approx(0.0)


def test_the_blank_adds_nothing():
    hotwords = Hotwords([([1, 2], 1.0)])
    state, _ = hotwords.step(hotwords.start, 1)
    assert hotwords.gains(state, 4).tolist() == [0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("seed", range(5))
def test_a_transducer_finds_the_best_of_all_transcripts_with_their_bonus(seed):
    decoder, joiner = make_networks(vocab_size=4, seed=seed)
    frames = torch.randn(4, 6, generator=torch.manual_seed(seed))
    phrases = [([1, 2], 1.5), ([2, 3, 1], 1.0), ([3], 0.4)]
    expected = {
        tokens: score + bonus(list(tokens), phrases)
        for tokens, score in all_transcripts(decoder, joiner, frames).items()
    }
    found = beam_search(
        decoder,
        joiner,
        frames.unsqueeze(0),
        torch.tensor([4]),
        size=300,
        num_best=5,
        normalize_length=False,
        hotwords=Hotwords(phrases),
    )[0]
    best = sorted(expected, key=expected.get, reverse=True)[:5]
    assert [tuple(one.tokens) for one in found] == best
    assert [one.score for one in found] == pytest.approx([expected[t] for t in best], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_ctc_finds_the_best_of_all_labellings_with_their_bonus(seed):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    log_probs = torch.randn(5, tokenizer.vocab_size, generator=torch.manual_seed(seed))
    log_probs = (2 * log_probs).log_softmax(-1)
    phrases = [([2, 3], 2.0), ([4], 0.5)]
    search = CtcBeamSearch(
        BeamConfig(size=5000, num_tokens=50), tokenizer, 3, hotwords=Hotwords(phrases)
    )
    expected = {
        tokens: score + bonus(list(tokens), phrases)
        for tokens, score in labellings(log_probs).items()
    }
    best = sorted(expected, key=expected.get, reverse=True)[:3]
    for _ in range(2):  # nothing stays of an earlier utterance
        found = search(log_probs.unsqueeze(0), torch.tensor([5]))[0]
        assert [tuple(one.tokens) for one in found] == best
        assert [one.score for one in found] == pytest.approx([expected[t] for t in best], abs=1e-4)


def test_phrases_are_found_in_a_recording_that_is_read_in_parts(monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    ids = tokenizer.encode("AB CD")
    scores = 4 * torch.nn.functional.one_hot(torch.tensor([i for i in ids for i in (i, 0)] * 20))
    log_probs = scores.float().log_softmax(-1)
    log_probs[40] = log_probs[40, 0]  # anything might be said here, inside a phrase
    for part, states in ((6000, 100_000), (30, 600)):
        monkeypatch.setattr("spear.asr.search.ctc_beam.PART_FRAMES", part)
        monkeypatch.setattr("spear.asr.search.ctc_beam.SETTLE_FRAMES", 10)
        monkeypatch.setattr("spear.asr.search.ctc_beam.MIN_STATES", states)
        search = CtcBeamSearch(BeamConfig(), tokenizer, hotwords=Hotwords([(ids, 2.0)]))
        (found,) = search(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))[0]
        assert found.tokens == ids * 20


def test_a_phrase_turns_the_balance(tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    log_probs = spoken(tokenizer, "AB CD", strength=12.0)
    log_probs = log_probs[:-2]  # one frame of the last letter: D, or nearly as well A
    log_probs[-1] = -12.0
    for letter, share in (("D", 0.55), ("A", 0.45)):
        log_probs[-1, tokenizer.encode(letter)[-1]] = math.log(share)
    path = tmp_path / "phrases.txt"
    path.write_text("CA\n\n")
    texts = []
    for file in (None, str(path)):
        hotwords = load_hotwords(HotwordsConfig(file), tokenizer)
        search = CtcBeamSearch(BeamConfig(), tokenizer, hotwords=hotwords)
        found = search(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))[0][0]
        texts.append(tokenizer.decode(found.tokens))
    assert texts == ["AB CD", "AB CA"]


def test_phrases_are_read_with_their_scores(tmp_path, caplog):
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    path = tmp_path / "phrases.txt"
    path.write_text("AB CD :9\nAB CD :2.5\nDXC\n  B  \n")
    with caplog.at_level(logging.WARNING):
        hotwords = load_hotwords(HotwordsConfig(str(path), score=1.0), tokenizer)
    assert "1 of 4 phrases have characters that the tokenizer does not know (DXC, ...)" in (
        caplog.text
    )
    for text, expected in (("AB CD", 2.5 * 6), ("A B", 2.0), ("A", 0.0)):
        tokens = tokenizer.encode(text)
        state, total = hotwords.start, 0.0
        for token in tokens:
            state, gain = hotwords.step(state, token)
            total += gain
        assert total + hotwords.finish(state) == pytest.approx(expected)


def test_what_cannot_be_is_refused(tmp_path):
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    path = tmp_path / "phrases.txt"
    with pytest.raises(DataError, match=r"phrases\.txt cannot be read"):
        load_hotwords(HotwordsConfig(str(path)), tokenizer)
    for content, message in (
        ("\n", "no phrase in it"),
        ("XYZ\n", "can write none of its 1 phrases"),
        ("AB :0\n", "'AB :0' has no score above 0"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            load_hotwords(HotwordsConfig(str(path)), tokenizer)
    with pytest.raises(ConfigError, match=r"hotwords\.score"):
        HotwordsConfig(score=0.0)
    with pytest.raises(ConfigError, match=r"hotwords\.file needs search\.method beam"):
        SearchConfig(hotwords=HotwordsConfig("x"))
    with pytest.raises(ConfigError, match=r"leave out beam\.lm"):
        SearchConfig("beam", beam=BeamConfig(lm="x.arpa"), hotwords=HotwordsConfig("x"))
