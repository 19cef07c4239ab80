"""What reading costs: time by part, processor time of workers, and batches that stay the same."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from spear.data.formats.tars import FileReader
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.loader import BatchDataset, Place, open_noise
from spear.encoders.frame_grid import StudentFrames
from spear.errors import AudioError
from spear.pretrain import data_bench as bench
from spear.pretrain.augment import AugmentConfig, Augmenter
from spear.pretrain.collate import Collator, TokenLayout
from spear.pretrain.data_bench import (
    DECODING,
    FEATURES,
    PARTS,
    READING,
    REST,
    time_parts,
    time_pass,
)
from spear.pretrain.masking import MaskConfig, MaskSampler
from tests.pretrain.small_shards import make_clip, write_corpus, write_shards

REQUIRED = {"speech": ("wavlm",), "audio": ("wavlm", "dasheng")}


def make_dataset(folders):
    index = ClipIndex([SourceConfig(str(folder)) for folder in folders], REQUIRED, {})
    layouts = {"wavlm": TokenLayout(4), "dasheng": TokenLayout(2, repeat=2)}
    collator = Collator(layouts, StudentFrames(), MaskSampler(MaskConfig(), 32), 32)
    config = AugmentConfig(prob=0.9, mixing_share=0.5)
    augmenter = Augmenter(config, {"wavlm": 50.0}, open_noise(config, index))
    return BatchDataset(index, collator, 5, "train", augmenter)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


ITEMS = [(Place(0, 0, 0, 1), [0, 1, 2, 3]), (Place(0, 1, 0, 1), [12, 13, 14])]


def test_an_inner_part_does_not_count_in_the_outer_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    clock = bench._Clock()
    inner = clock.timed(FEATURES, lambda: wait(3.0))

    def read():
        wait(5.0)
        FileReader.total.seconds += 5.0

    def outer():
        wait(1.0)
        inner()
        read()
        wait(0.5)

    clock.timed(DECODING, outer)()
    expected = {DECODING: 1.5, FEATURES: 3.0}
    assert clock.seconds == pytest.approx(dict.fromkeys(PARTS, 0.0) | expected)
    assert clock.reading_s == pytest.approx(5.0)


def test_time_is_kept_when_a_part_fails(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    clock = bench._Clock()

    def fail():
        now[0] += 2.0
        raise AudioError("broken")

    with pytest.raises(AudioError):
        clock.timed(DECODING, fail)()
    assert clock.seconds[DECODING] == 2.0


def test_parts_add_up_and_the_dataset_makes_the_same_batches_afterwards(corpus):
    dataset = make_dataset(corpus)
    before = [dataset[item] for item in ITEMS]
    begin = time.perf_counter()
    times = time_parts(dataset, ITEMS)
    elapsed_s = time.perf_counter() - begin
    assert times.num_batches == 2
    assert times.audio_s == pytest.approx(sum(batch.audio_s for batch in before))
    assert all(seconds > 0 for seconds in times.seconds.values()), times.seconds
    assert 0.5 * elapsed_s < times.total_s <= elapsed_s
    assert times.ms_per_batch(REST) == pytest.approx(500 * times.seconds[REST])
    frames = sum(batch.fbank[..., 0].numel() for batch in before)
    valid = sum(int(batch.fbank_lens.sum()) for batch in before)
    assert times.padding == pytest.approx(1 - valid / frames)
    for item, batch in zip(ITEMS, before, strict=True):
        assert torch.equal(dataset[item].fbank, batch.fbank)
    assert isinstance(dataset.augmenter, Augmenter) and isinstance(dataset.collator, Collator)


def test_bytes_are_those_of_the_clips_and_their_tokens(tmp_path):
    clips = [make_clip(number, "audio", duration_s=1.0) for number in range(3)]
    dataset = make_dataset([write_shards(tmp_path / "audio", clips)])
    dataset.augmenter = None
    times = time_parts(dataset, [(Place(0, 0, 0, 1), [0, 1])])
    sizes = [dataset.index.place(i)[0].field(name)[1][i] for i in (0, 1) for name in
             ("audio", "wavlm", "dasheng")]  # fmt: skip
    headers = 512 * len(sizes)
    assert times.num_bytes == sum(map(int, sizes)) + headers
    assert times.megabytes_per_hour == pytest.approx(times.num_bytes / 1e6 / (2 / 3600))
    assert times.megabytes_per_s == pytest.approx(times.num_bytes / 1e6 / times.seconds[READING])


def test_a_broken_clip_is_the_users_error(corpus, monkeypatch):
    dataset = make_dataset(corpus)

    def broken(number):
        raise AudioError(f"clip {number} is broken")

    monkeypatch.setattr(dataset.index, "example", broken)
    with pytest.raises(AudioError, match="clip 0 is broken"):
        time_parts(dataset, ITEMS)


def burn(number):
    """A batch that costs a tenth of a second of processor time."""
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    return SimpleNamespace(audio_s=1.5, worker=os.getpid())


def burning_loader(num_workers):
    return iter(DataLoader(range(3), batch_size=None, num_workers=num_workers, collate_fn=burn))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_counts_the_processor_time_of_its_workers(num_workers):
    found = time_pass(lambda: burning_loader(num_workers))
    assert (found.num_batches, found.audio_s) == (3, 4.5)
    assert 0.3 <= found.cpu_s < 1.5
    assert 0.1 <= found.first_s < found.wall_s
    assert found.per_core == pytest.approx(4.5 / found.cpu_s)
    assert found.per_hour == pytest.approx(4.5 / found.wall_s)
    assert found.batches_per_s == pytest.approx(3 / found.wall_s)


def test_the_system_is_asked_to_forget_the_tars_alone(corpus, monkeypatch):
    asked = []

    def advise(descriptor, offset, length, advice):
        asked.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    tars = [path.resolve() for folder in corpus for path in sorted(folder.glob("*.tar"))]
    assert bench.forget_files(corpus) == len(tars)
    assert asked == tars
    monkeypatch.delattr(os, "posix_fadvise")
    assert bench.forget_files(corpus) == 0


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(AudioError), bench.one_thread():
        assert torch.get_num_threads() == 1
        raise AudioError("stop")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
