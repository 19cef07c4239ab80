"""Kaldi's text files: `text`, `utt2spk` and lists of ids, one recording per line.

The first field of a line is the recording's id, the rest is its value. A malformed line, a repeated
id or an id that no recording has stops the stage with the file and the line.
"""

from collections.abc import Collection
from pathlib import Path

from spear.errors import DataError


def read_text(path: str | Path) -> dict[str, str]:
    """Reads transcripts, `id word word ...`; a transcript may be empty.

    Returns:
        Transcript by id, its words separated by single spaces.

    Raises:
        DataError: As `_read_fields`.
    """
    return {key: " ".join(words) for key, words in _read_fields(path).items()}


def read_utt2spk(path: str | Path) -> dict[str, str]:
    """Reads speakers, `id speaker`.

    Raises:
        DataError: As `_read_fields`, or a line has not exactly two fields.
    """
    speakers = {}
    for key, words in _read_fields(path).items():
        if len(words) != 1:
            raise DataError(f"{path}: the line of {key!r} must be 'id speaker'")
        speakers[key] = words[0]
    return speakers


def read_ids(path: str | Path) -> set[str]:
    """Reads a list of ids, one on a line; further fields are not looked at.

    Raises:
        DataError: As `_read_fields`.
    """
    return set(_read_fields(path))


def check_known(path: str | Path, ids: Collection[str], known: Collection[str]) -> None:
    """Refuses ids that no recording has.

    Raises:
        DataError: Says how many there are and names the first three.
    """
    known_ids = set(known)
    unknown = sorted(key for key in ids if key not in known_ids)
    if unknown:
        shown = ", ".join(repr(key) for key in unknown[:3])
        example = min(known_ids, default="none")
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} ids have no recording, e.g. {shown}; an id is "
            f"the path below the source folder without suffix, '/' written as '-', e.g. {example!r}"
        )


def _read_fields(path: str | Path) -> dict[str, list[str]]:
    """Returns the further fields of every line by its first one; empty lines are skipped.

    Raises:
        DataError: The file is missing, empty or not UTF-8, or an id is there twice.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable UTF-8 text file ({error})") from error
    fields: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if words[0] in fields:
            raise DataError(f"{path}: line {number}: id {words[0]!r} is there twice")
        fields[words[0]] = words[1:]
    if not fields:
        raise DataError(f"{path}: the file is empty")
    return fields
