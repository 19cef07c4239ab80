"""The index of a shard folder: complete, checked against what it indexes, and never outdated."""

import os
import pickle

import numpy as np
import pytest

from spear.cli import main
from spear.data.formats.shards import ShardFolder
from spear.data.formats.tars import PairTarWriter
from spear.data.index import command as index_module
from spear.data.index.command import IndexConfig, ensure_index, run
from spear.data.index.folder_index import INDEX_NAME, FolderIndex, StaleIndexError, id_hash
from spear.errors import ConfigError, DataError, TokenError
from tests.pretrain.small_shards import make_clip, write_shards


def clips_of(num, domain="speech"):
    return [make_clip(number, domain) for number in range(num)]


@pytest.fixture
def tokens(tmp_path):
    """Seven clips with the tokens of two teachers, in shards of three."""
    return write_shards(tmp_path / "s", clips_of(7), per_shard=3)


def test_the_index_says_what_the_folder_holds(tokens):
    index, folder = ensure_index(tokens), ShardFolder(tokens)
    assert len(index) == 7 and index.teachers == ["dasheng", "wavlm"]
    assert index.first.tolist() == [0, 3, 6, 7] and index.shard_ids == [0, 1, 2]
    for number, info in enumerate(folder.infos):
        assert index.shard_of(number) == info.shard
        assert index.id(number) == info.id
        assert index.duration_s(number) == pytest.approx(info.duration_s, abs=1 / 16000)
        cut_id, audio = index.audio(number)
        assert cut_id == info.id and np.array_equal(audio, folder.audio(info))
        for teacher in index.teachers:
            assert np.array_equal(index.tokens(number, teacher), folder.tokens(info, teacher))


def test_an_index_that_fits_is_not_made_again(tokens, monkeypatch):
    ensure_index(tokens)
    before = (tokens / INDEX_NAME).stat().st_mtime_ns
    monkeypatch.setattr(index_module, "_scan", None)
    ensure_index(tokens)
    assert (tokens / INDEX_NAME).stat().st_mtime_ns == before


def test_processes_give_the_same_bytes_as_one(tokens):
    ensure_index(tokens)
    alone = (tokens / INDEX_NAME).read_bytes()
    (tokens / INDEX_NAME).unlink()
    run(IndexConfig([str(tokens)], num_jobs=2))
    assert (tokens / INDEX_NAME).read_bytes() == alone


def test_a_new_teacher_is_added_without_reading_the_audio_again(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "s", clips_of(4), ("wavlm",), per_shard=3)
    assert ensure_index(folder).teachers == ["wavlm"]
    write_shards(tmp_path / "s", clips_of(4), ("wavlm", "dasheng"), per_shard=3)
    with pytest.raises(StaleIndexError, match=r"dasheng changed since; run `spear index` again"):
        FolderIndex.open(folder)
    looked_at = []
    pairs = index_module.index_pairs
    monkeypatch.setattr(
        index_module, "index_pairs", lambda path: looked_at.append(path.name) or pairs(path)
    )
    index = ensure_index(folder)
    assert index.teachers == ["dasheng", "wavlm"]
    assert looked_at == ["dasheng_tokens.000000.tar", "dasheng_tokens.000001.tar"]
    fresh = (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).unlink()
    ensure_index(folder)
    assert (folder / INDEX_NAME).read_bytes() == fresh


def test_other_shards_and_other_tokens_make_an_index_stale(tokens):
    ensure_index(tokens)
    write_shards(tokens, clips_of(7), per_shard=3, quantizer_id="other")
    with pytest.raises(StaleIndexError, match="changed since"):
        FolderIndex.open(tokens)
    assert len(ensure_index(tokens)) == 7
    write_shards(tokens, clips_of(8), per_shard=3)
    with pytest.raises(StaleIndexError, match="audio changed since"):
        FolderIndex.open(tokens)
    assert len(ensure_index(tokens)) == 8


def test_a_broken_index_is_an_error_that_says_what_to_do(tokens):
    ensure_index(tokens)
    path = tokens / INDEX_NAME
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"clips.index: not a readable file.*remove it"):
        ensure_index(tokens)


def rename_in_tar(path, clips, per_shard):
    with PairTarWriter(path) as tar:
        for clip in clips[:per_shard]:
            tar.add(clip["id"], "flac", b"x" * 5000, {})


