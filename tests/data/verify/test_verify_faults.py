"""Each fault that `spear verify` promises to find, made in a good folder, found and named."""

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear.data.formats.manifests import read_jsonl_gz, write_jsonl_gz
from spear.data.formats.part_records import PartRecords
from spear.data.formats.tars import FileReader, PairTarWriter, index_pairs
from spear.data.formats.tokens import ShardTokens, TokenSidecar, TokenTarWriter
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.extract import ExtractConfig
from spear.data.verify import command as verify
from spear.data.verify.command import VerifyConfig
from spear.data.verify.findings import MAX_KEPT, Count, Findings
from spear.data.verify.shard import ShardJob, verify_shard
from spear.errors import ConfigError, DataError, TokenError
from spear.system.files import sha256_of
from tests.data.fake_quantizer import FakeQuantizer, write_quantizer

TAR, AUDIO, CUTS = "logmel_tokens.000001.tar", "recording.000001.tar", "cuts.000001.jsonl.gz"


@pytest.fixture
def config(extract_config: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> VerifyConfig:
    for module in ("verify.sidecar", "verify.recheck"):
        monkeypatch.setattr(f"spear.data.{module}.load_quantizer", FakeQuantizer.load)
    extract.run(extract_config)
    quantizers = {"logmel": extract_config.quantizer}
    return VerifyConfig(shards=extract_config.shards, quantizers=quantizers, device="cpu")


def problems_of(config: VerifyConfig) -> list[str]:
    """Returns the problems that a run names, all of which its report has, too."""
    with pytest.raises((TokenError, DataError)) as raised:
        verify.run(config)
    message = str(raised.value)
    assert "\n" not in message
    folder = Path(config.shards[0])
    report = (folder / "verify.md").read_text()
    found = re.findall(r"^- .*?: (.*)$", report, re.MULTILINE)
    assert found and message.startswith(f"{len(found)} problems")
    assert all(problem in message for problem in found[: verify.MAX_SHOWN])
    assert not list(folder.glob(".verify*"))
    return found


def read_members(path: Path) -> list[tuple[str, bytes, bytes]]:
    reader = FileReader()
    return [
        (
            one.id,
            reader.read(path, one.offset, one.size),
            reader.read(path, one.manifest_offset, one.manifest_size),
        )
        for one in index_pairs(path)
    ]


def rewrite(path: Path, members: list[tuple[str, bytes, bytes]]) -> None:
    suffix = "npy" if "tokens" in path.name else "flac"
    with PairTarWriter(path) as tar:
        for cut_id, data, manifest in members:
            tar.add(cut_id, suffix, data, json.loads(manifest))


def record_checksums(folder: Path) -> None:
    """Makes the recorded checksums those of the files: what is wrong was wrong from the start."""
    record = json.loads((folder / "shards.json").read_text())
    for entry in record["shards"].values():
        entry["sha256"] = {name: sha256_of(folder / name) for name in entry["sha256"]}
    (folder / "shards.json").write_text(json.dumps(record))
    sidecar = TokenSidecar.load(folder / "logmel_tokens.json")
    for number, entry in sidecar.shards.items():
        entry.sha256 = sha256_of(folder / f"logmel_tokens.{number:06d}.tar")
    sidecar.save(folder / "logmel_tokens.json")


@pytest.mark.parametrize("name", [TAR, AUDIO, CUTS])
def test_a_flipped_bit_is_found_wherever_it_is(
    config: VerifyConfig, folder: ShardFolder, name: str
) -> None:
    path = folder.path / name
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 12).tolist():
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        problems = problems_of(config)
        assert f"shard 000001: {name} has changed: its SHA-256 is another" in problems


@pytest.mark.parametrize("name", [TAR, AUDIO, CUTS])
def test_no_content_of_a_file_ends_in_a_traceback(
    config: VerifyConfig, folder: ShardFolder, name: str
) -> None:
    """Nobody recorded checksums: every check behind them meets broken headers and data."""
    (folder.path / "shards.json").unlink()
    path, rng = folder.path / name, np.random.default_rng(1)
    whole = path.read_bytes()
    sidecars = (TokenSidecar.load(folder.path / "logmel_tokens.json"),)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), rng.integers(1, 6)).tolist():
            content[place] = int(rng.integers(256))
        path.write_bytes(content)
        verify_shard(ShardJob(folder.path, 1, None, sidecars, decode=True))


