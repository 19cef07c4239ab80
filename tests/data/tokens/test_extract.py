import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet

from spear.data.formats.tokens import TokenSidecar
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.extract import ExtractConfig
from spear.data.tokens.finished import TokenState
from spear.errors import ConfigError, TokenError
from spear.system.files import sha256_of
from spear.teachers import TeacherConfig, load_teacher
from tests.data.fake_quantizer import FakeQuantizer, write_quantizer

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


def token_files(folder: ShardFolder) -> list[str]:
    return sorted(path.name for path in folder.path.glob("logmel*"))


def test_tokens_are_those_of_each_clip_alone(
    extract_config: ExtractConfig, folder: ShardFolder
) -> None:
    extract.run(extract_config)
    teacher = load_teacher(extract_config.teacher)
    quantizer = FakeQuantizer.load(extract_config.quantizer)
    for info in folder:
        audio = torch.from_numpy(folder.audio(info))[None]
        reps, _ = teacher(audio, torch.tensor([audio.shape[1]]))
        expected = quantizer.encode(reps[0]).numpy()
        found = folder.tokens(info, "logmel")
        assert found.shape == expected.shape
        # A value on the edge between two codes may fall to either side.
        assert (found != expected).mean() < 0.01


def test_sidecar_says_whose_tokens_they_are(
    extract_config: ExtractConfig, folder: ShardFolder
) -> None:
    extract.run(extract_config)
    teacher = load_teacher(extract_config.teacher)
    sidecar = folder.sidecar("logmel")
    sidecar.check(
        folder.path,
        teacher="logmel",
        layer=teacher.layer,
        frame_rate_hz=teacher.frame_rate_hz,
        weights_sha256=teacher.weights_sha256,
        quantizer_id="0123456789abcdef",
        quantizer_sha256=sha256_of(Path(extract_config.quantizer)),
        num_codebooks=4,
        codebook_size=16,
    )
    assert [sidecar.shards[shard].num_cuts for shard in range(3)] == [5, 5, 2]
    for shard, entry in sidecar.shards.items():
        frames = sum(len(folder.tokens(info, "logmel")) for info in folder.cuts(shard))
        assert entry.num_frames == frames
        assert entry.sha256 == sha256_of(folder.path / f"logmel_tokens.{shard:06d}.tar")
    assert folder.teachers() == ["logmel"]
    assert not list(folder.path.glob(".*"))


def test_lhotse_reads_the_tokens(extract_config: ExtractConfig, folder: ShardFolder) -> None:
    extract.run(extract_config)
    for cut in CutSet.from_shar(fields=folder.shar_fields(["logmel"])):
        tokens = cut.load_logmel_tokens()
        assert tokens.dtype == np.uint8
        assert len(tokens) == pytest.approx(cut.duration * 50, abs=2)


def test_audio_is_not_touched_and_nothing_is_done_twice(
    extract_config: ExtractConfig, folder: ShardFolder, snapshot: Snapshot
) -> None:
    before = snapshot(folder.path)
    extract.run(extract_config)
    after = snapshot(folder.path)
    assert {name: after[name] for name in before} == before
    extract.run(extract_config)
    assert snapshot(folder.path) == after


def test_a_killed_run_is_finished_by_the_same_command(
    extract_config: ExtractConfig,
    folder: ShardFolder,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Snapshot,
) -> None:
    write = TokenState.write

    def die(self: TokenState, shard: int, *args: Any) -> None:
        if shard == 1:
            raise KeyboardInterrupt
        write(self, shard, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TokenState, "write", die)
        with pytest.raises(KeyboardInterrupt):
            extract.run(extract_config)
    assert folder.teachers() == []
    first = str(folder.path / "logmel_tokens.000000.tar")
    before = snapshot(folder.path)[first]
    extract.run(extract_config)
    assert snapshot(folder.path)[first] == before
    assert token_files(folder) == [
        *(f"logmel_tokens.00000{shard}.tar" for shard in range(3)),
        "logmel_tokens.json",
        "logmel_tokens.md",
    ]


