"""Plain words between options, for commands that take many: `spear X --model M *.wav --out D`.

Every option of ours has one value, so what follows an option is its value and every other word is
a file, wherever it stands. The words are not passed through the parser of options, which would
read some names of files as YAML.
"""

from collections.abc import Sequence

_WITHOUT_VALUE = ("--help", "--print_config")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command's options from the plain words between them.

    Args:
        words: What follows the command's name; after `--` everything is a plain word.

    Returns:
        The options with their values, and the plain words, each in their order.
    """
    options: list[str] = []
    plain: list[str] = []
    has_value = False  # whether the last option's value is still to come
    for position, word in enumerate(words):
        if word == "--":
            return options, plain + list(words[position + 1 :])
        if word.startswith("--") or word == "-h":
            options.append(word)
            has_value = _takes_next(word)
        elif has_value:
            options.append(word)
            has_value = False
        else:
            plain.append(word)
    return options, plain


def _takes_next(option: str) -> bool:
    alone = option == "-h" or option.startswith(_WITHOUT_VALUE) or option.endswith(".help")
    return not alone and "=" not in option
