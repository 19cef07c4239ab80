import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spear.data.formats.manifests import read_jsonl_gz
from spear.data.formats.tars import index_pairs
from spear.data.formats.tokens import ShardTokens, TokenSidecar, TokenTarWriter
from spear.data.index.shard_folder import ShardFolder
from spear.data.tokens import extract
from spear.data.tokens.extract import ExtractConfig
from spear.data.verify import command as verify
from spear.data.verify.command import VerifyConfig, check_usage
from spear.data.verify.recheck import compare_tokens, sample
from spear.data.verify.shard import compare_ids
from spear.errors import ConfigError, DataError, TokenError
from spear.system.files import sha256_of
from tests.data.fake_quantizer import FakeQuantizer, write_quantizer

Tokens = list[tuple[str, np.ndarray]]


@pytest.fixture
def config(extract_config: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> VerifyConfig:
    monkeypatch.setattr("spear.data.verify.sidecar.load_quantizer", FakeQuantizer.load)
    extract.run(extract_config)
    return VerifyConfig(
        shards=extract_config.shards, quantizers={"logmel": extract_config.quantizer}
    )


def problems_of(config: VerifyConfig, kind: type[Exception] = TokenError) -> str:
    with pytest.raises(kind) as raised:
        verify.run(config)
    report = (Path(config.shards[0]) / "verify.md").read_text()
    message = str(raised.value)
    assert "\n" not in message
    problems = message.split("): ", 1)[1].split("; ")
    assert all(problem in report for problem in problems if not problem.startswith("and "))
    return message


def rewrite_tokens(
    folder: ShardFolder, shard: int, change: Callable[[Tokens], Tokens], hide: bool = True
) -> None:
    """Writes a shard's tokens changed; `hide` makes the sidecar's checksum and counts agree."""
    tokens = [(info.id, folder.tokens(info, "logmel")) for info in folder.cuts(shard)]
    path = folder.path / f"logmel_tokens.{shard:06d}.tar"
    with TokenTarWriter(path, frame_rate_hz=50) as writer:
        for cut_id, array in change(tokens):
            writer.write(cut_id, array)
    if hide:
        sidecar = TokenSidecar.load(folder.path / "logmel_tokens.json")
        sidecar.shards[shard] = ShardTokens(writer.num_cuts, writer.num_frames, sha256_of(path))
        sidecar.save(folder.path / "logmel_tokens.json")


def test_good_folders_pass_with_a_report(config: VerifyConfig, folder: ShardFolder) -> None:
    verify.run(config)
    verify.run(replace(config, quantizers={}, audio=False))
    report = (folder.path / "verify.md").read_text()
    frames = sum(len(folder.tokens(info, "logmel")) for info in folder)
    assert f"| logmel tokens | 3 | 12 |  | {frames:,} | 0 |" in report
    assert "| audio | 3 | 12 |" in report
    assert "No problems." in report


@pytest.mark.usefixtures("pictures")
def test_the_picture_shows_how_far_frames_are_from_durations(
    config: VerifyConfig, folder: ShardFolder
) -> None:
    tokens = verify.verify_folder(folder.path, config).counts[1]
    expected = [len(folder.tokens(info, "logmel")) - 50 * info.duration_s for info in folder]
    assert sorted(tokens.differences.elements()) == sorted(round(10 * one) for one in expected)
    verify.run(config)
    assert (folder.path / "verify.png").read_bytes().startswith(b"\x89PNG")
    assert "](verify.png)" in (folder.path / "verify.md").read_text()


@pytest.mark.usefixtures("pictures")
def test_the_picture_holds_what_is_far_off(config: VerifyConfig, folder: ShardFolder) -> None:
    rewrite_tokens(folder, 0, lambda tokens: [(key, array[:1]) for key, array in tokens])
    problems_of(config)
    assert (folder.path / "verify.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["logmel_tokens.000001.tar", "recording.000001.tar"])
def test_a_flipped_byte_is_found(config: VerifyConfig, folder: ShardFolder, name: str) -> None:
    path = folder.path / name
    content = bytearray(path.read_bytes())
    pair = index_pairs(path)[2]
    content[pair.offset + pair.size - 5] ^= 1
    path.write_bytes(content)
    kind = TokenError if name.startswith("logmel") else DataError
    message = problems_of(config, kind)
    assert f"shard 000001: {name} has changed: its SHA-256 is another" in message


@pytest.mark.parametrize("keep", [0.3, 0.7])
@pytest.mark.parametrize("name", ["logmel_tokens.000000.tar", "recording.000000.tar"])
def test_a_truncated_tar_is_found(
    config: VerifyConfig, folder: ShardFolder, name: str, keep: float
) -> None:
    path = folder.path / name
    last = index_pairs(path)[-1]
    path.write_bytes(path.read_bytes()[: int(last.offset * keep)])
    message = problems_of(config, TokenError if name.startswith("logmel") else DataError)
    assert "shard 000000" in message and name in message


def test_a_missing_cut_is_found(config: VerifyConfig, folder: ShardFolder) -> None:
    rewrite_tokens(folder, 1, lambda tokens: tokens[:2] + tokens[3:])
    gone = folder.cuts(1)[2].id
    assert f"shard 000001: logmel_tokens.000001.tar: cut '{gone}' is missing" in problems_of(config)


def test_a_doubled_cut_is_found(config: VerifyConfig, folder: ShardFolder) -> None:
    rewrite_tokens(folder, 1, lambda tokens: [tokens[0], *tokens])
    twice = folder.cuts(1)[0].id
    message = problems_of(config)
    assert f"shard 000001: logmel_tokens.000001.tar: cut '{twice}' is there twice" in message


def test_another_order_is_found(config: VerifyConfig, folder: ShardFolder) -> None:
    rewrite_tokens(folder, 2, lambda tokens: tokens[::-1])
    assert "the cuts are in another order" in problems_of(config)


def test_values_out_of_range_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    def change(tokens: Tokens) -> Tokens:
        tokens[1][1][3, 2] = 16
        return tokens

    rewrite_tokens(folder, 0, change)
    cut = folder.cuts(0)[1].id
    expected = f"shard 000000: cut '{cut}': logmel tokens: value 16 in a codebook of 16"
    assert expected in problems_of(config)


@pytest.mark.parametrize(("change", "found"), [(3, True), (-3, True), (1, False), (-1, False)])
def test_frames_are_compared_with_the_duration(
    config: VerifyConfig, folder: ShardFolder, change: int, found: bool
) -> None:
    def resize(tokens: Tokens) -> Tokens:
        cut_id, array = tokens[0]
        expected = round(folder.cuts(0)[0].duration_s * 50)
        return [(cut_id, np.resize(array, (expected + change, 4))), *tokens[1:]]

    rewrite_tokens(folder, 0, resize)
    if found:
        assert f"cut '{folder.cut(0).id}': logmel tokens: " in problems_of(config)
    else:
        verify.run(config)


def test_another_number_of_codebooks_is_found(config: VerifyConfig, folder: ShardFolder) -> None:
    rewrite_tokens(folder, 2, lambda tokens: [(key, array[:, :3]) for key, array in tokens])
    message = problems_of(config)
    for info in folder.cuts(2):
        assert f"cut '{info.id}': logmel tokens: 3 codebooks where the sidecar says 4" in message


def test_another_quantiser_is_found(config: VerifyConfig, tmp_path: Path) -> None:
    other = write_quantizer(tmp_path / "other.json", id="f" * 16)
    message = problems_of(replace(config, quantizers={"logmel": other}))
    assert "come from quantiser 0123456789abcdef (SHA-256 " in message
    assert f"not from {other}" in message


def test_wrong_counts_in_the_sidecar_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    path = folder.path / "logmel_tokens.json"
    sidecar = TokenSidecar.load(path)
    sidecar.shards[0].num_frames += 1
    sidecar.save(path)
    assert "where the sidecar says 5 and" in problems_of(config)


def test_shards_without_tokens_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    path = folder.path / "logmel_tokens.json"
    sidecar = TokenSidecar.load(path)
    del sidecar.shards[2]
    sidecar.save(path)
    (folder.path / "logmel_tokens.000001.tar").unlink()
    message = problems_of(config)
    assert "shard 000001: logmel_tokens.000001.tar is missing" in message
    assert "shard 000002: logmel tokens: not in the sidecar" in message


def test_a_teacher_that_must_be_there_is_missed(config: VerifyConfig) -> None:
    assert "wavlm_tokens.json: no such file" in problems_of(replace(config, teachers=["wavlm"]))


def test_clips_of_another_length_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    path = folder.path / "cuts.000000.jsonl.gz"
    lines = read_jsonl_gz(path)
    lines[3]["duration"] = 0.1
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    message = problems_of(config)
    cut = folder.cut(3).id
    assert f"shard 000000: cut '{cut}': " in message and "its duration says 1600" in message
    assert "cuts.000000.jsonl.gz has changed" in message


def test_shards_that_vanished_are_found(config: VerifyConfig, folder: ShardFolder) -> None:
    (folder.path / "cuts.000002.jsonl.gz").unlink()
    (folder.path / "recording.000002.tar").unlink()
    assert "shard 000002: missing" in problems_of(config)


def test_every_problem_is_in_the_report(config: VerifyConfig, folder: ShardFolder) -> None:
    for shard in range(3):
        rewrite_tokens(
            folder, shard, lambda tokens: [(k, np.full((9, 3), 99, np.uint8)) for k, _ in tokens]
        )
    message = problems_of(config)
    assert message.startswith("36 problems") and message.endswith("and 16 more")
    report = (folder.path / "verify.md").read_text()
    assert report.count("\n- ") == 36
    assert all(info.id in report for info in folder)


def test_nothing_to_verify(tmp_path: Path, config: VerifyConfig) -> None:
    with pytest.raises(ConfigError, match="shards is not set"):
        verify.run(VerifyConfig())
    with pytest.raises(DataError, match="no such shard folder"):
        verify.run(VerifyConfig(shards=[f"{tmp_path}/none"]))
    with pytest.raises(DataError, match="no shards"):
        verify.run(VerifyConfig(shards=[str(tmp_path)]))
    with pytest.raises(ConfigError, match="no such file"):
        verify.run(replace(config, quantizers={"logmel": "none"}))


def test_ids_are_compared_in_full() -> None:
    assert compare_ids(["a", "b"], ["a", "b"]) == []
    assert compare_ids(["a", "x"], ["a", "b"]) == [
        "cut 'x' is not in the manifest",
        "cut 'b' is missing",
    ]
    assert compare_ids(["b", "a"], ["a", "b"]) == ["the cuts are in another order, from cut 'b' on"]


def test_an_array_in_which_nothing_changes_is_found(
    config: VerifyConfig, folder: ShardFolder
) -> None:
    def freeze(tokens: Tokens) -> Tokens:
        return [(key, np.repeat(array[:1], len(array), axis=0)) for key, array in tokens[:1]] + [
            *tokens[1:]
        ]

    rewrite_tokens(folder, 1, freeze)
    message = problems_of(config)
    cut = folder.cuts(1)[0]
    assert f"shard 000001: cut {cut.id!r}: logmel tokens: all" in message
    assert "frames have the same tokens, and it is not silent" in message
    assert message.startswith("1 problems")


def test_silence_may_have_the_same_tokens_throughout(
    config: VerifyConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite_tokens(folder, 0, lambda tokens: [(key, np.zeros_like(array)) for key, array in tokens])
    assert "have the same tokens" in problems_of(config)
    monkeypatch.setattr("spear.data.verify.shard.SILENT_PEAK", 2.0)
    verify.run(config)
    assert "No problems." in (folder.path / "verify.md").read_text()


def test_a_codebook_that_says_nothing_is_found(
    config: VerifyConfig, folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flatten(tokens: Tokens) -> Tokens:
        for _, array in tokens:
            array[:, 2] = 7
        return tokens

    for shard in range(folder.num_shards):
        rewrite_tokens(folder, shard, flatten)
    verify.run(config)  # so few frames are not judged
    monkeypatch.setattr("spear.data.verify.command.MIN_COUNTED_FRAMES", 10)
    assert "logmel tokens: entropy below 0.2 in codebook 2 (0.00)" in problems_of(config)
    verify.run(replace(config, min_entropy=0.0))


def test_entropy_is_that_of_as_many_frames_as_there_are() -> None:
    even = np.full((1, 4), 1000)
    once = np.zeros((1, 4096), dtype=np.int64)
    once[0, :1000] = 1
    assert check_usage(even, 0.999) == check_usage(once, 0.999) == []
    half = np.array([[500, 500, 0, 0]])
    assert check_usage(half, 0.49) == []
    assert check_usage(half, 0.51) == ["entropy below 0.51 in codebook 0 (0.50)"]


@pytest.fixture
def rechecked(config: VerifyConfig, monkeypatch: pytest.MonkeyPatch) -> VerifyConfig:
    monkeypatch.setattr("spear.data.verify.recheck.load_quantizer", FakeQuantizer.load)
    return replace(config, recheck=100, device="cpu")


def test_tokens_made_anew_are_those_that_are_there(
    rechecked: VerifyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        verify.run(rechecked)
    assert "logmel tokens of 12 cuts extracted anew" in caplog.text


@pytest.mark.parametrize(("shift", "words"), [(5, "5 frames too late"), (-3, "3 frames too early")])
def test_shifted_tokens_are_found(
    rechecked: VerifyConfig, folder: ShardFolder, shift: int, words: str
) -> None:
    changed = folder.cuts(1)[2].id

    def roll(tokens: Tokens) -> Tokens:
        return [(key, np.roll(x, shift, axis=0) if key == changed else x) for key, x in tokens]

    rewrite_tokens(folder, 1, roll)
    verify.run(replace(rechecked, recheck=0))  # nothing else can tell
    message = problems_of(rechecked)
    assert f"shard 000001: cut {changed!r}: logmel tokens: shifted: {words}" in message
    assert message.startswith("1 problems")


def test_tokens_of_something_else_are_found(rechecked: VerifyConfig, folder: ShardFolder) -> None:
    def others(tokens: Tokens) -> Tokens:
        rng = np.random.default_rng(0)
        return [(key, rng.integers(0, 16, x.shape).astype(np.uint8)) for key, x in tokens]

    rewrite_tokens(folder, 2, others)
    assert "agree with what extraction gives" in problems_of(rechecked)


def test_a_recheck_needs_what_made_the_tokens(
    rechecked: VerifyConfig, folder: ShardFolder, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="name the quantiser files"):
        verify.run(replace(rechecked, quantizers={}))
    sidecar = TokenSidecar.load(folder.path / "logmel_tokens.json")
    other = {**sidecar.teacher_identity, "weights_sha256": "other"}
    renamed = replace(sidecar, weights_sha256="other", teacher_identity=other)
    renamed.save(folder.path / "logmel_tokens.json")
    assert "differs from theirs in weights_sha256" in problems_of(rechecked)
    replace(sidecar, teacher_identity={}).save(folder.path / "logmel_tokens.json")
    assert "their sidecar does not say 'family' of the teacher" in problems_of(rechecked)


def test_a_sample_is_drawn_once_and_for_all(folder: ShardFolder) -> None:
    few, more = sample(folder, 4), sample(folder, 7)
    assert len(few) == 4
    assert {cut.id for cut in few} < {cut.id for cut in more}
    assert [cut.index for cut in more] == sorted(cut.index for cut in more)
    assert sample(folder, 1000) == list(folder)


@pytest.mark.parametrize("shift", range(-25, 26))
def test_any_shift_up_to_half_a_second_has_a_name(shift: int) -> None:
    expected = np.random.default_rng(1).integers(0, 256, (120, 4)).astype(np.uint8)
    problem = compare_tokens(np.roll(expected, shift, axis=0), expected)
    if shift == 0:
        assert problem is None
    else:
        direction = "late" if shift > 0 else "early"
        assert problem == f"shifted: {abs(shift)} frames too {direction} (100% agree there)"


def test_a_few_other_tokens_are_another_device(folder: ShardFolder) -> None:
    expected = np.random.default_rng(1).integers(0, 256, (100, 4)).astype(np.uint8)
    found = expected.copy()
    found[:9] += 1
    assert compare_tokens(found, expected) is None
    found[:11] = expected[:11] + 1
    assert compare_tokens(found, expected) == "89% agree with what extraction gives"
    assert compare_tokens(found[1:], expected) == ("shape (99, 4) where extraction gives (100, 4)")
