"""Runs a teacher over clips of a shard folder, batched by length.

Both stages that need teacher frames (`embed`, `extract`) go through here: clips of similar length
are padded into batches of bounded duration, and every clip's valid frames come back by themselves.
Also what the two share around it: the device, and the teacher's identity in JSON.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.shards import CutInfo, ShardFolder
from spear.errors import ConfigError

if TYPE_CHECKING:
    from spear.teachers import Teacher


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
    batches: list[list[CutInfo]] = []
    for info in sorted(infos, key=lambda one: (-one.duration_s, one.index)):
        longest = batches[-1][0].duration_s if batches else 0.0
        if batches and longest * (len(batches[-1]) + 1) <= batch_s:
            batches[-1].append(info)
        else:
            batches.append([info])
    return batches


def represent(
    teacher: "Teacher",
    folder: ShardFolder,
    infos: Iterable[CutInfo],
    batch_s: float,
    device: torch.device,
) -> Iterator[tuple[list[CutInfo], list[Tensor]]]:
    """Computes teacher frames of clips.

    Yields:
        Clips of a batch and for each its frames (T', D) float32 on the teacher's device.
    """
    for batch in batch_by_length(infos, batch_s):
        audio, audio_lens = pad_audio([folder.audio(info) for info in batch])
        reps, lens = teacher(audio.to(device), audio_lens.to(device))
        yield batch, [rep[:length] for rep, length in zip(reps, lens.tolist(), strict=True)]


def pad_audio(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pads waveforms (S_i,) with zeros to (B, S) float32, and gives their lengths (B,) int64."""
    lens = torch.tensor([len(one) for one in waveforms], dtype=torch.int64)
    audio = torch.zeros(len(waveforms), int(lens.max()))
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return audio, lens


def describe_teacher(teacher: "Teacher") -> dict[str, Any]:
    """Returns the identity of a teacher, with whether its channels want normalising."""
    return {**teacher.identity(), "normalize_channels": bool(teacher.normalize_channels)}


def check_sources(shards: Sequence[str], batch_s: float) -> None:
    """Raises `ConfigError` where a stage has no shard folder or no room in a batch."""
    if not shards:
        raise ConfigError("shards is not set: name at least one shard folder")
    if batch_s <= 0:
        raise ConfigError(f"batch_s must be positive, not {batch_s}")
