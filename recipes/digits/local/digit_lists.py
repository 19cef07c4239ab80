"""Writes Kaldi's lists for a folder of digits called `{digit}_{speaker}_{index}.wav`.

That is how the Free Spoken Digit Dataset names its files. From the names alone come `text`,
`utt2spk`, `test_ids` (by the authors' convention indexes 0-4) and `valid_ids`, with the ids that
`spear prepare` gives: the path below the folder without suffix, '/' written as '-'. All of a
speaker who is held out is in `test_ids`.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spear.errors import DataError, SpearError
from spear.system.files import write_text

WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
NAME = re.compile(r"(\d)_([^_]+)_(\d+)")


@dataclass(frozen=True)
class Digit:
    """One recording, as its name describes it."""

    path: Path
    id: str
    word: str
    speaker: str
    index: int


def find_digits(folder: Path) -> list[Digit]:
    """Reads the names of a folder's WAV files, in the order of their ids.

    Raises:
        DataError: The folder is missing, has no WAV file, or one has another kind of name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    digits = [_read_name(folder, path) for path in folder.rglob("*.wav")]
    if not digits:
        raise DataError(f"{folder}: no WAV files")
    return sorted(digits, key=lambda digit: digit.id)


def _read_name(folder: Path, path: Path) -> Digit:
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(f"{path}: the name is not {{digit}}_{{speaker}}_{{index}}.wav")
    key = path.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
    return Digit(path, key, WORDS[int(match[1])], match[2], int(match[3]))


def parse_range(text: str) -> range:
    """Reads "0-4" as the numbers from 0 to 4, and "7" as 7 alone.

    Raises:
        DataError: It is neither, or runs backwards.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise DataError(f"a range of indexes looks like 0-4, not {text!r}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def list_lines(
    digits: list[Digit], test: range, valid: range, held_out: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the lines of every list.

    Args:
        digits: All recordings.
        test: Indexes of the test set.
        valid: Indexes of the validation set.
        held_out: A speaker of whom all recordings are test recordings.

    Raises:
        DataError: An index is in both sets, a set is empty, or there is no such speaker.
    """
    if set(test) & set(valid):
        raise DataError("--test and --valid overlap: a recording belongs to one of them")
    speakers = sorted({digit.speaker for digit in digits})
    if held_out is not None and held_out not in speakers:
        raise DataError(f"no digit of {held_out!r}; the speakers are {', '.join(speakers)}")
    yield "text", [f"{digit.id} {digit.word}" for digit in digits]
    yield "utt2spk", [f"{digit.id} {digit.speaker}" for digit in digits]
    sets = {
        "test_ids": [d for d in digits if d.index in test or d.speaker == held_out],
        "valid_ids": [d for d in digits if d.index in valid and d.speaker != held_out],
    }
    for name, members in sets.items():
        if not members:
            raise DataError(f"no recording has an index for {name}")
        yield name, [digit.id for digit in members]


def main(argv: list[str] | None = None) -> int:
    """Writes the four files; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--digits-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--test", default="0-4", help="indexes of the test set")
    parser.add_argument("--valid", default="5-6", help="indexes of the validation set")
    parser.add_argument("--held-out-speaker", help="one who is heard in the test set only")
    args = parser.parse_args(argv)
    try:
        digits = find_digits(args.digits_dir)
        test, valid = parse_range(args.test), parse_range(args.valid)
        lists = dict(list_lines(digits, test, valid, args.held_out_speaker))
    except SpearError as error:
        sys.stderr.write(f"digit_lists.py: error: {error}\n")
        return 2
    for name, lines in lists.items():
        write_text(args.output_dir / name, "".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{len(digits)} digits, lists in {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