def test_a_tar_that_changed_behind_the_index_is_found_when_it_is_read(tokens, tmp_path):
    index = ensure_index(tokens)
    others = [{**clip, "id": f"o{clip['id'][1:]}"} for clip in clips_of(3)]
    other = write_shards(tmp_path / "other", others) / "recording.000000.tar"
    other.rename(tokens / "recording.000000.tar")
    with pytest.raises(
        DataError, match=r"recording.000000.tar: holds another cut than clips.index"
    ):
        index.audio(1)
    with pytest.raises(DataError, match="holds another cut"):
        index.id(1)
    (tokens / "wavlm_tokens.000001.tar").write_bytes(b"\0" * 40000)
    with pytest.raises(TokenError, match="spear extract-tokens"):
        index.tokens(4, "wavlm")


@pytest.mark.parametrize("change", ["order", "missing"])
def test_tars_that_do_not_fit_the_cuts_are_refused(tokens, change):
    clips = clips_of(3)[::-1] if change == "order" else clips_of(2)
    rename_in_tar(tokens / "recording.000000.tar", clips, 3)
    with pytest.raises(DataError, match=r"recording.000000.tar: holds"):
        ensure_index(tokens)
    assert not (tokens / INDEX_NAME).exists()


def test_cut_ids_must_be_unique(tmp_path):
    clips = [*clips_of(4), clips_of(1)[0]]
    folder = write_shards(tmp_path / "s", clips, ("wavlm",), per_shard=2)
    with pytest.raises(DataError, match=r"'speech-000' is in shard 000000 and in shard 000002"):
        ensure_index(folder)
    assert not (folder / INDEX_NAME).exists()


def test_two_ids_with_one_hash_do_no_harm(tokens, monkeypatch):
    for module in ("index.command", "index.folder_index"):
        monkeypatch.setattr(f"spear.data.{module}.id_hash", lambda cut_id: id_hash(cut_id) % 2)
    assert [ensure_index(tokens).id(i) for i in range(7)] == [f"speech-{i:03d}" for i in range(7)]


@pytest.mark.parametrize("name", ["x" * 180, "größe/ünï", "a.b.c", " lead", "q'\"uote"])
def test_odd_and_long_ids(tmp_path, name):
    clips = clips_of(3)
    clips[1]["id"] = name
    index = ensure_index(write_shards(tmp_path / "s", clips))
    assert [index.id(number) for number in range(3)] == ["speech-000", name, "speech-002"]
    assert index.audio(1)[0] == name
    assert len(index.tokens(1, "wavlm")) > 0


def test_workers_open_the_file_and_get_no_columns(tokens):
    index = ensure_index(tokens)
    sent = pickle.dumps(index)
    assert len(sent) < 500
    copy = pickle.loads(sent)
    assert np.array_equal(copy.tokens(5, "wavlm"), index.tokens(5, "wavlm"))


def test_where_the_folder_is_read_only_the_cache_holds_the_index(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = index_module.write_columns

    def refuse(path, *arguments):
        if path.parent == tokens:
            raise PermissionError(13, "Permission denied")
        return write(path, *arguments)

    monkeypatch.setattr(index_module, "write_columns", refuse)
    index = ensure_index(tokens)
    assert index.file.parent == tmp_path / "cache" / "spear"
    assert not (tokens / INDEX_NAME).exists()
    assert FolderIndex.open(tokens).audio(2)[0] == "speech-002"
    assert ensure_index(tokens).file == index.file


def test_the_command_indexes_and_complains_in_one_line(tokens, tmp_path, capsys):
    assert main(["index", str(tokens), "--num_jobs", "1"]) == 0
    said = capsys.readouterr().err
    assert "7 cuts in 3 shards" in said and "dasheng, wavlm" in said
    assert main(["index", "--shards", f'["{tmp_path}/none"]']) == 2
    assert "no such shard folder" in capsys.readouterr().err
    os.remove(tokens / "wavlm_tokens.000001.tar")
    (tokens / INDEX_NAME).unlink()
    assert main(["index", "--shards", f'["{tokens}"]', "--num_jobs", "1"]) == 2
    assert "wavlm_tokens.000001.tar" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="num_jobs"):
        run(IndexConfig([str(tokens)], num_jobs=0))
    with pytest.raises(ConfigError, match="shards is not set"):
        run(IndexConfig())
