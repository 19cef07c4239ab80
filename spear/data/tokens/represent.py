"""Runs teachers over clips of a shard folder, batched by length and read ahead.

All stages that need teacher frames (`embed`, `extract-tokens`, `verify --recheck`) go through here.
Clips of similar length are padded into batches of bounded duration; a clip that is too long for one
pass is cut into windows, which are batched as clips are.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spear.data.formats.shards import CutInfo
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.pieces import Piece, batch_by_length, num_samples, plan_batches
from spear.data.tokens.read_ahead import AudioBatch, BatchReader, map_ahead, pad_audio
from spear.errors import ConfigError
from spear.teachers.windows import Excerpts, Windowing

if TYPE_CHECKING:
    from spear.teachers import Teacher

__all__ = ["batch_by_length", "num_samples", "pad_audio", "represent", "represent_batch"]


def represent_batch(
    teacher: "Teacher", batch: AudioBatch, known: dict[int, Tensor]
) -> list[tuple[Piece, Tensor]]:
    """Computes the frames of a batch.

    Args:
        teacher: The teacher.
        batch: The batch.
        known: The teacher's statistics of recordings by index, which this function keeps: those of
            the latest batch, since the next one may go on with the same recording.

    Returns:
        Each piece with its own frames (T', D) float32 on the teacher's device.
    """
    device = teacher.device
    audio = batch.audio.to(device, non_blocking=True)
    excerpts = _excerpts(teacher, batch, known) if batch.pieces[0].window else None
    reps, lens = teacher(audio, batch.audio_lens.to(device), excerpts)
    frames = [rep[:length] for rep, length in zip(reps, lens.tolist(), strict=True)]
    return [
        (piece, own if piece.window is None else piece.window.core(own))
        for piece, own in zip(batch.pieces, frames, strict=True)
    ]


def _excerpts(teacher: "Teacher", batch: AudioBatch, known: dict[int, Tensor]) -> Excerpts:
    for index in known.keys() - batch.recordings.keys():
        del known[index]
    for index, recording in batch.recordings.items():
        if index not in known:
            known[index] = teacher.statistics(torch.from_numpy(recording)).to(teacher.device)
    windows = [piece.window for piece in batch.pieces if piece.window is not None]
    statistics = torch.stack([known[piece.info.index] for piece in batch.pieces])
    return Excerpts([window.num_context for window in windows], statistics)


def represent(
    teacher: "Teacher",
    folder: ShardFolder,
    infos: Iterable[CutInfo],
    batch_s: float,
    windowing: Windowing,
) -> Iterator[list[tuple[Piece, Tensor]]]:
    """Computes one teacher's frames of clips, one batch read ahead.

    Yields:
        For each batch its pieces with their frames (T', D) float32 on the teacher's device. Pieces
        of a clip come in order and make up all its frames.
    """
    known: dict[int, Tensor] = {}
    reader = BatchReader(folder, pin_memory=teacher.device.type == "cuda")
    batches = plan_batches(teacher, infos, batch_s, windowing)
    for _, batch in map_ahead(reader, batches, num_workers=1):
        yield represent_batch(teacher, batch, known)


def describe_teacher(teacher: "Teacher") -> dict[str, Any]:
    """Returns the identity of a teacher, with whether its channels want normalising."""
    return {**teacher.identity(), "normalize_channels": bool(teacher.normalize_channels)}


def check_sources(shards: Sequence[str], batch_s: float) -> None:
    """Raises `ConfigError` where a stage has no shard folder or no room in a batch."""
    if not shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    if batch_s <= 0:
        raise ConfigError(f"batch_s must be positive, not {batch_s}")
