"""N-grams of beam search: KenLM reads them, in ARPA's text form or its own binary form.

The search must know which words the n-gram has. ARPA's form lists them; the binary form does not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spear.errors import DataError, one_line
from spear.system.optional import require

NO_WORDS = {"<s>", "</s>", "<unk>", "<UNK>"}
_WORDS_HINT = "give an n-gram in ARPA's form, or its words in beam.lm_words"


def read_words(path: Path, is_list: bool = False) -> list[str]:
    """Reads the words of an n-gram.

    Args:
        path: An n-gram in ARPA's text form, or a list.
        is_list: Whether it is a list of words, one a line.

    Raises:
        DataError: The file is missing or no text, or has no words.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = (line.rstrip("\n") for line in stream)
            words = (
                [word for line in lines for word in line.split()[:1]]
                if is_list
                else [*_unigrams(lines)]
            )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no text: {one_line(error)}; {_WORDS_HINT}") from error
    words = [word for word in dict.fromkeys(words) if word not in NO_WORDS]
    if not words:
        raise DataError(f"{path} has no words; {_WORDS_HINT}")
    return words


def _unigrams(lines: Iterator[str]) -> Iterator[str]:
    """Yields the words of an ARPA file's section of 1-grams."""
    inside = False
    for line in lines:
        if line.startswith("\\"):
            if inside:
                return
            inside = line.strip() == "\\1-grams:"
        elif inside and len(columns := line.split()) > 1:
            yield columns[1]


def dictionary_of(symbols: list[str]) -> Any:
    """Numbers symbols for flashlight as the list does."""
    library = require("flashlight.lib.text.dictionary", "beam search", "flashlight-text")
    dictionary = library.Dictionary()
    for number, symbol in enumerate(symbols):
        dictionary.add_entry(symbol, number)
    return dictionary


def load_ngram(path: str, dictionary: Any) -> Any:
    """Reads an n-gram as flashlight's language model.

    Args:
        path: Of the file, in ARPA's form or KenLM's.
        dictionary: The symbols that the search will ask about.

    Raises:
        DataError: There is none, or it is broken.
        MissingPackageError: flashlight-text is not installed.
    """
    if not Path(path).is_file():
        raise DataError(f"beam.lm {path}: no such file")
    library = require("flashlight.lib.text.decoder.kenlm", "an n-gram", "flashlight-text")
    try:
        return library.KenLM(path, dictionary)
    except (RuntimeError, ValueError) as error:
        cause = one_line(error, limit=1000).rsplit(" threw ", maxsplit=1)[-1]  # not KenLM's file
        raise DataError(f"beam.lm {path} cannot be read: {cause}") from error
