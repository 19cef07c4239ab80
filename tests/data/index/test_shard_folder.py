import gzip
import json
import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from spear.data.formats.manifests import read_jsonl_gz
from spear.data.formats.tars import FileReader, PairTarWriter, index_pairs
from spear.data.formats.tokens import ShardTokens, TokenSidecar, TokenTarWriter
from spear.data.index.shard_folder import INDEX_NAME, ShardFolder
from spear.errors import AudioError, DataError, TokenError


def write_tokens(folder: ShardFolder, teacher: str = "fake") -> None:
    shards = {}
    for position in range(folder.num_shards):
        name = f"{teacher}_tokens.{position:06d}.tar"
        with TokenTarWriter(folder.path / name, frame_rate_hz=50) as writer:
            for info in folder.cuts(position):
                frames = int(info.duration_s * 50)
                writer.write(info.id, np.full((frames, 4), info.index, np.uint8))
        shards[position] = ShardTokens(writer.num_cuts, writer.num_frames, "")
    sidecar = TokenSidecar(teacher, 1, 50.0, "", "", "", num_codebooks=4, codebook_size=256)
    replace(sidecar, shards=shards).save(folder.path / f"{teacher}_tokens.json")


def test_cuts_in_order_with_their_places(folder: ShardFolder) -> None:
    assert (len(folder), folder.num_shards) == (12, 3)
    assert [info.index for info in folder] == list(range(12))
    assert [(info.shard, info.row) for info in folder.cuts(1)] == [(1, row) for row in range(5)]
    assert [len(folder.cuts(shard)) for shard in range(3)] == [5, 5, 2]
    total_s = sum(len(folder.audio(i)) for i in range(12)) / 16000
    assert folder.duration_s == pytest.approx(total_s, rel=1e-4)


def test_random_access_equals_sequential_reading(folder: ShardFolder) -> None:
    expected = {
        cut.id: cut.load_audio()[0] for cut in CutSet.from_shar(fields=folder.shar_fields())
    }
    for index in np.random.default_rng(0).permutation(12).tolist():
        cut_id = folder.cut(index).id
        assert cut_id == folder.cut(index).id
        np.testing.assert_array_equal(folder.audio(index), expected[cut_id])


def test_tokens_of_the_right_cut_and_in_lhotse(folder: ShardFolder) -> None:
    write_tokens(folder)
    for index in (11, 0, 5, 4):
        tokens = folder.tokens(index, "fake")
        assert tokens.dtype == np.uint8
        assert tokens.shape == (int(folder.cut(index).duration_s * 50), 4)
        assert (tokens == index).all()
    cuts = list(CutSet.from_shar(fields=folder.shar_fields(["fake"])))
    for info, cut in zip(folder, cuts, strict=True):
        np.testing.assert_array_equal(cut.load_fake_tokens(), folder.tokens(info, "fake"))
        assert cut.fake_tokens.frame_shift == pytest.approx(0.02)
        assert cut.fake_tokens.num_frames == int(info.duration_s * 50)


def test_a_pickled_copy_reads_the_same(folder: ShardFolder) -> None:
    expected = folder.audio(3)
    copy = pickle.loads(pickle.dumps(folder))
    np.testing.assert_array_equal(copy.audio(3), expected)


def _read_all(folder: ShardFolder, queue: "multiprocessing.Queue[bool]") -> None:
    audio = [folder.audio(index) for index in range(12)]
    again = [folder.audio(index) for index in range(12)]
    queue.put(all(np.array_equal(a, b) for a, b in zip(audio, again, strict=True)))


