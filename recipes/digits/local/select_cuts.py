"""Selects cuts of a manifest: by speaker, and so many seconds of them.

With `--seconds` the speakers take turns, each with its cuts in an order that the seed draws, until
the next cut would make it more. A smaller number with the same seed selects a part of the same
cuts, so that the sets of an experiment on little data lie one in another.
"""

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut

from spear.errors import DataError, SpearError
from spear.system.files import atomic_path
from spear.system.rng import generator

ROUNDING_S = 1e-6


def speaker_of(cut: Cut) -> str:
    """Returns the speaker of a cut.

    Raises:
        DataError: It names none.
    """
    speakers = {supervision.speaker for supervision in cut.supervisions}
    if len(speakers) != 1 or None in speakers:
        raise DataError(f"cut {cut.id!r} has no single speaker: give `spear prepare` --utt2spk")
    return str(speakers.pop())


def by_speaker(cuts: Sequence[Cut], only: Sequence[str], but: Sequence[str]) -> list[Cut]:
    """Returns the cuts of some speakers, or of all but some.

    Raises:
        DataError: A speaker who is named does not occur, or nothing is left.
    """
    there = {cut.id: speaker_of(cut) for cut in cuts}
    missing = sorted({*only, *but} - set(there.values()))
    if missing:
        known = ", ".join(sorted(set(there.values())))
        raise DataError(f"no cut of {missing[0]!r}; the speakers are {known}")
    kept = [cut for cut in cuts if there[cut.id] not in but and (not only or there[cut.id] in only)]
    if not kept:
        raise DataError("no cut is left")
    return kept


def take_seconds(cuts: Sequence[Cut], seconds: float, seed: int) -> list[Cut]:
    """Returns the first cuts of a drawn order that last no longer together.

    Raises:
        DataError: There is less than that, or not even one cut fits.
    """
    total_s = sum(cut.duration for cut in cuts)
    if total_s < seconds:
        raise DataError(f"{seconds:g} s are asked for, and there are {total_s:.1f} s")
    order = draw_order(cuts, seed)
    ends = itertools.accumulate(cut.duration for cut in order)
    taken = [cut for cut, end in zip(order, ends, strict=True) if end <= seconds + ROUNDING_S]
    if not taken:
        raise DataError(f"the first cut is longer than {seconds:g} s")
    return taken


def draw_order(cuts: Sequence[Cut], seed: int) -> list[Cut]:
    """Shuffles each speaker's cuts, and lets the speakers, in a drawn order too, take turns."""
    grouped: dict[str, list[Cut]] = defaultdict(list)
    for cut in cuts:
        grouped[speaker_of(cut)].append(cut)
    names = generator(seed, "select/speakers").permutation(sorted(grouped)).tolist()
    shuffled = []
    for name in names:
        own = sorted(grouped[name], key=lambda cut: cut.id)
        places = generator(seed, f"select/{name}").permutation(len(own))
        shuffled.append([own[place] for place in places])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
    return [cut for cut in turns if cut is not None]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cuts", type=Path, required=True, help="manifest of cuts")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write")
    parser.add_argument("--speakers", nargs="+", default=[], help="only these")
    parser.add_argument("--but-speakers", nargs="+", default=[], help="all but these")
    parser.add_argument("--seconds", type=float, help="at most so much audio; all where not given")
    parser.add_argument("--seed", type=int, default=0, help="decides which cuts these are")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Writes the manifest; 2 after a user's error."""
    args = parse_args(argv)
    try:
        if not args.cuts.is_file():
            raise DataError(f"{args.cuts}: no such manifest")
        cuts = by_speaker(list(CutSet.from_file(args.cuts)), args.speakers, args.but_speakers)
        if args.seconds is not None:
            cuts = take_seconds(cuts, args.seconds, args.seed)
    except SpearError as error:
        sys.stderr.write(f"select_cuts.py: error: {error}\n")
        return 2
    with atomic_path(args.output) as partial:
        CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id)).to_file(partial)
    total_s = sum(cut.duration for cut in cuts)
    sys.stdout.write(f"{args.output}: {len(cuts)} cuts, {total_s:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
