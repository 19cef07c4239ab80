"""Writes label lists for ESC-50: its classes, and its five folds as the authors drew them.

Takes the folder of the distribution, with `audio/` and `meta/esc50.csv`; the ids are those that
`spear prepare` gives to the recordings of `audio/`.
"""

import argparse
import csv
import sys
from pathlib import Path

from label_lists import Labelled, write_lists

from spear.errors import DataError, SpearError


def read_meta(path: Path) -> list[Labelled]:
    """Reads the table of recordings.

    Raises:
        DataError: It is missing, or has not the columns filename, fold and category.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [
                Labelled(Path(row["filename"]).stem, (row["category"],), int(row["fold"]))
                for row in csv.DictReader(stream)
            ]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the folder of the distribution") from error
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not ESC-50's table ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Writes the lists; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--esc50-dir", type=Path, required=True, help="folder of ESC-50")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the lists")
    args = parser.parse_args(argv)
    try:
        recordings = read_meta(args.esc50_dir / "meta" / "esc50.csv")
        write_lists(args.output_dir, recordings)
    except SpearError as error:
        sys.stderr.write(f"esc50_labels.py: error: {error}\n")
        return 2
    sys.stdout.write(f"{len(recordings)} recordings, lists in {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