def test_forked_processes_share_open_files(folder: ShardFolder) -> None:
    folder.audio(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_all, args=(folder, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=20) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()


def test_missing_empty_and_incomplete_folders(folder: ShardFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such shard folder"):
        ShardFolder(tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="no shards"):
        ShardFolder(tmp_path / "bare")
    (folder.path / "recording.000001.tar").unlink()
    with pytest.raises(DataError, match=r"recording\.000001\.tar: missing"):
        ShardFolder(folder.path)


def test_a_folder_without_record_is_a_plain_shar_folder(folder: ShardFolder) -> None:
    (folder.path / "shards.json").unlink()
    assert len(ShardFolder(folder.path)) == 12
    (folder.path / "shards.json").write_text("{")
    with pytest.raises(DataError, match=r"shards\.json: not readable"):
        ShardFolder(folder.path)


def opened_anew(folder: ShardFolder) -> ShardFolder:
    """Opens a folder that has no index yet."""
    shutil.rmtree(folder.path / INDEX_NAME)
    return ShardFolder(folder.path)


def rewrite_cuts(path: Path, change: str, value: object) -> None:
    lines = read_jsonl_gz(path)
    lines[1][change] = value
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def test_broken_cuts_are_named(folder: ShardFolder) -> None:
    path = folder.path / "cuts.000001.jsonl.gz"
    good = path.read_bytes()
    rewrite_cuts(path, "custom", {"domain": "music"})
    with pytest.raises(DataError, match="'music'; custom"):
        ShardFolder(folder.path).cuts(1)
    path.write_bytes(good[:60])
    with pytest.raises(DataError, match="not a readable manifest"):
        ShardFolder(folder.path).cuts(1)
    path.write_bytes(good)
    rewrite_cuts(path, "id", folder.cut(0).id)
    with pytest.raises(DataError, match=r"cuts.000001.jsonl.gz: holds other cuts than clips.index"):
        ShardFolder(folder.path).cuts(1)
    (folder.path / "recording.000001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"recording.000001.tar: not a readable tar|holds 0 cuts"):
        opened_anew(folder)


def test_a_cut_in_two_shards_is_named(folder: ShardFolder) -> None:
    for name in ("cuts.00000{}.jsonl.gz", "recording.00000{}.tar"):
        shutil.copy(folder.path / name.format(0), folder.path / name.format(1))
    with pytest.raises(DataError, match="is in shard 000000 and in shard 000001"):
        opened_anew(folder)


def test_a_shard_is_read_when_it_is_asked_for_and_not_kept_for_ever(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear.data.index.shard_folder.KEPT_SHARDS", 1)
    (folder.path / "cuts.000002.jsonl.gz").write_bytes(b"nothing asks for it")
    opened = ShardFolder(folder.path)
    assert len(opened) == 12
    for shard in (1, 0, 1):
        assert list(opened.cuts(shard)) == list(folder.cuts(shard))
        assert len(opened._kept) == 1


def test_another_number_of_cuts_than_recorded_is_an_error(folder: ShardFolder) -> None:
    path = folder.path / "cuts.000001.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(DataError, match=r"holds other cuts than clips.index"):
        ShardFolder(folder.path).cuts(1)
    with pytest.raises(DataError, match=r"holds 5 cuts and the manifest 4"):
        opened_anew(folder)


def test_audio_of_other_cuts_is_refused(folder: ShardFolder) -> None:
    paths = [folder.path / f"recording.00000{shard}.tar" for shard in (0, 1)]
    paths[0].write_bytes(paths[1].read_bytes())
    with pytest.raises(DataError, match=r"recording\.000000\.tar: holds another cut than"):
        ShardFolder(folder.path).audio(0)
    with pytest.raises(DataError, match=r"recording\.000000\.tar: holds .* where the cuts have"):
        opened_anew(folder)


@pytest.mark.parametrize("keep", [0, 100, 5000, 30000])
def test_truncated_audio_is_refused(folder: ShardFolder, keep: int) -> None:
    path = folder.path / "recording.000000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"recording\.000000\.tar"):
        ShardFolder(folder.path).audio(4)
    with pytest.raises(DataError, match=r"recording\.000000\.tar"):
        opened_anew(folder)


@pytest.mark.parametrize(
    ("name", "error"), [("recording", AudioError), ("fake_tokens", TokenError)]
)
def test_damaged_audio_and_tokens_name_the_cut(
    folder: ShardFolder, name: str, error: type[Exception]
) -> None:
    write_tokens(folder)
    path = folder.path / f"{name}.000000.tar"
    content = bytearray(path.read_bytes())
    offset = index_pairs(path)[1].offset
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(error, match=folder.cut(1).id):
        _ = folder.audio(1), folder.tokens(1, "fake")
    assert len(folder.audio(2)) and len(folder.tokens(2, "fake"))


def test_missing_tokens_say_what_to_run(folder: ShardFolder) -> None:
    with pytest.raises(TokenError, match="extract-tokens"):
        folder.tokens(0, "wavlm")
    with pytest.raises(TokenError, match="extract-tokens"):
        folder.sidecar("wavlm")
    assert folder.teachers() == []


def test_the_reader_keeps_few_files_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10)
    reader = FileReader(max_open=3)
    for _ in range(2):
        assert [reader.read(path, 4, 2)[0] for path in paths] == list(range(9))
    open_files = [Path(f"/proc/self/fd/{fd}") for fd in reader._descriptors.values()]
    assert len(open_files) == 3
    with pytest.raises(DataError, match="ends before byte 12"):
        reader.read(paths[0], 8, 4)
    reader.close()
    assert not reader._descriptors


def test_tars_of_equal_content_are_equal_files_with_long_names(tmp_path: Path) -> None:
    ids = ["a" * 150, "b.c", "größe"]
    for name in ("x", "y"):
        with PairTarWriter(tmp_path / name) as tar:
            for key in ids:
                tar.add(key, "npy", key.encode(), {"id": key})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    pairs = index_pairs(tmp_path / "x")
    assert [pair.id for pair in pairs] == ids
    reader = FileReader()
    assert [reader.read(tmp_path / "x", p.offset, p.size).decode() for p in pairs] == ids
