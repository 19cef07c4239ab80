"""Prefix beam search: the exact best of all labellings, n-grams that decide, and bad models."""

import itertools
import math

import pytest
import torch

from spear.asr.ctc import greedy_decode
from spear.asr.search.ctc_beam import BeamConfig, CtcBeamSearch
from spear.asr.search.ngram import read_words
from spear.asr.tokenizer import Tokenizer, TokenizerConfig
from spear.errors import ConfigError, DataError

pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")

ARPA = """\\data\\
ngram 1={num_words}
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
{unigrams}

\\2-grams:
-0.1\t<s> {first}
-0.1\t{first} {second}

\\end\\
"""


def write_arpa(path, words, first, second):
    """An n-gram in which `first second` is likely."""
    unigrams = "\n".join(f"-1.0\t{word}\t-0.3" for word in words)
    path.write_text(
        ARPA.format(num_words=len(words) + 3, unigrams=unigrams, first=first, second=second)
    )
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["AB CD", "BA DC", "A"], TokenizerConfig())


def spoken(tokenizer, text, strength=6.0, seed=0):
    """Log-probabilities (T, V) in which a text is the most probable, each token on two frames."""
    ids = [i for token in tokenizer.encode(text) for i in (token, token, 0)]
    scores = torch.randn(len(ids), tokenizer.vocab_size, generator=torch.manual_seed(seed))
    scores[torch.arange(len(ids)), ids] += strength
    return scores.log_softmax(dim=-1)