def places_to_cut(path: Path) -> dict[str, int]:
    """Returns lengths that end a tar file in every kind of place."""
    pairs = index_pairs(path)
    last = pairs[-1]
    return {
        "nothing": 0,
        "in a header": last.offset - 300,
        "in data": last.offset + last.size // 2,
        "after data, before its manifest": last.manifest_offset - 512,
        "between two cuts": last.offset - 512,
        "in the zeros after data": last.offset + last.size + 1,
        "before the end": last.manifest_offset + 512,
        "in the zeros at the end": path.stat().st_size - 512,
    }


@pytest.mark.parametrize("name", [TAR, AUDIO])
def test_a_shard_cut_short_anywhere_is_found(
    config: VerifyConfig, folder: ShardFolder, name: str
) -> None:
    path = folder.path / name
    whole = path.read_bytes()
    last = folder.cuts(1)[-1].id
    for place, length in places_to_cut(path).items():
        path.write_bytes(whole[:length])
        problems = problems_of(config)
        assert f"shard 000001: {name} has changed: its SHA-256 is another" in problems, place
        if place in ("between two cuts", "in a header"):
            assert f"shard 000001: {name}: cut {last!r} is missing" in problems
        elif place in ("in data", "after data, before its manifest"):
            assert any("cut short" in one or "not a readable" in one for one in problems), place


@pytest.mark.parametrize("name", [TAR, AUDIO])
@pytest.mark.parametrize("hide", [False, True])
def test_a_missing_and_a_doubled_cut_are_named(
    config: VerifyConfig, folder: ShardFolder, name: str, hide: bool
) -> None:
    path = folder.path / name
    members = read_members(path)
    cut = members[2][0]
    for changed, words in (
        (members[:2] + members[3:], f"cut {cut!r} is missing"),
        ([*members, members[2]], f"cut {cut!r} is there twice"),
        (members[:3] + members[2:], f"cut {cut!r} is there twice"),
    ):
        rewrite(path, changed)
        if hide:
            record_checksums(folder.path)
        problems = problems_of(config)
        assert f"shard 000001: {name}: {words}" in problems
        assert any("SHA-256" in problem for problem in problems) != hide


def test_a_cut_in_two_shards_is_named(config: VerifyConfig, folder: ShardFolder) -> None:
    first, second = (read_jsonl_gz(folder.path / f"cuts.00000{n}.jsonl.gz") for n in (0, 1))
    members = read_members(folder.path / AUDIO)
    rewrite(folder.path / AUDIO, [*members, read_members(folder.path / "recording.000000.tar")[3]])
    write_jsonl_gz(folder.path / CUTS, [*second, first[3]])
    problems = problems_of(config)
    assert f"shard 000001: cut {first[3]['id']!r} is in shard 000000 too" in problems


def test_the_tokens_of_another_shard_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    shutil.copy(folder.path / "logmel_tokens.000000.tar", folder.path / TAR)
    problems = problems_of(config)
    assert f"shard 000001: {TAR} has changed: its SHA-256 is another" in problems
    for info in folder.cuts(1):
        assert f"shard 000001: {TAR}: cut {info.id!r} is missing" in problems


def test_a_stream_of_equal_tokens_is_named(config: VerifyConfig, folder: ShardFolder) -> None:
    cut = folder.cuts(1)[3]
    path = folder.path / TAR
    with TokenTarWriter(path.with_suffix(".new"), frame_rate_hz=50) as writer:
        for info in folder.cuts(1):
            tokens = folder.tokens(info, "logmel")
            writer.write(info.id, np.full_like(tokens, 7) if info.id == cut.id else tokens)
    path.with_suffix(".new").rename(path)
    record_checksums(folder.path)
    folder.close()
    num_frames = len(ShardFolder(folder.path).tokens(cut, "logmel"))
    words = f"all {num_frames} frames have the same tokens, and it is not silent"
    assert f"shard 000001: cut {cut.id!r}: logmel tokens: {words}" in problems_of(config)


