"""A teacher over batches of clips and windows: the frames of each, as of one pass.

All stages that need teacher frames (`embed`, `extract-tokens`, `verify --recheck`) go through here.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear.data.formats.shards import CutInfo
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.batches import AudioBatch, BatchReader, Piece, plan_batches
from spear.errors import ConfigError
from spear.system.parallel import in_threads
from spear.teachers import Excerpts, Teacher, Windowing


class TeacherFrames:
    """Computes a teacher's frames of batches.

    Attributes:
        teacher: The teacher.
        windowing: How recordings that are too long for one pass are cut.
    """

    def __init__(self, teacher: Teacher, windowing: Windowing) -> None:
        self.teacher = teacher
        self.windowing = windowing
        # What the teacher took from whole recordings of the latest batch: the next one may go on
        # with the same recording.
        self._known: list[tuple[np.ndarray, Tensor]] = []

    def __call__(self, batch: AudioBatch) -> list[tuple[Piece, Tensor]]:
        """Returns each piece with its own frames (T', D) float32 on the teacher's device."""
        audio = batch.audio.to(self.teacher.device, non_blocking=True)
        excerpts = self._excerpts(batch) if batch.recordings else None
        reps, lens = self.teacher(audio, batch.audio_lens.to(self.teacher.device), excerpts)
        frames = [rep[:length] for rep, length in zip(reps, lens.tolist(), strict=True)]
        return [
            (piece, own if piece.window is None else piece.window.core(own))
            for piece, own in zip(batch.pieces, frames, strict=True)
        ]

    def over(
        self, folder: ShardFolder, infos: Iterable[CutInfo], batch_s: float
    ) -> Iterator[list[tuple[Piece, Tensor]]]:
        """Computes the frames of clips of a folder, a few batches read ahead.

        Yields:
            For each batch its pieces with their frames, as `__call__` does. Pieces of a clip come
            in order and make up all its frames.
        """
        reader = BatchReader(folder, pin_memory=self.teacher.device.type == "cuda")
        batches = plan_batches(self.teacher, infos, batch_s, self.windowing)
        with closing(in_threads(reader, batches, num_workers=1, num_ahead=2)) as read:
            yield from map(self, read)

    def _excerpts(self, batch: AudioBatch) -> Excerpts:
        known, self._known = self._known, []
        found: dict[int, Tensor] = {}
        for index, recording in batch.recordings.items():
            former = [statistics for one, statistics in known if one is recording]
            found[index] = (
                former[0] if former else self.teacher.statistics(torch.from_numpy(recording))
            ).to(self.teacher.device)
            self._known.append((recording, found[index]))
        windows = [piece.window for piece in batch.pieces if piece.window is not None]
        statistics = torch.stack([found[piece.info.index] for piece in batch.pieces])
        return Excerpts([window.num_context for window in windows], statistics)


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Returns the identity of a teacher, with whether its channels want normalising."""
    return {**teacher.identity(), "normalize_channels": bool(teacher.normalize_channels)}


def check_sources(shards: Sequence[str], batch_s: float) -> None:
    """Raises `ConfigError` where a stage has no shard folder or no room in a batch."""
    if not shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    if batch_s <= 0:
        raise ConfigError(f"batch_s must be positive, not {batch_s}")
