"""The pipeline of extraction: audio is read ahead, several teachers work on it, tokens go to disk.

A shard is the unit of work: its batches hold only its cuts, so that the bytes of its tokens depend
on nothing else, and what a killed job loses is the shards that it was at. Audio is decoded once for
all teachers whose tokens are missing. Three things happen at the same time: threads decode the next
batches (also of the next shard), the device works, and one thread writes finished shards.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from spear.data.formats.shards import CutInfo
from spear.data.formats.tokens import Tokens
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.batches import (
    AudioBatch,
    BatchReader,
    Piece,
    batch_clips,
    batch_windows,
    split_long,
)
from spear.data.tokens.finished import TokenState
from spear.data.tokens.maker import TokenMaker
from spear.system import ledger
from spear.system.parallel import in_threads
from spear.system.progress import progress

MAX_WAITING_SHARDS = 2
"""Finished shards that wait to be written; then the device waits, too."""


@dataclass
class ShardWork:
    """A shard whose tokens are being made.

    Attributes:
        folder: Where it is.
        position: Its position in the folder.
        states: The teachers whose tokens it lacks.
        cuts: The cuts of the shard, while it is worked on.
        found: For each teacher and cut (by its row) its tokens so far, piece by piece.
    """

    folder: ShardFolder
    position: int
    states: Sequence[TokenState]
    cuts: Sequence[CutInfo] = ()
    found: dict[str, list[list[Tokens]]] = field(default_factory=dict)

    def add(self, maker: TokenMaker, audio: AudioBatch) -> None:
        """Makes one teacher's tokens of a batch."""
        found = self.found.setdefault(maker.name, [[] for _ in self.cuts])
        for piece, tokens in maker.tokens(audio):
            assert piece.first_frame == sum(map(len, found[piece.info.row]))
            found[piece.info.row].append(tokens)

    def write(self) -> float:
        """Writes the tokens of every teacher and lets go of them; returns seconds of audio."""
        shard = self.folder.shard_ids[self.position]
        for state in self.states:
            tokens = [np.concatenate(own) for own in self.found.pop(state.maker.name, [])]
            state.write(shard, self.cuts, tokens)
        audio_s = sum(cut.duration_s for cut in self.cuts)
        self.cuts = ()
        return audio_s


@dataclass(frozen=True)
class Batch:
    """Pieces of a shard, and the teachers that get them.

    Attributes:
        shard: The shard.
        pieces: All whole clips, or all windows of one teacher.
        makers: Who makes tokens of them.
        is_last: Whether the shard is finished with it.
    """

    shard: ShardWork
    pieces: Sequence[Piece]
    makers: Sequence[TokenMaker]
    is_last: bool


def missing_shards(states: Sequence[TokenState], positions: Iterable[int]) -> list[ShardWork]:
    """Returns the work that is left at some positions of a folder, for all its teachers."""
    folder = states[0].folder
    finished = [(state, state.finished()) for state in states]
    found = []
    for position in positions:
        shard = folder.shard_ids[position]
        lacking = [state for state, done in finished if shard not in done]
        if lacking:
            found.append(ShardWork(folder, position, lacking))
    return found


def extract(
    states: Sequence[TokenState], positions: Iterable[int], batch_s: float, num_workers: int
) -> None:
    """Writes the missing tokens of the shards at some positions of a folder.

    Args:
        states: The folder's teachers.
        positions: Which shards.
        batch_s: Most seconds of audio in a batch.
        num_workers: Threads that decode; 0 decodes and writes between batches.

    Raises:
        SpearError: A recording cannot be read, or tokens cannot be made or written.
    """
    work = missing_shards(states, positions)
    names = ", ".join(state.maker.name for state in states)
    label = f"extract {names} {states[0].folder.path.name}"
    made = _made(states, work, batch_s, num_workers)
    num_writers = min(1, num_workers)
    with closing(in_threads(ShardWork.write, made, num_writers, MAX_WAITING_SHARDS)) as written:
        for audio_s in progress(written, label, total=len(work)):
            ledger.note(audio_hours=audio_s / 3600)


def _made(
    states: Sequence[TokenState], work: Sequence[ShardWork], batch_s: float, num_workers: int
) -> Generator[ShardWork]:
    """Yields each shard when all its tokens are made."""
    batches = (batch for shard in work for batch in plan_shard(shard, batch_s))
    with closing(read_ahead(states[0], batches, num_workers)) as read:
        for batch, audio in read:
            for maker in batch.makers:
                batch.shard.add(maker, audio)
            if batch.is_last:
                yield batch.shard


def read_ahead(
    state: TokenState, batches: Iterable[Batch], num_workers: int
) -> Generator[tuple[Batch, AudioBatch]]:
    """Yields batches of the folder of `state` with their audio, read ahead by threads."""
    reader = BatchReader(state.folder, pin_memory=state.maker.teacher.device.type == "cuda")
    return in_threads(
        lambda batch: (batch, reader(batch.pieces)), batches, num_workers, num_workers + 1
    )


def plan_shard(shard: ShardWork, batch_s: float) -> list[Batch]:
    """Returns the batches of a shard; each teacher's are the same whoever else takes part.

    Clips that are one pass of a teacher form the same batches for all teachers for which they are;
    windows are each teacher's own. A shard without cuts has one batch of nothing.
    """
    shard.cuts = shard.folder.cuts(shard.position)
    windows: list[tuple[list[Piece], list[TokenMaker]]] = []
    groups: dict[tuple[int, ...], tuple[list[CutInfo], list[TokenMaker]]] = {}
    for maker in (state.maker for state in shard.states):
        short, pieces = split_long(maker.teacher, shard.cuts, maker.windowing)
        windows += [(group, [maker]) for group in batch_windows(pieces, batch_s)]
        key = tuple(info.index for info in short)
        groups.setdefault(key, (short, []))[1].append(maker)
    whole = [
        (pieces, sharing)
        for short, sharing in groups.values()
        for pieces in batch_clips(short, batch_s)
    ]
    batches = whole + windows or [([], [])]
    last = len(batches) - 1
    return [Batch(shard, *one, is_last=number == last) for number, one in enumerate(batches)]