def test_a_lost_shard_is_made_again(extract_config: ExtractConfig, folder: ShardFolder) -> None:
    extract.run(extract_config)
    path = folder.path / "logmel_tokens.000001.tar"
    content = path.read_bytes()
    path.unlink()
    extract.run(extract_config)
    assert path.read_bytes() == content


def test_jobs_share_the_shards(
    extract_config: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract.run(replace(extract_config, job=2, num_jobs=2))
    assert token_files(folder) == ["logmel_tokens.000001.tar"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    extract.run(replace(extract_config, job=2, num_jobs=2))  # share 3 of 4: no shard
    assert token_files(folder) == ["logmel_tokens.000001.tar"]
    monkeypatch.setenv("RANK", "0")
    extract.run(replace(extract_config, job=2, num_jobs=2))  # share 2 of 4: shard 2
    assert token_files(folder) == ["logmel_tokens.000001.tar", "logmel_tokens.000002.tar"]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    extract.run(replace(extract_config, job=1, num_jobs=2))
    assert len(folder.sidecar("logmel").shards) == 3


def test_tokens_of_another_quantiser_are_refused(
    extract_config: ExtractConfig, folder: ShardFolder, tmp_path: Path, snapshot: Snapshot
) -> None:
    extract.run(extract_config)
    before = snapshot(folder.path)
    other = write_quantizer(tmp_path / "other.json", id="f" * 16)
    with pytest.raises(
        TokenError, match="quantizer_id '0123456789abcdef' and not 'ffffffffffffffff'"
    ):
        extract.run(replace(extract_config, quantizer=other))
    with pytest.raises(TokenError, match=r"frame_rate_hz 50\.0 and not 25\.0"):
        slower = TeacherConfig(name="logmel", frame_rate_hz=25)
        wide = write_quantizer(tmp_path / "wide.json", dim=320)
        extract.run(replace(extract_config, teacher=slower, quantizer=wide))
    assert snapshot(folder.path) == before


def test_an_unfinished_run_of_another_quantiser_is_refused(
    extract_config: ExtractConfig, tmp_path: Path
) -> None:
    extract.run(replace(extract_config, job=1, num_jobs=2))
    other = write_quantizer(tmp_path / "other.json", id="f" * 16)
    with pytest.raises(TokenError, match="made otherwise are there already"):
        extract.run(replace(extract_config, quantizer=other))


def test_quantisers_of_another_teacher_are_refused(
    extract_config: ExtractConfig, folder: ShardFolder, tmp_path: Path
) -> None:
    narrow = write_quantizer(tmp_path / "narrow.json", dim=99)
    with pytest.raises(TokenError, match="vectors of 99 channels and teacher 'logmel' gives 160"):
        extract.run(replace(extract_config, quantizer=narrow))
    metadata = {"teacher": json.dumps({"weights_sha256": "0", "layer": None})}
    foreign = write_quantizer(tmp_path / "foreign.json", metadata=metadata)
    with pytest.raises(TokenError, match="frames of another teacher: weights_sha256 '0'"):
        extract.run(replace(extract_config, quantizer=foreign))
    assert token_files(folder) == []


def test_an_unfinished_folder_has_no_sidecar_to_read(
    extract_config: ExtractConfig, folder: ShardFolder
) -> None:
    extract.run(extract_config)
    path = folder.path / "logmel_tokens.json"
    sidecar = TokenSidecar.load(path)
    del sidecar.shards[1]
    sidecar.save(path)
    with pytest.raises(TokenError, match="no tokens for shard 000001"):
        folder.sidecar("logmel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "shards is not set"),
        ({"quantizer": ""}, "quantizer is not set"),
        ({"job": 0}, "job must lie between"),
        ({"job": 3, "num_jobs": 2}, "job must lie between"),
    ],
)
def test_settings_that_do_not_fit(
    extract_config: ExtractConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extract.run(replace(extract_config, **change))  # type: ignore[arg-type]
