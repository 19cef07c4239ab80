"""Batches of clips and windows, and audio that is read ahead."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from spear.data.formats.shards import CutInfo
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens.pieces import batch_windows, plan_batches
from spear.data.tokens.read_ahead import BatchReader, map_ahead
from spear.data.tokens.represent import represent
from spear.errors import AudioError
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


def test_results_come_in_order_and_few_are_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for num_workers in (0, 1, 3):
        taken.clear()
        results = []
        for item, square in map_ahead(lambda one: one * one, items(), num_workers):
            results.append((item, square))
            assert len(taken) - len(results) <= (num_workers + 2 if num_workers else 0)
        assert results == [(number, number**2) for number in range(20)]


def test_work_goes_on_while_the_caller_is_busy() -> None:
    began = threading.Event()
    results = map_ahead(lambda number: began.set() if number else None, [0, 1], num_workers=1)
    next(results)
    assert began.wait(timeout=10)  # the second was begun, though nobody asked for it
    results.close()


def test_an_error_in_a_thread_is_raised_as_it_is() -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise AudioError("cut 2: broken")
        return number

    done = []
    with pytest.raises(AudioError, match=r"^cut 2: broken$"):
        done += [item for item, _ in map_ahead(fail, range(5), num_workers=2)]
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


def test_threads_read_what_one_reads(folder: ShardFolder) -> None:
    teacher = load_teacher(LOGMEL)
    batches = plan_batches(teacher, list(folder), 1.5, Windowing(0.0))
    assert len(batches) > 4
    reader = BatchReader(folder)
    expected = [reader(batch) for batch in batches]
    for (batch, found), wanted in zip(
        map_ahead(reader, batches, num_workers=3), expected, strict=True
    ):
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
    for batch in represent(teacher, folder, list(folder), 0.5, windowing):
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
