"""What a teacher gets at once: clips or windows of clips, grouped into batches of bounded duration.

Which pieces form a batch is a function of the clips and the settings alone, so that jobs, restarts
and other teachers change nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.formats.shards import CutInfo
from spear.teachers.windows import Window, Windowing

if TYPE_CHECKING:
    from spear.teachers import Teacher

A = TypeVar("A")


@dataclass(frozen=True)
class Piece:
    """What a teacher gets of a clip at once: all of it, or one window.

    Attributes:
        info: The clip.
        window: The window; None is the whole clip.
    """

    info: CutInfo
    window: Window | None = None

    @property
    def first_frame(self) -> int:
        """Number in the clip of the piece's first frame."""
        return 0 if self.window is None else self.window.first_frame

    @property
    def num_samples(self) -> int:
        """Samples at 16 kHz."""
        if self.window is None:
            return num_samples(self.info)
        stop = self.window.stop or num_samples(self.info)
        return stop - self.window.start


def num_samples(info: CutInfo) -> int:
    """Returns the samples of a clip at 16 kHz."""
    return round(info.duration_s * SAMPLE_RATE_HZ)


def batch_by_length(infos: Iterable[CutInfo], batch_s: float) -> list[list[CutInfo]]:
    """Groups clips of similar length; a function of the clips and `batch_s` alone.

    Args:
        infos: The clips.
        batch_s: Most seconds in a batch, padding counted; a longer clip is a batch of its own.

    Returns:
        Batches, the longest clips first, so that running out of memory shows at once.
    """
    in_order = sorted(infos, key=lambda one: (-one.duration_s, one.index))
    return _group(in_order, [one.duration_s for one in in_order], batch_s)


def batch_windows(pieces: Sequence[Piece], batch_s: float) -> list[list[Piece]]:
    """Groups windows in their order, so that every recording is read once and then let go."""
    return _group(pieces, [one.num_samples / SAMPLE_RATE_HZ for one in pieces], batch_s)


def _group(items: Sequence[A], lengths_s: Sequence[float], batch_s: float) -> list[list[A]]:
    """Cuts a sequence into groups of at most `batch_s`, each item as long as its longest."""
    groups: list[list[A]] = []
    longest = 0.0
    for item, length in zip(items, lengths_s, strict=True):
        longest = max(longest, length)
        if groups and longest * (len(groups[-1]) + 1) <= batch_s:
            groups[-1].append(item)
        else:
            groups.append([item])
            longest = length
    return groups


def split_long(
    teacher: "Teacher", infos: Iterable[CutInfo], windowing: Windowing
) -> tuple[list[CutInfo], list[Piece]]:
    """Returns the clips that are one pass of the teacher, and the windows of the others."""
    short: list[CutInfo] = []
    pieces: list[Piece] = []
    for info in infos:
        windows = teacher.windows(num_samples(info), windowing)
        pieces += [Piece(info, window) for window in windows]
        if not windows:
            short.append(info)
    return short, pieces


def plan_batches(
    teacher: "Teacher", infos: Iterable[CutInfo], batch_s: float, windowing: Windowing
) -> list[list[Piece]]:
    """Returns the batches of clips for one teacher; they depend on nothing else."""
    short, windows = split_long(teacher, infos, windowing)
    whole = [[Piece(info) for info in group] for group in batch_by_length(short, batch_s)]
    return whole + batch_windows(windows, batch_s)