def labellings(log_probs):
    """Log-probability of every labelling without the unknown token, by enumeration."""
    totals = {}
    num_frames, vocab_size = log_probs.shape
    for path in itertools.product([i for i in range(vocab_size) if i != 1], repeat=num_frames):
        score = sum(float(log_probs[frame, token]) for frame, token in enumerate(path))
        labels = tuple(token for token, _ in itertools.groupby(path) if token != 0)
        totals.setdefault(labels, []).append(score)
    return {labels: math.log(sum(map(math.exp, own))) for labels, own in totals.items()}


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_is_exact(seed):
    tokenizer = Tokenizer.train(["AB", "BA"], TokenizerConfig())
    log_probs = torch.randn(5, tokenizer.vocab_size, generator=torch.manual_seed(seed))
    log_probs = log_probs.log_softmax(dim=-1)
    search = CtcBeamSearch(BeamConfig(size=2000, threshold=1e4), tokenizer, num_best=8)
    (found,) = search(log_probs.unsqueeze(0), torch.tensor([5]))
    expected = sorted(labellings(log_probs).items(), key=lambda item: -item[1])[:8]
    assert [tuple(one.tokens) for one in found] == [labels for labels, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_the_best_labelling_need_not_be_the_best_path():
    tokenizer = Tokenizer.train(["AB", "BA"], TokenizerConfig())
    probs = torch.full((2, tokenizer.vocab_size), 1e-6)
    probs[:, 0], probs[:, tokenizer.encode("A")[0]] = 0.6, 0.4  # blank blank 0.36, A in all 0.64
    lens = torch.tensor([2])
    assert greedy_decode(probs.log().unsqueeze(0), lens)[0].tokens == []
    (found,) = CtcBeamSearch(BeamConfig(), tokenizer)(probs.log().unsqueeze(0), lens)
    assert found[0].tokens == tokenizer.encode("A")
    assert math.exp(found[0].score) == pytest.approx(0.64, abs=1e-3)


def test_batches_give_what_single_utterances_give_with_times(tokenizer):
    texts = ["AB CD", "DC", ""]
    each = [spoken(tokenizer, text, seed=i) for i, text in enumerate(texts)]
    lens = torch.tensor([len(one) for one in each])
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
    search = CtcBeamSearch(BeamConfig(size=4), tokenizer, num_best=3)
    together = search(padded, lens)
    assert [tokenizer.decode(found[0].tokens) for found in together] == texts
    assert together[0][0].frames == [3 * i for i in range(len("AB CD"))]
    assert together == [search(one[None], torch.tensor([len(one)]))[0] for one in each]
    assert together[2][0].score == 0.0
    for found in together[:2]:
        assert len({tuple(one.tokens) for one in found}) == len(found) == 3
        assert [one.score for one in found] == sorted((o.score for o in found), reverse=True)


@pytest.mark.parametrize("model_type", ["char", "bpe"])
def test_a_word_ngram_decides_between_words(model_type, tmp_path):
    # Of so few pieces "bpe" makes single letters, too, but a first word has its separator.
    config = TokenizerConfig(model_type=model_type, vocab_size=7)
    tokenizer = Tokenizer.train(["AB CD", "BA DC"], config)
    likely = write_arpa(tmp_path / "likely.arpa", ["AB", "BA", "CD", "DC"], "AB", "CD")
    other = write_arpa(tmp_path / "other.arpa", ["AB", "BA", "CD", "DC"], "BA", "DC")
    # Something between "AB CD" and "BA DC": each letter as probable as the other.
    both = [spoken(tokenizer, text, strength=4.0) for text in ("AB CD", "BA DC")]
    log_probs = torch.logaddexp(*both).unsqueeze(0) - math.log(2)
    lens = torch.tensor([log_probs.size(1)])
    for path, text in ((likely, "AB CD"), (other, "BA DC")):
        search = CtcBeamSearch(BeamConfig(lm=path, lm_weight=1.0), tokenizer)
        (found,) = search(log_probs, lens)
        assert tokenizer.decode(found[0].tokens) == text
        assert found[0].frames == sorted(set(found[0].frames))
        assert 0 <= found[0].frames[0] < found[0].frames[-1] < log_probs.size(1)


def test_a_word_ngram_knows_no_other_words(tokenizer, tmp_path):
    path = write_arpa(tmp_path / "words.arpa", ["AB", "CD"], "AB", "CD")
    log_probs = spoken(tokenizer, "AB CC").unsqueeze(0)
    (found,) = CtcBeamSearch(BeamConfig(lm=path), tokenizer)(log_probs, torch.tensor([15]))
    assert tokenizer.decode(found[0].tokens) in {"AB", "AB CD"}


def test_a_token_ngram_leaves_all_words_possible(tokenizer, tmp_path):
    pieces = tokenizer.vocabulary[2:]
    path = write_arpa(tmp_path / "tokens.arpa", pieces, "A", "B")
    lens = torch.tensor([6])
    unsure = torch.logaddexp(spoken(tokenizer, "AB", 3.0), spoken(tokenizer, "AC", 3.0))[None]
    config = BeamConfig(lm=path, lm_unit="token", lm_weight=2.0)
    (found,) = CtcBeamSearch(config, tokenizer)(unsure, lens)
    assert tokenizer.decode(found[0].tokens) == "AB"
    (clear,) = CtcBeamSearch(config, tokenizer)(spoken(tokenizer, "DC", 20.0)[None], lens)
    assert tokenizer.decode(clear[0].tokens) == "DC"


def test_lists_of_words_and_arpa_files_are_read(tmp_path):
    arpa = write_arpa(tmp_path / "a.arpa", ["ONE", "TWO"], "ONE", "TWO")
    assert read_words(tmp_path / "a.arpa") == ["ONE", "TWO"]
    (tmp_path / "words").write_text("ONE 1\n\nTWO\nONE\n<s>\n")
    assert read_words(tmp_path / "words", is_list=True) == ["ONE", "TWO"]
    assert arpa.endswith("a.arpa")


def test_what_cannot_be_used_is_named(tokenizer, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00mmap")
    (tmp_path / "empty.arpa").write_text("\\data\\\n\\end\\\n")
    (tmp_path / "cut.arpa").write_text("\\data\\\nngram 1=5\n\n\\1-grams:\n-1.0\tAB\n")
    strange = write_arpa(tmp_path / "strange.arpa", ["ÄÖ", "ÜÜ"], "ÄÖ", "ÜÜ")
    cases = [
        ("nowhere.arpa", DataError, "nowhere.arpa"),
        ("binary", DataError, "beam.lm_words"),
        ("empty.arpa", DataError, "has no words"),
        ("cut.arpa", DataError, r"cut\.arpa cannot be read"),
        (strange, ConfigError, "none of its words"),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            CtcBeamSearch(BeamConfig(lm=str(tmp_path / name)), tokenizer)
    single = Tokenizer.train(["AB", "BA"], TokenizerConfig())
    path = write_arpa(tmp_path / "words.arpa", ["AB", "BA"], "AB", "BA")
    with pytest.raises(ConfigError, match="knows spaces"):
        CtcBeamSearch(BeamConfig(lm=path), single)


def test_impossible_settings_are_refused():
    for name, value in (("size", 0), ("num_tokens", 0), ("threshold", -1.0), ("lm_weight", -0.1)):
        with pytest.raises(ConfigError, match=f"beam.{name}"):
            BeamConfig(**{name: value})


@pytest.mark.parametrize("lm", [False, True])
def test_a_long_recording_read_in_parts_has_the_text_of_one_piece(
    tokenizer, tmp_path, monkeypatch, lm
):
    text = " ".join(["AB CD", "BA DC"] * 10)
    log_probs = spoken(tokenizer, text, strength=9.0).unsqueeze(0)
    lens = torch.tensor([log_probs.shape[1]])
    config = BeamConfig()
    if lm:
        config.lm = write_arpa(tmp_path / "words.arpa", ["AB", "CD", "BA", "DC"], "AB", "CD")
    ((whole,),) = CtcBeamSearch(config, tokenizer)(log_probs, lens)
    assert tokenizer.decode(whole.tokens) == text
    monkeypatch.setattr("spear.asr.search.ctc_beam.PART_FRAMES", 50)
    monkeypatch.setattr("spear.asr.search.ctc_beam.SETTLE_FRAMES", 20)
    ((found,),) = CtcBeamSearch(config, tokenizer)(log_probs, lens)
    assert (found.tokens, found.frames) == (whole.tokens, whole.frames)
