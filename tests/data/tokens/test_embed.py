import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import embed
from spear.data.tokens.batches import num_samples
from spear.data.tokens.embed import EmbedConfig, choose_frames
from spear.errors import ConfigError, DataError
from spear.teachers import TeacherConfig, load_teacher

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


@pytest.fixture
def config(folder: ShardFolder, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(
        shards=[str(folder.path)],
        teacher=TeacherConfig(name="logmel"),
        output=str(tmp_path / "exp" / "logmel"),
        num_frames=60,
        clip_share=0.5,
        batch_s=2.0,
        device="cpu",
    )


def load(config: EmbedConfig) -> tuple[np.ndarray, dict[str, object]]:
    frames = np.load(f"{config.output}.frames.npy", mmap_mode="r")
    return frames, json.loads(Path(f"{config.output}.frames.json").read_text())


def test_frames_and_record(config: EmbedConfig) -> None:
    embed.run(config)
    frames, record = load(config)
    teacher = load_teacher(config.teacher)
    assert frames.shape == (60, teacher.dim)
    assert frames.dtype == np.float32
    expected = {**teacher.identity(), "normalize_channels": teacher.normalize_channels}
    assert record["teacher"] == expected
    assert (record["seed"], record["num_frames"], record["dim"]) == (0, 60, teacher.dim)
    assert 2 <= int(str(record["num_clips"])) < 12


def test_every_row_is_the_frame_that_was_chosen(config: EmbedConfig, folder: ShardFolder) -> None:
    embed.run(config)
    frames, _ = load(config)
    teacher = load_teacher(config.teacher)
    sample = choose_frames(config, [folder], teacher)
    assert sum(len(positions) for positions in sample.positions) == 60
    chosen = zip(sample.numbers.tolist(), sample.positions, sample.rows, strict=True)
    for number, positions, row in chosen:
        audio = torch.from_numpy(folder.audio(number))[None]
        reps, _ = teacher(audio, torch.tensor([audio.shape[1]]))
        found = frames[row : row + len(positions)]
        np.testing.assert_allclose(found, reps[0, positions], atol=1e-3)
        assert len(set(positions.tolist())) == len(positions)


def test_asking_for_more_than_there_is_takes_all_once(
    config: EmbedConfig, folder: ShardFolder
) -> None:
    teacher = load_teacher(config.teacher)
    sample = choose_frames(replace(config, num_frames=10**6), [folder], teacher)
    total = sum(teacher.num_frames(num_samples(info)) for info in folder)
    assert sample.num_frames == total
    assert sorted(sample.numbers) == list(range(12)) and not sample.sources.any()
    for number, positions in zip(sample.numbers.tolist(), sample.positions, strict=True):
        num_frames = teacher.num_frames(num_samples(folder.cut(number)))
        assert positions.tolist() == list(range(num_frames))


def test_clips_of_several_folders_have_their_own_numbers(
    config: EmbedConfig, folder: ShardFolder, tmp_path: Path
) -> None:
    shutil.copytree(folder.path, tmp_path / "other")
    folders = [folder, ShardFolder(tmp_path / "other")]
    sample = choose_frames(replace(config, num_frames=10**6), folders, load_teacher(config.teacher))
    chosen = list(zip(sample.sources.tolist(), sample.numbers.tolist(), strict=True))
    assert sorted(chosen) == [(source, number) for source in (0, 1) for number in range(12)]


def test_the_seed_decides(config: EmbedConfig) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        one = replace(config, output=f"{config.output}-{name}", seed=seed)
        embed.run(one)
        results.append(np.array(load(one)[0]))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_all_frames_are_equally_likely(config: EmbedConfig, folder: ShardFolder) -> None:
    teacher = load_teacher(config.teacher)
    counts = np.zeros((12, 50))
    for seed in range(300):
        sample = choose_frames(replace(config, seed=seed), [folder], teacher)
        for number, positions in zip(sample.numbers.tolist(), sample.positions, strict=True):
            counts[number, positions] += 1
    lengths = [teacher.num_frames(num_samples(info)) for info in folder]
    drawn = np.concatenate([counts[i, :length] for i, length in enumerate(lengths)])
    assert counts.sum() == drawn.sum() == 300 * 60
    mean = drawn.mean()
    assert drawn.min() > mean * 0.5 and drawn.max() < mean * 1.6
    first = np.mean([counts[i, 0] for i in range(12)])
    last = np.mean([counts[i, length - 1] for i, length in enumerate(lengths)])
    assert first == pytest.approx(last, rel=0.25)


def test_run_again_keeps_it_and_other_settings_are_refused(
    config: EmbedConfig, snapshot: Snapshot, tmp_path: Path
) -> None:
    embed.run(config)
    before = snapshot(tmp_path / "exp")
    embed.run(replace(config, batch_s=9.0))
    for change in ({"seed": 5}, {"teacher": TeacherConfig(name="mfcc")}):
        with pytest.raises(DataError, match=f"other settings \\({next(iter(change))}\\)"):
            embed.run(replace(config, **change))
    assert snapshot(tmp_path / "exp") == before


def test_a_run_that_died_leaves_nothing_and_is_repeated(
    config: EmbedConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embed, "_fill", die)
        with pytest.raises(KeyboardInterrupt):
            embed.run(config)
    assert not list((tmp_path / "exp").iterdir())
    embed.run(config)
    assert len(load(config)[0]) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "shards is not set"),
        ({"output": ""}, "output is not set"),
        ({"clip_share": 0.0}, "clip_share"),
        ({"batch_s": 0.0}, "batch_s"),
        ({"device": "cuda:77"}, "'cuda:77' cannot be used"),
    ],
)
def test_settings_that_do_not_fit(
    config: EmbedConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        embed.run(replace(config, **change))  # type: ignore[arg-type]
