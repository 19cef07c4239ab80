"""Writes label lists for recordings whose class is the beginning of their name: `{class}_{rest}`.

Classes with few recordings are left out, with a line that says so; the others are dealt out over
stratified folds: every fold has its share of each class, to within one recording.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from label_lists import Labelled, write_lists

from spear.data.corpus.scan import scan_recordings
from spear.errors import DataError, SpearError
from spear.system.rng import generator


def find_classes(folder: Path, min_clips: int) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Returns the ids of each class, and the sizes of the classes that are too small."""
    classes: dict[str, list[str]] = defaultdict(list)
    for key, path in scan_recordings(folder).files.items():
        classes[path.stem.partition("_")[0]].append(key)
    kept = {name: sorted(ids) for name, ids in classes.items() if len(ids) >= min_clips}
    return kept, {name: len(ids) for name, ids in sorted(classes.items()) if name not in kept}


def deal(classes: dict[str, list[str]], num_folds: int, seed: int) -> list[Labelled]:
    """Deals the recordings of each class out over folds, going on where the last class ended."""
    dealt: list[Labelled] = []
    for number, (name, ids) in enumerate(sorted(classes.items())):
        for key in generator(seed, "folds", number).permutation(ids).tolist():
            dealt.append(Labelled(key, (name,), len(dealt) % num_folds + 1))
    return dealt


def main(argv: list[str] | None = None) -> int:
    """Writes the lists; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--audio-dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--min-clips", type=int, default=8, help="recordings that a class needs")
    parser.add_argument("--num-folds", type=int, default=5, help="folds")
    parser.add_argument("--seed", type=int, default=0, help="decides who comes into which fold")
    args = parser.parse_args(argv)
    try:
        if not 2 <= args.num_folds <= args.min_clips:
            raise DataError("--num-folds is 2 or more, and --min-clips is no less than it")
        kept, left_out = find_classes(args.audio_dir, args.min_clips)
        write_lists(args.output_dir, deal(kept, args.num_folds, args.seed))
    except SpearError as error:
        sys.stderr.write(f"prefix_labels.py: error: {error}\n")
        return 2
    if left_out:
        small = ", ".join(f"{name} ({size})" for name, size in left_out.items())
        sys.stdout.write(f"left out, below {args.min_clips} recordings: {small}\n")
    total = sum(map(len, kept.values()))
    sys.stdout.write(f"{total} recordings of {len(kept)} classes, lists in {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
