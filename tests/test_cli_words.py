"""Files between options, wherever they stand."""

import pytest

from spear.cli import split_words


@pytest.mark.parametrize(
    ("words", "options", "plain"),
    [
        ("--model M a.wav b.wav --out D", "--model M --out D", "a.wav b.wav"),
        ("a.wav --model M b.wav --out D c.wav", "--model M --out D", "a.wav b.wav c.wav"),
        ("--model=M a.wav --out=D", "--model=M --out=D", "a.wav"),
        ("a.wav --help", "--help", "a.wav"),
        ("-h a.wav", "-h", "a.wav"),
        ("--print_config a.wav", "--print_config", "a.wav"),
        ("--train.help a.wav", "--train.help", "a.wav"),
        ("--model M -- --odd.wav -h", "--model M", "--odd.wav -h"),
        ("--offset -3 -x.wav", "--offset -3", "-x.wav"),
        ("--model --out D a.wav", "--model --out D", "a.wav"),
        ("--config c.yaml --files+ z.wav a.wav", "--config c.yaml --files+ z.wav", "a.wav"),
        ("", "", ""),
    ],
)
def test_every_option_has_one_value_and_the_rest_are_files(
    words: str, options: str, plain: str
) -> None:
    assert split_words(words.split()) == (options.split(), plain.split())


def test_words_stay_as_they_are() -> None:
    names = ["with space.wav", "[1].wav", "null", "12", "é\U0001f3b5.wav", "a=b.wav", ""]
    assert split_words(["--out", "a dir", *names]) == (["--out", "a dir"], names)