def test_silence_with_an_offset_may_have_equal_tokens(tmp_path: Path) -> None:
    """A microphone's DC: not a sample is zero, and there is nothing to hear."""
    folder = tmp_path / "s"
    folder.mkdir()
    audio = np.full(16000, 0.25)
    soundfile.write(tmp_path / "a.flac", audio, 16000)
    rewrite(folder / "recording.000000.tar", [("a", (tmp_path / "a.flac").read_bytes(), b"{}")])
    cut = {"id": "a", "duration": 1.0, "custom": {"domain": "audio"}}
    write_jsonl_gz(folder / "cuts.000000.jsonl.gz", [cut])
    with TokenTarWriter(folder / "t_tokens.000000.tar", frame_rate_hz=50) as writer:
        writer.write("a", np.full((50, 2), 7, np.uint8))
    sidecar = TokenSidecar("t", None, 50.0, "", "", "", num_codebooks=2, codebook_size=16)
    sidecar.shards[0] = ShardTokens(1, 50, sha256_of(folder / "t_tokens.000000.tar"))
    findings = verify_shard(ShardJob(folder, 0, None, (sidecar,), decode=True))
    assert [count.problems for count in findings.counts] == [[], []]


def test_tokens_of_another_quantiser_are_found_though_the_sidecar_is_silent(
    config: VerifyConfig, folder: ShardFolder, tmp_path: Path, extract_config: ExtractConfig
) -> None:
    """One shard was made with another quantiser and copied here with its checksum."""
    other = tmp_path / "other"
    shutil.copytree(folder.path, other)
    for path in other.glob("*_tokens*"):
        path.unlink()
    quantizer = write_quantizer(tmp_path / "other.json", codebook_size=3)
    extract.run(replace(extract_config, shards=[str(other)], quantizer=quantizer))
    shutil.copy(other / TAR, folder.path / TAR)
    record_checksums(folder.path)
    verify.run(config)  # shapes, ranges and checksums are right
    problems = problems_of(replace(config, recheck=20))
    pattern = r"shard 000001: cut '(.*)': logmel tokens: \d+% agree with what extraction gives"
    named = {match[1] for match in map(re.compile(pattern).fullmatch, problems) if match}
    assert named and named <= {info.id for info in folder.cuts(1)}


