"""Writes label lists for a part of AudioSet: what its CSV says of the recordings that are there.

A part is a folder of recordings and the CSV of its segments (`balanced_train_segments.csv`, ...);
`class_labels_indices.csv` gives the order and the names of the 527 classes. Nobody has all
recordings: segments without a file are counted, files without a segment are, too.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from label_lists import Labelled, write_lists

from spear.data.corpus.scan import scan_recordings
from spear.errors import DataError, SpearError


def read_classes(path: Path) -> dict[str, str]:
    """Reads `class_labels_indices.csv`: display names by label, in the order of the classes.

    Raises:
        DataError: It is missing, or has not the columns mid and display_name.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return {row["mid"]: row["display_name"] for row in csv.DictReader(stream)}
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: not AudioSet's table of classes ({error})") from error


def read_segments(path: Path, name_format: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the name of a segment's file, without suffix, and its labels.

    Args:
        path: Lines `ytid, start, end, "label,label"`, and comments.
        name_format: With {ytid}, {start} and {end}, the latter in whole seconds.

    Raises:
        DataError: The file is missing or a line is of another form.
    """
    try:
        stream = open(path, encoding="utf-8", newline="")  # noqa: SIM115  # closed below
    except OSError as error:
        raise DataError(f"{path}: not readable ({error})") from error
    with stream:
        lines = (line for line in stream if line.strip() and not line.startswith("#"))
        for number, row in enumerate(csv.reader(lines, skipinitialspace=True), start=1):
            try:
                ytid, start, end, labels = row
                place = {"start": round(float(start)), "end": round(float(end))}
            except ValueError as error:
                raise DataError(
                    f"{path}: segment {number} is no 'id, start, end, labels'"
                ) from error
            yield name_format.format(ytid=ytid, **place), tuple(labels.split(","))


def label_recordings(audio_dir: Path, segments: Path, name_format: str) -> list[Labelled]:
    """Returns the recordings of a folder that have a segment, with its labels."""
    by_name = {path.stem: key for key, path in scan_recordings(audio_dir).files.items()}
    labelled = [
        Labelled(by_name[name], labels)
        for name, labels in read_segments(segments, name_format)
        if name in by_name
    ]
    sys.stdout.write(
        f"{len(labelled)} of {len(by_name)} recordings in {audio_dir} have labels in {segments}\n"
    )
    if not labelled:
        raise DataError(
            f"no recording in {audio_dir} is called {name_format} of a segment in {segments}: "
            f"--name-format, e.g. Y{{ytid}} or {{ytid}}_{{start}}; there is {min(by_name)!r}"
        )
    return labelled


def main(argv: list[str] | None = None) -> int:
    """Writes the lists; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--segments", type=Path, required=True, help="CSV of the part's segments")
    parser.add_argument("--classes", type=Path, required=True, help="class_labels_indices.csv")
    parser.add_argument("--name-format", default="{ytid}", help="names of files, without suffix")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the lists")
    args = parser.parse_args(argv)
    try:
        classes = read_classes(args.classes)
        labelled = label_recordings(args.audio_dir, args.segments, args.name_format)
        write_lists(args.output_dir, labelled, classes)
    except SpearError as error:
        sys.stderr.write(f"audioset_labels.py: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
