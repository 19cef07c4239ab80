"""The reports of the data stages: their numbers, their pictures, and when they are written."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from spear.data import stage_reports
from spear.data.corpus import prepare, shard
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.shard import ShardConfig
from spear.data.formats.tokens import TokenSidecar, TokenTarWriter
from spear.data.index.shard_folder import ShardFolder
from spear.data.stage_reports import channel_statistics
from spear.data.tokens import embed, extract, finished
from spear.data.tokens.embed import EmbedConfig
from spear.data.tokens.extract import ExtractConfig
from spear.errors import TokenError
from spear.teachers import TeacherConfig

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]
PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(report: Path) -> dict[str, list[str]]:
    """The rows of all tables of a report by their first cell."""
    lines = [line for line in report.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: others for first, *others in cells}


def picture_of(report: Path) -> bytes:
    """The picture beside a report, which the report must show."""
    picture = report.with_suffix(".png")
    assert f"]({picture.name})" in report.read_text()
    return picture.read_bytes()


def lengths(durations: list[float]) -> list[str]:
    found = (min(durations), np.median(durations), max(durations))
    return [f"{one:.2f}" for one in found]


def break_recording(corpus: PrepareConfig) -> None:
    path = Path(corpus.source_dir) / "ann" / "three_02.wav"
    path.write_bytes(path.read_bytes()[:2000])


# prepare


@pytest.mark.usefixtures("pictures")
def test_prepare_reports_every_split(corpus: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "test").write_text("ann-one_00\nbob-two_01\n")
    text = Path(str(corpus.text))
    text.write_text("".join(text.read_text().splitlines(keepends=True)[:8]))
    prepare.run(replace(corpus, test_ids=f"{tmp_path}/test"))
    report = Path(corpus.output_dir) / "tones_report.md"
    rows = rows_of(report)
    for split in ("train", "test"):
        cuts = list(CutSet.from_file(report.with_name(f"tones_{split}_cuts.jsonl.gz")))
        durations = [cut.duration for cut in cuts]
        num_transcribed = sum(cut.supervisions[0].text is not None for cut in cuts)
        speakers = {cut.supervisions[0].speaker for cut in cuts}
        assert rows[split] == [
            str(len(cuts)),
            f"{sum(durations) / 3600:.3f}",
            str(len(speakers)),
            str(num_transcribed),
            *lengths(durations),
        ]
    assert "Nothing was left out." in report.read_text()
    assert picture_of(report).startswith(PNG)


def test_prepare_names_what_is_bad(corpus: PrepareConfig) -> None:
    break_recording(corpus)
    prepare.run(replace(corpus, max_bad_fraction=0.1))
    report = (Path(corpus.output_dir) / "tones_report.md").read_text()
    assert "Left out: 1 of 12 recordings, listed in `bad_cuts.jsonl`." in report
    assert "- `ann-three_02`: " in report and "three_02.wav: truncated" in report


def test_prepare_joined_cuts_are_measured_as_they_are(corpus: PrepareConfig) -> None:
    prepare.run(replace(corpus, join="2-3"))
    report = Path(corpus.output_dir) / "tones_report.md"
    cuts = list(CutSet.from_file(report.with_name("tones_train_cuts.jsonl.gz")))
    assert len(cuts) < 12
    expected = [str(len(cuts)), str(len(cuts)), *lengths([cut.duration for cut in cuts])]
    row = rows_of(report)["train"]
    assert [row[0], *row[3:]] == expected


@pytest.mark.usefixtures("pictures")
def test_prepare_writes_a_lost_report_from_what_is_there(
    corpus: PrepareConfig, snapshot: Snapshot
) -> None:
    break_recording(corpus)
    config = replace(corpus, max_bad_fraction=0.1, join="2-3", valid_fraction=0.3)
    prepare.run(config)
    output = Path(corpus.output_dir)
    before = snapshot(output)
    (output / "tones_report.md").unlink()
    prepare.run(config)
    after = snapshot(output)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    changed = {Path(name).name for name in before if before[name] != after[name]}
    assert changed == {"tones_report.md"}


# shard


@pytest.mark.usefixtures("pictures")
def test_shard_reports_what_the_folder_holds(folder: ShardFolder) -> None:
    report = folder.path / "report.md"
    rows = rows_of(report)
    durations = [info.duration_s for info in folder]
    files = [*folder.path.glob("*.tar"), *folder.path.glob("cuts.*")]
    num_bytes = sum(path.stat().st_size for path in files)
    assert rows["shards"] == ["3"]
    assert rows["cuts"] == ["12"]
    assert rows["hours"] == [f"{sum(durations) / 3600:.3f}"]
    assert rows["bytes"] == [f"{num_bytes:,}"]
    assert rows["bytes per hour"] == [f"{num_bytes / sum(durations) * 3600:,.0f}"]
    names = ("shortest (s)", "median (s)", "longest (s)")
    assert [rows[name][0] for name in names] == lengths(durations)
    assert picture_of(report).startswith(PNG)


def test_shard_reports_what_is_left_out(
    corpus: PrepareConfig, shard_config: ShardConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spear.system.markdown")
    break_recording(corpus)
    shard.run(replace(shard_config, max_bad_fraction=0.5, min_duration_s=0.5))
    path = Path(shard_config.output_dir)
    bad = [json.loads(line) for line in (path / "bad_cuts.jsonl").read_text().splitlines()]
    report = (path / "report.md").read_text()
    assert f"Left out: {len(bad)} clips and cuts" in report
    assert all(f"- `{one['id']}`: {one['error']}" in report for one in bad[:5])
    assert report.count("\n- `") == min(5, len(bad))
    assert rows_of(path / "report.md")["cuts"] == [str(len(ShardFolder(path)))]
    # As if matplotlib were missing: one line in the log, and no link to what is not there.
    assert len([one for one in caplog.messages if "without a picture" in one]) == 1
    assert not (path / "report.png").exists() and "](" not in report


@pytest.mark.usefixtures("pictures")
def test_shard_reports_are_equal_byte_for_byte(
    shard_config: ShardConfig, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    """In another folder, by several processes, and after a kill just before the last record."""
    whole = replace(shard_config, output_dir=f"{shard_config.output_dir}-whole", num_jobs=2)
    shard.run(whole)
    expected = {Path(n).name: c for n, (_, c) in snapshot(Path(whole.output_dir)).items()}
    assert {"report.md", "report.png"} <= set(expected)
    save = shard._save_record

    def die(*args: object, complete: bool) -> None:
        if complete:
            raise KeyboardInterrupt
        save(*args, complete=complete)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_save_record", die)
        with pytest.raises(KeyboardInterrupt):
            shard.run(shard_config)
    path = Path(shard_config.output_dir)
    assert (path / "report.md").is_file()
    shard.run(shard_config)
    assert {Path(n).name: c for n, (_, c) in snapshot(path).items()} == expected
    (path / "report.md").unlink()
    shard.run(shard_config)
    assert {Path(n).name: c for n, (_, c) in snapshot(path).items()} == expected


def test_a_killed_report_is_written_by_the_same_command(
    shard_config: ShardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage_reports, "write_markdown", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard.run(shard_config)
    shard.run(shard_config)
    assert rows_of(Path(shard_config.output_dir) / "report.md")["cuts"] == ["12"]


# embed


@pytest.fixture
def embed_config(folder: ShardFolder, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(
        shards=[str(folder.path)],
        teacher=TeacherConfig(name="logmel"),
        output=str(tmp_path / "exp" / "logmel"),
        num_frames=60,
        clip_share=0.5,
        device="cpu",
    )


@pytest.mark.usefixtures("pictures")
def test_embed_reports_whose_frames_and_how_they_are_spread(
    embed_config: EmbedConfig, snapshot: Snapshot
) -> None:
    embed.run(embed_config)
    report = Path(f"{embed_config.output}.frames.md")
    rows = rows_of(report)
    record = json.loads(report.with_suffix(".json").read_text())
    frames = np.load(report.with_suffix(".npy")).astype(np.float64)
    assert [rows[name] for name in ("frames", "channels")] == [["60"], ["160"]]
    assert rows["clips"] == [str(record["num_clips"])]
    for key, value in record["teacher"].items():
        assert rows[f"teacher {key}"] == ["none" if value is None else str(value)]
    spreads = {"mean": frames.mean(axis=0), "standard deviation": frames.std(axis=0)}
    for name, one in spreads.items():
        expected = (one.min(), np.median(one), one.max())
        assert rows[name] == [f"{value:.4g}" for value in expected]
    assert picture_of(report).startswith(PNG)
    before = snapshot(report.parent)
    report.unlink()
    embed.run(embed_config)
    after = snapshot(report.parent)
    assert after[str(report)][1] == before[str(report)][1]
    del before[str(report)], after[str(report)]
    assert after == before


def test_channel_statistics_of_large_means_over_several_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage_reports, "_ROWS_AT_ONCE", 64)
    random = np.random.default_rng(0)
    frames = (random.normal(size=(1000, 3)) * [1e-3, 1.0, 0.0] + [1e4, -3.0, 7.0]).astype("float32")
    means, stds = channel_statistics(frames)
    np.testing.assert_allclose(means, frames.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(stds, frames.std(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-12)


# extract-tokens


def expected_rows(folder: ShardFolder, positions: list[int], size: int) -> dict[str, list[str]]:
    """Entropy and unused codes of every codebook, by the definitions."""
    cuts = [info for position in positions for info in folder.cuts(position)]
    tokens = np.concatenate([folder.tokens(info, "logmel") for info in cuts])
    rows = {}
    for number, column in enumerate(tokens.T):
        counts = np.array([(column == value).sum() for value in range(size)])
        shares = counts[counts > 0] / counts.sum()
        entropy = -(shares * np.log(shares)).sum() / np.log(size)
        rows[str(number)] = [f"{entropy:.3f}", str((counts == 0).sum())]
    return rows


@pytest.mark.usefixtures("pictures")
def test_tokens_are_reported_with_the_use_of_their_codes(
    extract_config: ExtractConfig, folder: ShardFolder
) -> None:
    extract.run(extract_config)
    report = folder.path / "logmel_tokens.md"
    rows = rows_of(report)
    assert {number: rows[number] for number in "0123"} == expected_rows(folder, [0, 1, 2], 16)
    num_frames = sum(len(folder.tokens(info, "logmel")) for info in folder)
    assert rows["frames"] == [f"{num_frames:,}"]
    assert rows["cuts"] == ["12"]
    assert rows["hours"] == [f"{folder.duration_s / 3600:.3f}"]
    assert rows["quantiser"] == ["0123456789abcdef: 4 of 16 codes"]
    assert "Codes counted in 3 of 3 shards." in report.read_text()
    assert picture_of(report).startswith(PNG)


def test_a_large_folder_is_sampled(
    extract_config: ExtractConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_reports, "MAX_COUNTED_SHARDS", 2)
    extract.run(extract_config)
    report = folder.path / "logmel_tokens.md"
    rows = rows_of(report)
    assert "Codes counted in 2 of 3 shards." in report.read_text()
    assert {number: rows[number] for number in "0123"} == expected_rows(folder, [0, 1], 16)
    assert rows["cuts"] == ["12"]


@pytest.mark.usefixtures("pictures")
def test_the_job_that_completes_the_folder_reports(
    extract_config: ExtractConfig, folder: ShardFolder, snapshot: Snapshot
) -> None:
    report = folder.path / "logmel_tokens.md"
    for job in (1, 2, 3):
        assert not report.exists()
        extract.run(replace(extract_config, job=job, num_jobs=3))
    before = snapshot(folder.path)
    assert str(report) in before and str(report.with_suffix(".png")) in before
    for job in (3, 1):  # a job that comes late finds all done
        extract.run(replace(extract_config, job=job, num_jobs=3))
        assert snapshot(folder.path) == before


@pytest.mark.parametrize("where", ["write_token_report", "save"])
def test_tokens_killed_at_the_end_are_reported_by_the_same_command(
    extract_config: ExtractConfig,
    folder: ShardFolder,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    snapshot: Snapshot,
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finished if where == "write_token_report" else TokenSidecar, where, die)
        with pytest.raises(KeyboardInterrupt):
            extract.run(extract_config)
    assert folder.teachers() == []
    tars = {str(path): snapshot(folder.path)[str(path)] for path in folder.path.glob("*.tar")}
    extract.run(extract_config)
    after = snapshot(folder.path)
    assert {name: after[name] for name in tars} == tars
    assert rows_of(folder.path / "logmel_tokens.md")["cuts"] == ["12"]
    (folder.path / "logmel_tokens.md").unlink()
    extract.run(extract_config)
    found = {name: content for name, (_, content) in snapshot(folder.path).items()}
    assert found == {name: content for name, (_, content) in after.items()}


def test_tokens_beyond_the_codebook_are_named(
    extract_config: ExtractConfig, folder: ShardFolder
) -> None:
    extract.run(extract_config)
    tokens = [(info.id, folder.tokens(info, "logmel")) for info in folder.cuts(1)]
    with TokenTarWriter(folder.path / "logmel_tokens.000001.tar", frame_rate_hz=50) as writer:
        for cut_id, array in tokens:
            writer.write(cut_id, array + np.uint8(100))
    (folder.path / "logmel_tokens.md").unlink()
    with pytest.raises(TokenError, match=rf"cut '{tokens[0][0]}': logmel tokens do not fit"):
        extract.run(extract_config)
