"""Joins short recordings of one speaker into longer cuts, for corpora of isolated words.

A corpus of single words has little to recognise. `join_cuts` strings three to six of them (or
whatever range is asked for) into one lhotse `MixedCut` with short silences in between and their
transcripts one after the other. Every recording is used exactly once in a pass, and which ones meet
depends on the seed, the split, the speaker and the pass alone.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut, MixedCut, MixTrack
from lhotse.utils import fastcopy

from spear.errors import ConfigError
from spear.system.rng import generator


def parse_range(join: str) -> tuple[int, int]:
    """Reads "3-6" (or "4") as the fewest and the most recordings of a joined cut.

    Raises:
        ConfigError: It is no such range.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", join)
    fewest = int(match[1]) if match else 0
    most = int(match[2] or match[1]) if match else 0
    if not 1 <= fewest <= most:
        raise ConfigError(f"join must be a range such as 3-6, not {join!r}")
    return fewest, most


def join_cuts(
    cuts: Sequence[Cut],
    prefix: str,
    *,
    sizes: tuple[int, int],
    gap_s: tuple[float, float],
    seed: int,
    num_passes: int = 1,
) -> list[MixedCut]:
    """Joins the cuts of one speaker.

    Args:
        cuts: Cuts of one speaker and one split, each with one transcribed supervision.
        prefix: Beginning of the new ids, and part of what seeds the order: e.g. "train-george".
        sizes: Fewest and most cuts in a joined one; a remainder may be smaller.
        gap_s: Shortest and longest silence between two cuts, in seconds.
        seed: The run's seed.
        num_passes: How often every cut is used, each time with other neighbours.

    Returns:
        The joined cuts `{prefix}-{pass}-{number}`.
    """
    joined = []
    for number in range(num_passes):
        random = generator(seed, f"join/{prefix}", number)
        order = [cuts[i] for i in random.permutation(len(cuts))]
        for group, size in enumerate(_group_sizes(len(order), sizes, random)):
            members, order = order[:size], order[size:]
            joined.append(_join(members, f"{prefix}-{number}-{group:05d}", gap_s, random))
    return joined


def _group_sizes(total: int, sizes: tuple[int, int], random: np.random.Generator) -> Iterator[int]:
    """Yields group sizes that add up to `total`, drawn evenly from those that leave no scraps."""
    fewest, most = sizes
    while total > 0:
        fitting = [
            size
            for size in range(fewest, min(most, total) + 1)
            if total == size or total - size >= fewest
        ]
        # No choice leaves enough for a further group: take what there is, as evenly as can be.
        size = int(random.choice(fitting)) if fitting else min(most, total)
        yield size
        total -= size


def _join(
    members: Sequence[Cut], cut_id: str, gap_s: tuple[float, float], random: np.random.Generator
) -> MixedCut:
    """Lays cuts one after the other with random silences, under one merged supervision."""
    tracks, offset = [], 0.0
    gaps = random.uniform(*gap_s, size=len(members))
    for cut, gap in zip(members, gaps, strict=True):
        tracks.append(MixTrack(cut=cut.drop_supervisions(), offset=round(offset, 4)))
        offset = tracks[-1].offset + cut.duration + float(gap)
    assert all(left.offset < right.offset for left, right in pairwise(tracks))
    first = members[0].supervisions[0]
    merged = SupervisionSegment(
        id=cut_id,
        recording_id=first.recording_id,
        start=0.0,
        duration=MixedCut(id=cut_id, tracks=tracks).duration,
        text=" ".join(text for cut in members if (text := cut.supervisions[0].text)),
        speaker=first.speaker,
    )
    # lhotse keeps the supervision of a whole mix on its first track, as merge_supervisions does.
    tracks[0] = fastcopy(tracks[0], cut=fastcopy(tracks[0].cut, supervisions=[merged]))
    return MixedCut(id=cut_id, tracks=tracks)
