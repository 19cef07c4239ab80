import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from spear.data.corpus import prepare
from spear.data.corpus.cut_audio import CutReader
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.scan import scan_recordings
from spear.errors import ConfigError, DataError

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]


def load(config: PrepareConfig, split: str = "train") -> CutSet:
    path = Path(config.output_dir) / f"{config.corpus}_{split}_cuts.jsonl.gz"
    return CutSet.from_file(path).to_eager()


def test_cuts_carry_domain_text_speaker_and_audio(corpus: PrepareConfig) -> None:
    prepare.run(corpus)
    cuts = load(corpus)
    assert len(cuts) == 12
    for cut in cuts:
        assert cut.custom["domain"] == "speech"
        assert cut.supervisions[0].speaker == cut.id.split("-")[0]
        assert cut.supervisions[0].text == cut.id.split("-")[1].split("_")[0]
        audio = CutReader().load(cut)
        np.testing.assert_array_equal(audio, cut.load_audio()[0])
    assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)


def test_audio_needs_no_labels(corpus: PrepareConfig) -> None:
    config = replace(corpus, domain="audio", text=None, utt2spk=None, corpus="sounds")
    prepare.run(config)
    assert all(not cut.supervisions and cut.domain == "audio" for cut in load(config))


def test_lists_decide_the_splits(corpus: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "test").write_text("ann-one_00\nbob-two_01\n")
    (tmp_path / "valid").write_text("ann-three_02\n")
    config = replace(corpus, test_ids=f"{tmp_path}/test", valid_ids=f"{tmp_path}/valid")
    prepare.run(config)
    assert [cut.id for cut in load(config, "test")] == ["ann-one_00", "bob-two_01"]
    assert [cut.id for cut in load(config, "valid")] == ["ann-three_02"]
    assert len(load(config)) == 9


def test_a_hash_of_the_id_decides_what_is_validation(corpus: PrepareConfig) -> None:
    config = replace(corpus, valid_fraction=0.3)
    prepare.run(config)
    valid = {cut.id for cut in load(config, "valid")}
    assert 0 < len(valid) < 12
    assert valid.isdisjoint(cut.id for cut in load(config))
    os.remove(Path(corpus.source_dir) / "ann" / "one_00.wav")
    remaining = replace(config, output_dir=f"{config.output_dir}2", text=None, utt2spk=None)
    prepare.run(remaining)
    assert {cut.id for cut in load(remaining, "valid")} == valid - {"ann-one_00"}


def test_recordings_without_transcript_stay(corpus: PrepareConfig) -> None:
    text = Path(str(corpus.text))
    text.write_text("".join(text.read_text().splitlines(keepends=True)[:5]))
    prepare.run(corpus)
    texts = [cut.supervisions[0].text for cut in load(corpus)]
    assert len(texts) == 12
    assert sum(text is None for text in texts) == 7


def test_joins_within_speaker_and_split(corpus: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "test").write_text("ann-one_00\nann-three_02\nbob-two_01\nbob-one_03\n")
    config = replace(corpus, test_ids=f"{tmp_path}/test", join="2-3", join_passes=3)
    prepare.run(config)
    held_out = {"ann-one_00", "ann-three_02", "bob-two_01", "bob-one_03"}
    used = []
    for split, passes in (("test", 1), ("train", 3)):
        for cut in load(config, split):
            members = [track.cut.recording_id for track in cut.tracks]
            assert len({member.split("-")[0] for member in members}) == 1
            assert held_out.issuperset(members) == (split == "test")
            used += members
        assert len(used) == (4 if split == "test" else 4 + passes * 8)
    np.testing.assert_allclose(
        CutReader().load(cut), cut.load_audio()[0], atol=1e-6
    )  # as lhotse mixes it


