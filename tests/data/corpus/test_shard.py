import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.shard import ShardConfig, to_int16
from spear.data.index.shard_folder import ShardFolder
from spear.errors import ConfigError, DataError
from spear.system.files import sha256_of

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


def test_audio_of_16_bit_recordings_is_kept_to_the_bit(
    folder: ShardFolder, corpus: PrepareConfig
) -> None:
    for info in folder:
        speaker, name = info.id.split("-")
        expected, _ = soundfile.read(f"{corpus.source_dir}/{speaker}/{name}.wav", dtype="float32")
        np.testing.assert_array_equal(folder.audio(info), expected)


def test_lhotse_reads_the_folder(folder: ShardFolder) -> None:
    cuts = list(CutSet.from_shar(fields=folder.shar_fields()))
    assert [cut.id for cut in cuts] == [info.id for info in folder]
    for cut, info in zip(cuts, folder, strict=True):
        assert cut.recording.sampling_rate == 16000
        assert cut.num_samples == len(folder.audio(info))
        assert cut.domain == "speech"
        assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == (info.text, info.speaker)
        np.testing.assert_array_equal(cut.load_audio()[0], folder.audio(info))


def test_the_record_counts_and_sums(folder: ShardFolder) -> None:
    record = json.loads((folder.path / "shards.json").read_text())
    assert record["complete"]
    assert record["num_cuts"] == 12
    assert [entry["num_cuts"] for entry in record["shards"].values()] == [5, 5, 2]
    assert record["duration_s"] == pytest.approx(folder.duration_s, abs=1e-3)
    for entry in record["shards"].values():
        assert all(sha256_of(folder.path / name) == sha for name, sha in entry["sha256"].items())
    assert not list(folder.path.glob(".*"))


def test_long_recordings_become_equal_windows_that_meet(
    corpus: PrepareConfig, tmp_path: Path
) -> None:
    (tmp_path / "long").mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 16000 * 7 + 13).astype(np.float32)
    soundfile.write(tmp_path / "long" / "a.wav", samples, 16000, subtype="PCM_16")
    config = replace(
        corpus, source_dir=f"{tmp_path}/long", corpus="l", domain="audio", text=None, utt2spk=None
    )
    prepare.run(config)
    manifest = f"{config.output_dir}/l_train_cuts.jsonl.gz"
    shard.run(ShardConfig(cuts=manifest, output_dir=f"{tmp_path}/s", max_duration_s=3.0))
    folder = ShardFolder(tmp_path / "s")
    assert [info.id for info in folder] == ["a-0000", "a-0001", "a-0002"]
    assert all(info.duration_s == pytest.approx(7 / 3, abs=0.001) for info in folder)
    whole, _ = soundfile.read(tmp_path / "long" / "a.wav", dtype="float32")
    np.testing.assert_array_equal(np.concatenate([folder.audio(i) for i in range(3)]), whole)


def test_transcribed_cuts_are_never_cut_apart(shard_config: ShardConfig) -> None:
    shard.run(replace(shard_config, max_duration_s=0.4, min_duration_s=0.01))
    folder = ShardFolder(shard_config.output_dir)
    assert len(folder) == 12
    assert max(info.duration_s for info in folder) > 0.4


def test_joined_cuts_become_one_clip_with_one_transcript(
    corpus: PrepareConfig, tmp_path: Path
) -> None:
    prepare.run(replace(corpus, join="2-3"))
    manifest = Path(corpus.output_dir) / "tones_train_cuts.jsonl.gz"
    shard.run(ShardConfig(cuts=str(manifest), output_dir=f"{tmp_path}/s"))
    folder = ShardFolder(tmp_path / "s")
    for cut, info in zip(CutSet.from_file(manifest), folder, strict=True):
        assert info.text is not None and 2 <= len(info.text.split()) <= 3
        assert info.domain == "speech"
        np.testing.assert_allclose(folder.audio(info), cut.load_audio()[0], atol=1e-4)


def test_too_short_cuts_are_named(shard_config: ShardConfig) -> None:
    shard.run(replace(shard_config, min_duration_s=0.5))
    folder = ShardFolder(shard_config.output_dir)
    lines = (folder.path / "bad_cuts.jsonl").read_text().splitlines()
    assert 0 < len(lines) == 12 - len(folder)
    assert all("shorter than min_duration_s 0.5" in json.loads(line)["error"] for line in lines)


