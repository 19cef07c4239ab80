"""Batches of clips and windows, and audio that is read ahead."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spear.data.formats.shards import CutInfo
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.batches import BatchReader, batch_clips, batch_windows, plan_batches
from spear.data.tokens.frames import TeacherFrames
from spear.system.parallel import in_threads
from spear.teachers import Windowing, load_teacher

LOGMEL = {"name": "logmel"}


def clip(index: int, duration_s: float) -> CutInfo:
    return CutInfo(index, f"{index}", duration_s, "speech", None, None, 0, index)


def test_windows_are_batched_in_order_and_clips_by_length() -> None:
    clips = [clip(0, 5.0), clip(1, 100.0), clip(2, 7.0), clip(3, 70.0)]
    teacher = load_teacher(LOGMEL)
    batches = plan_batches(teacher, clips, 120.0, Windowing(30.0, 5.0))
    assert [piece.info.index for piece in batches[0]] == [2, 0]
    windows = [piece for batch in batches[1:] for piece in batch]
    assert [piece.info.index for piece in windows] == [1, 1, 1, 1, 3, 3, 3]
    assert [piece.first_frame for piece in windows] == [0, 1500, 3000, 4500, 0, 1500, 3000]
    for batch in batches[1:]:
        longest = max(piece.num_samples for piece in batch)
        assert longest * len(batch) <= 120 * 16000
    assert len(batch_windows(windows, 1.0)) == 7  # one at least
    assert len(plan_batches(teacher, clips, 500.0, Windowing(0.0))) == 1


def test_batches_hold_every_clip_within_the_budget() -> None:
    durations = np.random.default_rng(0).uniform(0.2, 12.0, 200)
    infos = [clip(i, duration) for i, duration in enumerate(durations.tolist())]
    batches = batch_clips(infos, batch_s=20.0)
    assert sorted(piece.info.index for batch in batches for piece in batch) == list(range(200))
    padded = [max(piece.info.duration_s for piece in batch) * len(batch) for batch in batches]
    assert max(padded) <= 20.0
    assert sum(durations) / sum(padded) > 0.9
    assert [len(batch) for batch in batch_clips(infos[:3], batch_s=0.01)] == [1, 1, 1]


def test_threads_read_what_one_reads(folder: ShardFolder) -> None:
    teacher = load_teacher(LOGMEL)
    batches = plan_batches(teacher, list(folder), 1.5, Windowing(0.0))
    assert len(batches) > 4
    reader = BatchReader(folder)
    expected = [reader(batch) for batch in batches]
    for batch, found, wanted in zip(batches, in_threads(reader, batches, 3), expected, strict=True):
        assert found.pieces == batch
        assert torch.equal(found.audio, wanted.audio)
        for row, piece in enumerate(batch):
            np.testing.assert_array_equal(
                found.audio[row, : found.audio_lens[row]], folder.audio(piece.info)
            )


def test_a_long_recording_is_decoded_once(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear.teachers.windows.MIN_WINDOW_S", 0.1)  # the clips are short
    monkeypatch.setattr("spear.teachers.windows.MIN_CONTEXT_S", 0.04)
    windowing = Windowing(0.1, 0.04)
    decoded: list[str] = []
    read = ShardFolder.audio
    monkeypatch.setattr(
        ShardFolder, "audio", lambda self, info: decoded.append(info.id) or read(self, info)
    )
    teacher = load_teacher(LOGMEL)
    found: dict[int, list[torch.Tensor]] = {}
    for batch in TeacherFrames(teacher, windowing).over(folder, list(folder), 0.5):
        for piece, frames in batch:
            found.setdefault(piece.info.index, []).append(frames)
    assert sorted(decoded) == sorted(info.id for info in folder)
    assert max(map(len, found.values())) > 3
    for info in folder:
        audio = torch.from_numpy(read(folder, info))[None]
        whole, _ = teacher(audio, torch.tensor([audio.shape[1]]))
        torch.testing.assert_close(torch.cat(found[info.index]), whole[0], atol=1e-5, rtol=0)


def test_a_piece_knows_its_samples() -> None:
    info = clip(0, 61.0)
    batches = plan_batches(load_teacher(LOGMEL), [info], 1000.0, Windowing(30.0, 5.0))
    (pieces,) = batches
    assert [piece.num_samples for piece in pieces] == [35 * 16000, 36 * 16000]
    assert replace(pieces[0], window=None).num_samples == 61 * 16000
