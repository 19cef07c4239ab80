"""The tokenizer: round trips, determinism, what it refuses."""

import io
import json

import pytest
import sentencepiece

from spear.asr.tokenizer import (
    BLANK_ID,
    UNKNOWN_ID,
    UNKNOWN_TEXT,
    Tokenizer,
    TokenizerConfig,
    normalize,
)
from spear.errors import CheckpointError, ConfigError, DataError

TEXTS = [
    "THE CAT SAT ON THE MAT",
    "THE HAT OF THE CAT",
    "A MAT AND A HAT",
    "THAT CAT HAS THE HAT",
]
CONFIGS = [TokenizerConfig(), TokenizerConfig("bpe", vocab_size=24)]


@pytest.mark.parametrize("config", CONFIGS, ids=["char", "bpe"])
def test_text_survives_the_round_trip(config):
    tokenizer = Tokenizer.train(TEXTS, config)
    for text in [*TEXTS, "HAT CAT", ""]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert BLANK_ID not in ids
        assert UNKNOWN_ID not in ids


def test_a_character_model_has_one_token_per_character():
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    assert tokenizer.vocab_size == len(set("".join(TEXTS))) + 2
    assert len(tokenizer.encode("THE CAT")) == 7


def test_text_without_spaces_works_too():
    tokenizer = Tokenizer.train(["人之初", "性本善"], TokenizerConfig())
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode(tokenizer.encode("善初")) == "善初"


def test_a_bpe_model_has_the_size_asked_for_and_is_shorter():
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("bpe", vocab_size=24))
    assert tokenizer.vocab_size == 24
    assert len(tokenizer.encode("THE CAT")) < 7


def test_unknown_characters_become_visible_marks():
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    ids = tokenizer.encode("CAT QZ")
    assert UNKNOWN_ID in ids
    assert tokenizer.decode(ids).startswith("CAT")
    assert UNKNOWN_TEXT in tokenizer.decode(ids)


def test_blanks_vanish_and_impossible_ids_are_refused():
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig())
    ids = tokenizer.encode("CAT")
    assert tokenizer.decode([BLANK_ID, ids[0], BLANK_ID, *ids[1:]]) == "CAT"
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("config", CONFIGS, ids=["char", "bpe"])
def test_the_order_of_transcripts_changes_nothing(config):
    assert Tokenizer.train(TEXTS, config).sha256 == Tokenizer.train(TEXTS[::-1], config).sha256


def test_saving_and_loading(tmp_path):
    config = TokenizerConfig(case="upper", strip_punctuation=True)
    tokenizer = Tokenizer.train(TEXTS, config)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.config == config
    assert loaded.encode("the cat!") == tokenizer.encode("THE CAT")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer"]


def test_a_changed_or_missing_file_is_refused(tmp_path):
    folder = tmp_path / "tokenizer"
    with pytest.raises(CheckpointError, match="no tokenizer folder"):
        Tokenizer.load(folder)
    Tokenizer.train(TEXTS, TokenizerConfig()).save(folder)
    other = Tokenizer.train(["OTHER"], TokenizerConfig())
    (folder / "model.spm").write_bytes(other.model_bytes)
    with pytest.raises(CheckpointError, match="not the file"):
        Tokenizer.load(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"sha256": other.sha256, "colour": 1}))
    with pytest.raises(CheckpointError, match="colour"):
        Tokenizer.load(folder)


def test_a_model_with_another_blank_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="char", minloglevel=2
    )
    with pytest.raises(CheckpointError, match="<unk>' at id 0, where the blank <blk> must be"):
        Tokenizer(model.getvalue(), TokenizerConfig())
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        Tokenizer(b"something else", TokenizerConfig())


def test_vocabularies_that_do_not_fit_name_the_limit():
    with pytest.raises(ConfigError, match=r"vocab_size 500 is too large .* at most \d+"):
        Tokenizer.train(TEXTS, TokenizerConfig("bpe", vocab_size=500))
    with pytest.raises(ConfigError, match=r"vocab_size 5 is too small .* at least \d+"):
        Tokenizer.train(TEXTS, TokenizerConfig("bpe", vocab_size=5))


def test_the_named_limit_is_one_that_works():
    with pytest.raises(ConfigError) as caught:
        Tokenizer.train(TEXTS, TokenizerConfig("bpe", vocab_size=500))
    limit = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.train(TEXTS, TokenizerConfig("bpe", vocab_size=limit)).vocab_size == limit


def test_no_text_at_all_is_refused():
    with pytest.raises(DataError, match="no transcript has any text"):
        Tokenizer.train(["", "  "], TokenizerConfig())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TokenizerConfig(), "Don't -- stop, mother-in-law! « Ça »"),
        (TokenizerConfig(case="upper"), "DON'T -- STOP, MOTHER-IN-LAW! « ÇA »"),
        (TokenizerConfig(case="lower", strip_punctuation=True), "don't stop mother-in-law ça"),
    ],
)
def test_normalisation(config, expected):
    assert normalize("  Don't -- stop,\tmother-in-law! « C\u0327a »\n", config) == expected
