"""Several teachers in one pass, windows, and the errors of both."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear.data.formats.tokens import TokenTarWriter
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.extract import ExtractConfig, TeacherTokens
from spear.errors import AudioError, ConfigError, DataError, TokenError
from spear.teachers import TeacherConfig
from tests.data.fake_quantizer import write_quantizer

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]
MFCC_DIM = 78


@pytest.fixture
def several(extract_config: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """Log-mel and MFCC teachers for the same folder."""
    other = write_quantizer(tmp_path / "mfcc.json", dim=MFCC_DIM, num_codebooks=3)
    return replace(
        extract_config,
        teacher=TeacherConfig(),
        quantizer="",
        teachers={
            "logmel": TeacherTokens(quantizer=extract_config.quantizer),
            "mfcc": TeacherTokens(quantizer=other),
        },
    )


def bytes_of(folder: ShardFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.glob("*_tokens*")}


def remove_tokens(folder: ShardFolder) -> None:
    for path in folder.path.glob("*_tokens*"):
        path.unlink()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    read, counts = ShardFolder.audio, Counter[str]()

    def audio(self: ShardFolder, info: Any) -> np.ndarray:
        counts[info.id] += 1
        return read(self, info)

    monkeypatch.setattr(ShardFolder, "audio", audio)
    return counts


def test_audio_is_decoded_once_and_the_bytes_are_those_of_each_alone(
    several: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: dict[str, bytes] = {}
    for name, entry in several.teachers.items():
        extract.run(replace(several, teachers={name: entry}))
        alone |= bytes_of(folder)
    remove_tokens(folder)
    counts = count_reads(monkeypatch)
    extract.run(several)
    assert set(counts.values()) == {1} and len(counts) == len(folder)
    assert bytes_of(folder) == alone
    assert ShardFolder(folder.path).teachers() == ["logmel", "mfcc"]


def test_only_the_teacher_that_is_missing_runs(
    several: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    extract.run(several)
    complete = snapshot(folder.path)
    (folder.path / "mfcc_tokens.000001.tar").unlink()
    counts = count_reads(monkeypatch)
    extract.run(several)
    assert sorted(counts) == sorted(info.id for info in folder.cuts(1))
    after = snapshot(folder.path)
    changed = [Path(name).name for name in complete if after[name] != complete[name]]
    assert changed == ["mfcc_tokens.000001.tar"]
    assert {n: c for n, (_, c) in after.items()} == {n: c for n, (_, c) in complete.items()}


def test_a_teacher_may_have_folders_of_its_own(
    several: ExtractConfig, folder: ShardFolder, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.path.glob("[cr]*.0000*"):
        (other / path.name).write_bytes(path.read_bytes())
    mfcc = replace(several.teachers["mfcc"], shards=[str(other)])
    extract.run(
        replace(
            several,
            shards=[str(folder.path), str(other)],
            teachers={**several.teachers, "mfcc": mfcc},
        )
    )
    assert ShardFolder(folder.path).teachers() == ["logmel"]
    assert ShardFolder(other).teachers() == ["logmel", "mfcc"]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_bytes_do_not_depend_on_the_workers(
    several: ExtractConfig, folder: ShardFolder, num_workers: int
) -> None:
    extract.run(several)
    expected = bytes_of(folder)
    remove_tokens(folder)
    extract.run(replace(several, num_workers=num_workers))
    assert bytes_of(folder) == expected


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Settings of windows that are shorter than the clips, as users cannot ask for them."""
    monkeypatch.setattr("spear.teachers.windows.MIN_WINDOW_S", 0.1)
    monkeypatch.setattr("spear.teachers.windows.MIN_CONTEXT_S", 0.05)
    return {"window_s": 0.1, "context_s": 0.06}


def test_long_clips_are_cut_into_windows(
    several: ExtractConfig,
    folder: ShardFolder,
    short_windows: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract.run(several)
    tokens = [folder.tokens(info, "mfcc") for info in folder]
    remove_tokens(folder)
    lengths = watch_lengths(monkeypatch)
    extract.run(replace(several, **short_windows))
    assert max(lengths) <= round((0.1 + 2 * 0.06 + 0.02) * 16000)
    afresh = ShardFolder(folder.path)
    for info, expected in zip(folder, tokens, strict=True):
        found = afresh.tokens(info, "mfcc")
        assert found.shape == expected.shape
        assert (found != expected).mean() < 0.01


def test_windows_do_not_depend_on_other_teachers(
    several: ExtractConfig, folder: ShardFolder, short_windows: dict[str, float]
) -> None:
    config = replace(several, **short_windows)
    extract.run(replace(config, teachers={"mfcc": config.teachers["mfcc"]}))
    alone = bytes_of(folder)
    remove_tokens(folder)
    extract.run(config)
    assert {name: bytes_of(folder)[name] for name in alone} == alone


def test_other_windows_are_refused_where_they_matter(
    several: ExtractConfig, folder: ShardFolder, short_windows: dict[str, float]
) -> None:
    extract.run(several)
    # No clip is as long as one of these windows: the tokens are the same.
    extract.run(replace(several, window_s=20.0, context_s=1.0))
    before = bytes_of(folder)
    with pytest.raises(TokenError, match=r"long recordings cut by Windowing\(window_s=20\.0"):
        extract.run(replace(several, **short_windows))
    assert bytes_of(folder) == before


def watch_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many samples a teacher gets at once."""
    lengths: list[int] = []
    load = extract.load_teacher

    def load_and_watch(*args: Any) -> Any:
        teacher = load(*args)
        teacher.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        return teacher

    monkeypatch.setattr(extract, "load_teacher", load_and_watch)
    return lengths


def test_an_unreadable_recording_is_one_clear_error(
    several: ExtractConfig, folder: ShardFolder
) -> None:
    path = folder.path / "recording.000001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"fLaC")
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=f"cut {folder.cuts(1)[0].id}: cannot be decoded"):
        extract.run(several)
    made = sorted(path.name for path in folder.path.glob("*_tokens.*.tar"))
    assert made == ["logmel_tokens.000000.tar", "mfcc_tokens.000000.tar"]
    assert not list(folder.path.glob(".*partial*"))


def test_an_error_of_the_writer_surfaces(
    several: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenTarWriter, "write", fail)
    with pytest.raises(DataError, match=r"cannot be written .No space left on device"):
        extract.run(several)


def test_an_empty_shard_gets_an_empty_token_file(
    several: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = ShardFolder.cuts
    monkeypatch.setattr(ShardFolder, "cuts", lambda self, shard: cuts(self, shard) if shard else [])
    monkeypatch.setattr("spear.data.tokens.finished.write_token_report", lambda *_: None)
    extract.run(several)
    counts = [one.num_cuts for one in ShardFolder(folder.path).sidecar("mfcc").shards.values()]
    assert counts == [0, 5, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantizer": "q"}, "give teachers, or teacher and quantizer, not both"),
        ({"teachers": {"mfcc": TeacherTokens()}}, r"teachers\.mfcc\.quantizer is not set"),
        (
            {"teachers": {"mfcc": TeacherTokens(TeacherConfig(name="logmel"), "q")}},
            r"teachers\.mfcc\.teacher\.name is 'logmel'",
        ),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"window_s": 0.5}, "window_s must be 0 or at least 1"),
        ({"context_s": 0.0}, "context_s must be at least"),
        ({"batch_s": 0.0}, "batch_s must be positive"),
    ],
)
def test_settings_that_do_not_fit(
    several: ExtractConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extract.run(replace(several, **change))
