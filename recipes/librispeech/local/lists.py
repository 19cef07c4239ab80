"""Writes Kaldi's `text` and `utt2spk` for the subsets of LibriSpeech, for `spear prepare`.

LibriSpeech keeps recordings as `{subset}/{speaker}/{chapter}/{utterance}.flac` and transcripts as
`{speaker}-{chapter}.trans.txt` beside them. The ids written here are those that `spear prepare`
gives: the path below the subset without suffix, '/' written as '-'.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spear.errors import DataError, SpearError
from spear.system.files import write_text


@dataclass(frozen=True)
class Utterance:
    """One line of a transcript file."""

    id: str
    speaker: str
    text: str


def find_utterances(subset: Path) -> list[Utterance]:
    """Reads all transcripts of a subset, in the order of their ids.

    Raises:
        DataError: The folder is missing or has no transcripts, a line is malformed, or a recording
            and its transcript are not both there.
    """
    if not subset.is_dir():
        raise DataError(f"{subset}: no such folder; LibriSpeech's archives hold LibriSpeech/SUBSET")
    found = [
        utterance
        for path in sorted(subset.glob("*/*/*.trans.txt"))
        for utterance in read_transcripts(path)
    ]
    if not found:
        raise DataError(f"{subset}: no transcripts called SPEAKER/CHAPTER/*.trans.txt")
    recorded = {_id_of(path.relative_to(subset)) for path in subset.glob("*/*/*.flac")}
    one_sided = sorted(recorded ^ {utterance.id for utterance in found})
    if one_sided:
        raise DataError(
            f"{subset}: {len(one_sided)} utterances have either no recording or no transcript, "
            f"e.g. {one_sided[0]}; unpack the archive again"
        )
    return sorted(found, key=lambda utterance: utterance.id)


def read_transcripts(path: Path) -> Iterator[Utterance]:
    """Yields the utterances of a chapter, `103-1240-0000 WORD WORD ...` on each line.

    Raises:
        DataError: The file cannot be read, or a line has no text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    speaker, chapter = path.parts[-3:-1]
    for number, line in enumerate(lines, start=1):
        name, _, text = line.partition(" ")
        if not text.strip():
            raise DataError(f"{path}, line {number}: expected 'utterance WORD WORD ...'")
        yield Utterance(_id_of(Path(speaker, chapter, name)), speaker, text.strip())


def _id_of(path: Path) -> str:
    return path.with_suffix("").as_posix().replace("/", "-")


def main(argv: list[str] | None = None) -> int:
    """Writes two files for every subset; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--librispeech-dir", type=Path, required=True, help="holds the subsets")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets a folder for each")
    parser.add_argument("subsets", nargs="+", help="such as train-clean-100")
    args = parser.parse_args(argv)
    try:
        for subset in args.subsets:
            found = find_utterances(args.librispeech_dir / subset)
            folder = args.output_dir / subset
            write_text(folder / "text", "".join(f"{u.id} {u.text}\n" for u in found))
            write_text(folder / "utt2spk", "".join(f"{u.id} {u.speaker}\n" for u in found))
            sys.stdout.write(f"{subset}: {len(found)} utterances\n")
    except SpearError as error:
        sys.stderr.write(f"lists.py: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
