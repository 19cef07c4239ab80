"""The pipeline of extraction: audio is read ahead, several teachers work on it, tokens go to disk.

A shard is the unit of work: its batches hold only its cuts, so that the bytes of its tokens depend
on nothing else, and what a killed job loses is the shards that it was at. Audio is decoded once for
all teachers whose tokens are missing. Three things happen at the same time: threads decode the next
batches (also of the next shard), the device works, and one thread writes finished shards.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from spear.data.formats.shards import CutInfo
from spear.data.formats.tokens import Tokens
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.extract_state import TokenState
from spear.data.tokens.extract_teacher import TokenMaker
from spear.data.tokens.pieces import Piece, batch_by_length, batch_windows, split_long
from spear.data.tokens.read_ahead import AudioBatch, BatchReader, map_ahead
from spear.system import ledger
from spear.system.progress import progress

MAX_WAITING_SHARDS = 2
"""Finished shards that wait to be written; then the device waits, too."""


@dataclass(frozen=True)
class Batch:
    """Pieces, and the teachers that get them.

    Attributes:
        pieces: All whole clips, or all windows of one teacher.
        makers: Who makes tokens of them.
    """

    pieces: list[Piece]
    makers: Sequence[TokenMaker]


@dataclass
class ShardWork:
    """A shard whose tokens are being made.

    Attributes:
        folder: Where it is.
        position: Its position in the folder.
        states: The teachers whose tokens it lacks.
        num_left: Batches that are still to come.
        found: For each teacher and cut (by its row) its tokens so far, piece by piece.
    """

    folder: ShardFolder
    position: int
    states: Sequence[TokenState]
    num_left: int = 0
    found: dict[str, list[list[Tokens]]] = field(default_factory=dict)

    @property
    def cuts(self) -> Sequence[CutInfo]:
        """The cuts of the shard."""
        return self.folder.cuts(self.position)

    def begin(self, batch_s: float) -> list[Batch]:
        """Makes room for the tokens and returns all audio for the teachers, in batches."""
        batches = plan_shard(self.cuts, [state.maker for state in self.states], batch_s)
        self.num_left = len(batches)
        self.found = {state.maker.name: [[] for _ in self.cuts] for state in self.states}
        return batches

    def add(self, maker: TokenMaker, batch: AudioBatch) -> None:
        """Makes one teacher's tokens of a batch."""
        found = self.found[maker.name]
        for piece, tokens in maker.tokens(batch):
            assert piece.first_frame == sum(map(len, found[piece.info.row]))
            found[piece.info.row].append(tokens)

    def write(self) -> None:
        """Writes the tokens of every teacher and lets go of them."""
        shard = self.folder.shard_ids[self.position]
        for state in self.states:
            tokens = [np.concatenate(own) for own in self.found.pop(state.maker.name)]
            state.write(shard, self.cuts, tokens)


def plan_shard(
    cuts: Sequence[CutInfo], makers: Sequence[TokenMaker], batch_s: float
) -> list[Batch]:
    """Returns the batches of a shard; each teacher's are the same whoever else takes part.

    Clips that are one pass of a teacher form the same batches for all teachers for which they are;
    windows are each teacher's own.
    """
    windows: list[Batch] = []
    groups: dict[tuple[int, ...], tuple[list[CutInfo], list[TokenMaker]]] = {}
    for maker in makers:
        short, pieces = split_long(maker.teacher, cuts, maker.windowing)
        windows += [Batch(group, [maker]) for group in batch_windows(pieces, batch_s)]
        key = tuple(info.index for info in short)
        groups.setdefault(key, (short, []))[1].append(maker)
    whole = [
        Batch([Piece(info) for info in batch], sharing)
        for short, sharing in groups.values()
        for batch in batch_by_length(short, batch_s)
    ]
    return whole + windows


@dataclass(frozen=True)
class Extractor:
    """Makes the tokens of shards.

    Attributes:
        makers: Teachers with their quantisers.
        batch_s: Most seconds of audio in a batch.
        num_workers: Threads that decode; 0 decodes and writes between batches.
    """

    makers: Sequence[TokenMaker]
    batch_s: float
    num_workers: int

    def missing(self, states: Sequence[TokenState], positions: Sequence[int]) -> list[ShardWork]:
        """Returns the work that is left at some positions of a folder."""
        folder = states[0].folder
        finished = [(state, state.finished()) for state in states]
        found = []
        for position in positions:
            shard = folder.shard_ids[position]
            lacking = [state for state, done in finished if shard not in done]
            if lacking:
                found.append(ShardWork(folder, position, lacking))
        return found

    def extract(self, states: Sequence[TokenState], positions: Sequence[int]) -> None:
        """Writes the missing tokens of the shards at some positions of a folder.

        Raises:
            SpearError: A recording cannot be read, or tokens cannot be made or written.
        """
        work = self.missing(states, positions)
        names = ", ".join(state.maker.name for state in states)
        label = f"extract {names} {states[0].folder.path.name}"
        with (
            BehindWriter(MAX_WAITING_SHARDS if self.num_workers else 0) as writer,
            closing(self._made(work)) as shards,
        ):
            for shard in progress(shards, label, total=len(work)):
                writer.submit(shard)
                ledger.note(audio_hours=sum(cut.duration_s for cut in shard.cuts) / 3600)

    def _made(self, work: Sequence[ShardWork]) -> Generator[ShardWork]:
        """Yields each shard when all its tokens are made."""
        for shard in work:
            if not shard.cuts:  # has no batch that could be its last
                shard.begin(self.batch_s)
                yield shard
        for shard, batch, audio in self._batches(work):
            for maker in batch.makers:
                shard.add(maker, audio)
            shard.num_left -= 1
            if shard.num_left == 0:
                yield shard

    def _batches(self, work: Sequence[ShardWork]) -> Iterator[tuple[ShardWork, Batch, AudioBatch]]:
        """Yields the batches of shards in their order, with audio."""
        if work:
            with closing(self.read(work[0].folder, self._items(work))) as batches:
                for (shard, batch), audio in batches:
                    yield shard, batch, audio

    def _items(self, work: Sequence[ShardWork]) -> Iterator[tuple[ShardWork, Batch]]:
        for shard in work:
            for batch in shard.begin(self.batch_s):
                yield shard, batch

    def read(
        self, folder: ShardFolder, items: Iterable[tuple[ShardWork, Batch]]
    ) -> Generator[tuple[tuple[ShardWork, Batch], AudioBatch]]:
        """Yields batches of a folder with their audio, which is read ahead."""
        for maker in self.makers:
            maker.begin_folder()
        on_gpu = self.makers[0].teacher.device.type == "cuda"
        reader = BatchReader(folder, pin_memory=on_gpu)
        return map_ahead(lambda item: reader(item[1].pieces), items, self.num_workers)


class BehindWriter:
    """Writes shards in a thread of its own; a context manager that waits for the last one."""

    def __init__(self, max_waiting: int) -> None:
        """At most `max_waiting` shards wait; with 0 `submit` writes."""
        self._max_waiting = max_waiting
        self._waiting: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")

    def submit(self, shard: ShardWork) -> None:
        """Hands a shard over; waits where too many are waiting.

        Raises:
            DataError: A shard before it could not be written.
        """
        self._waiting.append(self._pool.submit(shard.write))
        while len(self._waiting) > self._max_waiting:
            self._waiting.pop(0).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)  # what is made is kept, even if the next shard failed
        for written in self._waiting if kind is None else []:
            written.result()