def test_bad_recordings_are_named_and_left_out(corpus: PrepareConfig, tmp_path: Path) -> None:
    bad = Path(corpus.source_dir) / "ann" / "three_02.wav"
    bad.write_bytes(bad.read_bytes()[:2000])
    prepare.run(replace(corpus, max_bad_fraction=0.1))
    assert len(load(corpus)) == 11
    lines = (tmp_path / "manifests" / "bad_cuts.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    assert (len(lines), entry["id"], entry["path"]) == (1, "ann-three_02", str(bad))
    assert "truncated" in entry["error"]


def test_too_many_bad_recordings_stop_it_and_lose_nothing(
    corpus: PrepareConfig, snapshot: Snapshot
) -> None:
    prepare.run(corpus)
    output = Path(corpus.output_dir)
    before = snapshot(output)
    bad = Path(corpus.source_dir) / "bob" / "two_01.wav"
    good = bad.read_bytes()
    bad.write_bytes(good[:2000])
    with pytest.raises(DataError, match=r"1 of 12 .*two_01\.wav: truncated.*bad_cuts\.jsonl"):
        prepare.run(corpus)
    after = snapshot(output)
    assert {path: after[path] for path in before} == before
    bad.write_bytes(good)
    prepare.run(corpus)
    assert len(load(corpus)) == 12
    assert not (output / "bad_cuts.jsonl").exists()


def test_two_corpora_share_the_list_of_bad_recordings(corpus: PrepareConfig) -> None:
    bad = Path(corpus.source_dir) / "ann" / "three_02.wav"
    bad.write_bytes(b"nothing")
    for name in ("first", "second", "first"):
        prepare.run(replace(corpus, corpus=name, max_bad_fraction=0.5, seed=len(name)))
    lines = (Path(corpus.output_dir) / "bad_cuts.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["source"] for line in lines) == ["first", "second"]


def test_same_settings_keep_and_other_settings_replace(
    corpus: PrepareConfig, snapshot: Snapshot
) -> None:
    config = replace(corpus, valid_fraction=0.3)
    prepare.run(config)
    before = snapshot(Path(corpus.output_dir))
    prepare.run(config)
    assert snapshot(Path(corpus.output_dir)) == before
    prepare.run(corpus)
    assert len(load(corpus)) == 12
    assert not (Path(corpus.output_dir) / "tones_valid_cuts.jsonl.gz").exists()


def test_equal_input_gives_equal_bytes(corpus: PrepareConfig) -> None:
    other = replace(corpus, output_dir=f"{corpus.output_dir}2", num_jobs=3)
    config = replace(corpus, join="2-3")
    prepare.run(config)
    prepare.run(replace(other, join="2-3"))
    name = "tones_train_cuts.jsonl.gz"
    assert (Path(config.output_dir) / name).read_bytes() == (
        Path(other.output_dir) / name
    ).read_bytes()


def test_a_damaged_manifest_is_made_again(corpus: PrepareConfig) -> None:
    prepare.run(corpus)
    path = Path(corpus.output_dir) / "tones_train_cuts.jsonl.gz"
    path.write_bytes(path.read_bytes()[:50])
    prepare.run(corpus)
    assert len(load(corpus)) == 12


def test_unknown_ids_in_any_list_stop_it(corpus: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("ann-one_00 ann\nnobody ann\n")
    for name in ("text", "utt2spk", "test_ids", "valid_ids"):
        config = replace(corpus, **{name: str(tmp_path / "list")})
        with pytest.raises(DataError, match=r"list: 1 of 2 ids .*, e\.g\. 'nobody'"):
            prepare.run(config)
    assert not Path(corpus.output_dir).exists()


def test_an_id_belongs_to_one_split(corpus: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("ann-one_00\n")
    with pytest.raises(DataError, match="'ann-one_00'; a recording belongs to one split"):
        prepare.run(replace(corpus, test_ids=f"{tmp_path}/list", valid_ids=f"{tmp_path}/list"))


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        scan_recordings(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no recordings in this folder \(1 files\)"):
        scan_recordings(tmp_path)


def test_scan_makes_ids_from_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/c.d.wav", "e.FLAC", ".hidden.wav", "a/readme.md"):
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(scan_recordings(tmp_path).files) == ["a-b-c.d", "e"]
    (tmp_path / "a-b-c.d.ogg").touch()
    with pytest.raises(DataError, match=r"id 'a-b-c\.d'.*rename"):
        scan_recordings(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_dir": ""}, "source_dir is not set"),
        ({"corpus": "a/b"}, "corpus"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction"),
        ({"join": "6-3"}, "join must be a range"),
        ({"join": "3-6", "utt2spk": None}, "join needs text and utt2spk"),
        ({"join": "3-6", "join_gap_s": (0.3, 0.1)}, "join_gap_s"),
        ({"valid_split": "train"}, "three names"),
        ({"num_jobs": 0}, "num_jobs"),
    ],
)
def test_settings_that_do_not_fit(
    corpus: PrepareConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare.run(replace(corpus, **change))  # type: ignore[arg-type]


def test_stereo_at_any_rate(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    time_s = np.arange(22050) / 44100
    samples = np.stack([np.sin(2000 * time_s), np.zeros(22050)], 1) * 0.5
    soundfile.write(tmp_path / "wav" / "a.flac", samples, 44100)
    config = PrepareConfig(
        source_dir=f"{tmp_path}/wav", corpus="c", output_dir=f"{tmp_path}/out", domain="audio"
    )
    prepare.run(config)
    cut = load(config)[0]
    assert cut.duration == 0.5
    audio = CutReader().load(cut)
    assert audio.shape == (8000,)
    assert np.abs(audio).max() == pytest.approx(0.25, abs=0.01)