def change_sidecar(folder: ShardFolder, **changes: object) -> None:
    path = folder.path / "logmel_tokens.json"
    replace(TokenSidecar.load(path), **changes).save(path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_codebooks": 5}, "num_codebooks 5 and 4"),
        ({"codebook_size": 32}, "codebook_size 32 and 16"),
        ({"quantizer_id": "f" * 16}, "quantizer_id 'ffffffffffffffff' and '0123456789abcdef'"),
        ({"teacher": "wavlm"}, "the sidecar is that of teacher 'wavlm'"),
        ({"layer": 21}, "the sidecar contradicts itself: layer 21 and None"),
        ({"frame_rate_hz": 25.0}, "the sidecar contradicts itself: frame_rate_hz 25.0 and 50"),
        ({"num_codebooks": 0}, "the sidecar says 0 codebooks of 16 codes at 50 Hz"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_found(
    config: VerifyConfig, folder: ShardFolder, changes: dict[str, object], words: str
) -> None:
    change_sidecar(folder, **changes)
    assert any(words in problem for problem in problems_of(config))


def test_a_quantiser_of_another_teacher_is_found(
    config: VerifyConfig, folder: ShardFolder, tmp_path: Path
) -> None:
    trained_on = {"teacher": json.dumps({"layer": 9, "weights_sha256": "another"})}
    path = write_quantizer(tmp_path / "of_another.json", metadata=trained_on)
    change_sidecar(folder, quantizer_sha256=sha256_of(Path(path)))
    (problem,) = problems_of(replace(config, quantizers={"logmel": path}))
    assert "of_another.json differ: " in problem
    assert "weights_sha256" in problem and "layer None and 9" in problem


def test_a_deleted_sidecar_is_missed(config: VerifyConfig, folder: ShardFolder) -> None:
    (folder.path / "logmel_tokens.json").unlink()
    for one in (config, replace(config, quantizers={}), replace(config, teachers=["logmel"])):
        (problem,) = problems_of(one)
        assert problem.endswith("no such file; run `spear extract-tokens` first")


def findings_of(config: VerifyConfig) -> list[dict[str, object]]:
    folder = Path(config.shards[0])
    findings = verify.verify_folder(folder, config)
    PartRecords(folder, "verify").clear()
    return [asdict(replace(count, usage=None)) for count in findings.counts]


def break_a_few(folder: ShardFolder) -> None:
    members = read_members(folder.path / TAR)
    rewrite(folder.path / TAR, members[1:])
    (folder.path / "recording.000002.tar").write_bytes(b"")


def test_processes_find_what_one_finds(config: VerifyConfig, folder: ShardFolder) -> None:
    break_a_few(folder)
    quick = replace(config, quantizers={})  # a patched quantiser does not reach other processes
    alone = findings_of(quick)
    assert sum(count["num_problems"] for count in alone) > 3  # type: ignore[misc]
    assert findings_of(replace(quick, num_jobs=2)) == alone


def test_jobs_find_together_what_one_run_finds(
    config: VerifyConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_a_few(folder)
    alone = problems_of(config)
    (folder.path / "verify.md").unlink()
    seen = []
    for job in (1, 2):
        with pytest.raises((TokenError, DataError), match=rf"in part {job}\)") as raised:
            verify.run(replace(config, num_jobs=2, job=job))
        seen.append(str(raised.value))
    assert TAR in seen[1] and TAR not in seen[0]
    assert not (folder.path / "verify.md").exists()
    monkeypatch.setattr(verify, "verify_shard", None)  # nothing is left to do
    assert problems_of(config) == alone


def test_a_killed_run_goes_on_where_it_was(
    config: VerifyConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def until_the_last(job: ShardJob) -> Findings:
        if job.shard == 2 and not done.count(2):
            done.append(2)
            raise KeyboardInterrupt
        done.append(job.shard)
        return verify_shard(job)

    monkeypatch.setattr(verify, "verify_shard", until_the_last)
    with pytest.raises(KeyboardInterrupt):
        verify.run(config)
    os.utime(folder.path / TAR, (1, 1))  # touched meanwhile: verified again
    verify.run(config)
    assert done == [0, 1, 2, 1, 2]
    verify.run(config)  # a new verification begins from the start
    assert done[5:] == [0, 1, 2]
    assert "No problems." in (folder.path / "verify.md").read_text()


def test_old_and_broken_findings_do_not_count(
    config: VerifyConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in (1, 2, 3):
        verify.run(replace(config, num_jobs=3, job=job))
    records = PartRecords(folder.path, "verify")
    os.utime(records.path(0), (1, 1))
    records.path(1).write_text('{"state": 3}')
    done = []

    def note(job: ShardJob) -> Findings:
        done.append(job.shard)
        return verify_shard(job)

    monkeypatch.setattr(verify, "verify_shard", note)
    verify.run(config)
    assert done == [0, 1]


def test_findings_survive_being_written() -> None:
    usage = np.arange(6).reshape(2, 3)
    count = Count("t tokens", 1, 2, 3, usage=usage)
    count.differences.update([-3, 4, 4])
    count.add("a problem")
    hashes = np.array([3, 2**64 - 1], np.uint64)
    written = json.loads(json.dumps(Findings([count], 1.5, {7: hashes}).to_json()))
    found = Findings.from_json(written)
    np.testing.assert_array_equal(found.id_hashes[7], hashes)
    np.testing.assert_array_equal(found.counts[0].usage, usage)
    assert replace(found.counts[0], usage=None) == replace(count, usage=None)
    assert found.duration_s == 1.5


def test_very_many_problems_are_counted_and_not_all_kept() -> None:
    count = Count("audio")
    for number in range(MAX_KEPT + 5):
        count.add(f"{number}")
    total = Count("audio")
    total.absorb(count)
    total.absorb(count)
    assert total.num_problems == 2 * (MAX_KEPT + 5)
    assert len(total.problems) == 2 * MAX_KEPT


def test_a_job_that_does_not_exist(config: VerifyConfig) -> None:
    for job, num_jobs in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="job must lie between 1 and num_jobs"):
            verify.run(replace(config, job=job, num_jobs=num_jobs))