def test_a_killed_run_is_finished_by_the_same_command(
    shard_config: ShardConfig, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    whole = replace(shard_config, output_dir=f"{shard_config.output_dir}-whole")
    shard.run(whole)
    write = shard.write_shard

    def die(job: tuple[Path, int, list[object]]) -> object:
        if job[1] == 2:
            raise KeyboardInterrupt
        return write(job)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "write_shard", die)
    with pytest.raises(KeyboardInterrupt):
        shard.run(shard_config)
    path = Path(shard_config.output_dir)
    with pytest.raises(DataError, match="not all shards are written; run `spear shard` again"):
        ShardFolder(path)
    before = snapshot(path)
    (path / ".recording.partial-1.000002.tar").write_bytes(b"left by a kill")
    monkeypatch.setattr(shard, "write_shard", write)
    shard.run(shard_config)
    after = snapshot(path)
    kept = [name for name in before if ".00000" in name and ".part." not in name]
    assert len(kept) == 4
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    finished = {Path(name).name: content for name, (_, content) in after.items()}
    expected = {Path(n).name: c for n, (_, c) in snapshot(Path(whole.output_dir)).items()}
    assert finished == expected


def test_only_what_is_missing_is_written(
    folder: ShardFolder, shard_config: ShardConfig, snapshot: Snapshot
) -> None:
    before = snapshot(folder.path)
    shard.run(shard_config)
    assert snapshot(folder.path) == before
    (folder.path / "recording.000001.tar").unlink()
    shard.run(shard_config)
    after = snapshot(folder.path)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    changed = {Path(name).name for name in before if before[name][0] != after[name][0]}
    assert changed == {"cuts.000001.jsonl.gz", "recording.000001.tar", "shards.json"}


def test_other_settings_are_refused(folder: ShardFolder, shard_config: ShardConfig) -> None:
    with pytest.raises(DataError, match="made with other settings \\(shard_size\\)"):
        shard.run(replace(shard_config, shard_size=6))
    assert len(ShardFolder(folder.path)) == 12


def test_several_processes_write_the_same_bytes(
    folder: ShardFolder, shard_config: ShardConfig, snapshot: Snapshot
) -> None:
    other = replace(shard_config, output_dir=f"{shard_config.output_dir}-2", num_jobs=2)
    shard.run(other)
    expected = {Path(name).name: content for name, (_, content) in snapshot(folder.path).items()}
    found = snapshot(Path(other.output_dir))
    assert {Path(name).name: content for name, (_, content) in found.items()} == expected


def test_bad_recordings_stop_it_until_repaired(
    shard_config: ShardConfig, corpus: PrepareConfig
) -> None:
    path = Path(corpus.source_dir) / "ann" / "one_00.wav"
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    with pytest.raises(DataError, match=r"1 of 12 .*one_00\.wav: truncated"):
        shard.run(shard_config)
    assert "ann-one_00" in (Path(shard_config.output_dir) / "bad_cuts.jsonl").read_text()
    shard.run(replace(shard_config, max_bad_fraction=0.1))
    assert len(ShardFolder(shard_config.output_dir)) == 11
    path.write_bytes(good)
    other = replace(shard_config, output_dir=f"{shard_config.output_dir}-2")
    shard.run(other)
    assert len(ShardFolder(other.output_dir)) == 12


def test_clipping_is_avoided_and_levels_are_kept() -> None:
    quiet = np.array([0.5, -0.25, 0.999], np.float32)
    samples, scaled = to_int16(quiet)
    assert not scaled
    np.testing.assert_allclose(samples / 32768, quiet, atol=1 / 32768)
    samples, scaled = to_int16(np.array([0.5, -2.0, 1.5], np.float32))
    assert scaled
    np.testing.assert_allclose(samples / 32768, [0.25, -1.0, 0.75], atol=1 / 32768)
    assert to_int16(np.array([1.0, -1.0], np.float32))[0].tolist() == [32767, -32768]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuts": ""}, "cuts is not set"),
        ({"output_dir": ""}, "output_dir is not set"),
        ({"shard_size": 0}, "shard_size"),
        ({"min_duration_s": 20.0}, "min_duration_s"),
    ],
)
def test_settings_that_do_not_fit(
    shard_config: ShardConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        shard.run(replace(shard_config, **change))  # type: ignore[arg-type]


def test_unusable_manifests(shard_config: ShardConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        shard.run(replace(shard_config, cuts=f"{tmp_path}/none.jsonl.gz"))
    content = Path(shard_config.cuts).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable manifest"):
        shard.run(replace(shard_config, cuts=f"{tmp_path}/cut.jsonl.gz"))
    assert not Path(shard_config.output_dir).exists()


def test_a_kill_at_the_very_end_leaves_no_parts_for_ever(
    folder: ShardFolder, shard_config: ShardConfig
) -> None:
    record = json.loads((folder.path / "shards.json").read_text())["shards"]["000001"]
    (folder.path / ".shards.000001.part.json").write_text(json.dumps(record))
    shard.run(shard_config)
    assert not list(folder.path.glob(".*"))
