"""The index of a shard folder: complete, checked against what it indexes, and never outdated."""

import os
import pickle
import shutil

import numpy as np
import pytest

from spear.cli import main
from spear.data.formats.shards import id_hash
from spear.data.formats.tars import PairTarWriter
from spear.data.index import build as build_module
from spear.data.index import shard_folder as folder_module
from spear.data.index.command import IndexConfig, run
from spear.data.index.shard_folder import INDEX_NAME, ShardFolder
from spear.errors import ConfigError, DataError, TokenError
from tests.pretrain.small_shards import make_clip, write_shards


def clips_of(num, domain="speech"):
    return [make_clip(number, domain) for number in range(num)]


@pytest.fixture
def tokens(tmp_path):
    """Seven clips with the tokens of two teachers, in shards of three."""
    return write_shards(tmp_path / "s", clips_of(7), per_shard=3)


def open_all(path):
    """Opens a folder with all tokens that are there."""
    folder = ShardFolder(path)
    folder.open_tokens(folder.teachers())
    return folder


def content_of(path):
    """Returns the files of an index with their bytes."""
    files = (file for file in (path / INDEX_NAME).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def fields_of(path):
    """Returns the fields that an index has."""
    return sorted(one.name.rpartition(".")[0] for one in (path / INDEX_NAME).iterdir())


@pytest.fixture
def looked_at(monkeypatch):
    """The tars that are looked into from here on."""
    names = []
    pairs = build_module.index_pairs
    monkeypatch.setattr(
        build_module, "index_pairs", lambda path: names.append(path.name) or pairs(path)
    )
    return names


def test_the_index_says_what_the_folder_holds(tokens):
    folder = open_all(tokens)
    clips = clips_of(7)
    assert len(folder) == 7 and folder.teachers() == ["dasheng", "wavlm"]
    assert folder.first.tolist() == [0, 3, 6, 7] and folder.shard_ids == [0, 1, 2]
    assert folder.duration_s == pytest.approx(sum(len(clip["audio"]) for clip in clips) / 16000)
    assert folder.longest_s == max(len(clip["audio"]) for clip in clips) / 16000
    for number, (info, clip) in enumerate(zip(folder, clips, strict=True)):
        assert folder.shard_of(number) == info.shard and folder.id(number) == info.id == clip["id"]
        assert folder.num_samples[number] / 16000 == pytest.approx(info.duration_s, abs=1e-4)
        cut_id, audio = folder.clip(number)
        assert cut_id == info.id and np.array_equal(audio, folder.audio(info))
        np.testing.assert_allclose(audio, clip["audio"], atol=1e-4)
        for teacher in folder.teachers():
            assert np.array_equal(folder.tokens(number, teacher), clip["tokens"][teacher])


def test_an_index_that_fits_is_not_made_again(tokens, monkeypatch):
    open_all(tokens)
    assert fields_of(tokens) == ["dasheng_tokens", "recording", "wavlm_tokens"]
    before = content_of(tokens)
    monkeypatch.setattr(build_module, "_scan_shard", None)
    open_all(tokens)
    assert content_of(tokens) == before


def test_processes_give_the_same_bytes_as_one(tokens):
    open_all(tokens)
    alone = content_of(tokens)
    shutil.rmtree(tokens / INDEX_NAME)
    run(IndexConfig([str(tokens)], num_jobs=2))
    assert content_of(tokens) == alone


def test_a_new_teacher_is_added_without_reading_the_audio_again(tmp_path, looked_at):
    folder = write_shards(tmp_path / "s", clips_of(4), ("wavlm",), per_shard=3)
    open_all(folder)
    write_shards(tmp_path / "s", clips_of(4), ("wavlm", "dasheng"), per_shard=3)
    looked_at.clear()
    open_all(folder)
    assert looked_at == ["dasheng_tokens.000000.tar", "dasheng_tokens.000001.tar"]
    fresh = content_of(folder)
    shutil.rmtree(folder / INDEX_NAME)
    open_all(folder)
    assert content_of(folder) == fresh


def test_only_what_is_asked_for_is_indexed(tokens, looked_at):
    os.remove(tokens / "dasheng_tokens.000001.tar")
    folder = ShardFolder(tokens)
    assert len(folder.audio(3)) and len(folder.tokens(3, "wavlm"))
    assert not any(name.startswith("dasheng") for name in looked_at)
    with pytest.raises(TokenError, match=r"dasheng_tokens.000001.tar.*spear extract-tokens"):
        folder.tokens(0, "dasheng")


def test_other_shards_and_other_tokens_make_an_index_stale(tokens, looked_at):
    first = open_all(tokens).fingerprint
    looked_at.clear()
    write_shards(tokens, clips_of(7), per_shard=3, quantizer_id="other")
    second = open_all(tokens).fingerprint
    assert {name.split(".")[0] for name in looked_at} == {"dasheng_tokens", "wavlm_tokens"}
    looked_at.clear()
    write_shards(tokens, clips_of(8), per_shard=3, quantizer_id="other")
    assert len(open_all(tokens)) == 8
    assert len(looked_at) == 9
    assert len({first, second, open_all(tokens).fingerprint}) == 3
    assert len(fields_of(tokens)) == 3  # the outdated ones are gone


def test_the_file_of_an_earlier_version_makes_room(tokens):
    (tokens / INDEX_NAME).write_bytes(b"columns")
    assert len(open_all(tokens)) == 7
    assert (tokens / INDEX_NAME).is_dir()


def test_a_broken_index_is_an_error_that_says_what_to_do(tokens):
    open_all(tokens)
    (path,) = (tokens / INDEX_NAME).glob("recording.*/hashes.npy")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"clips.index/recording.*: not readable.*remove it"):
        open_all(tokens)


def rename_in_tar(path, clips, per_shard):
    with PairTarWriter(path) as tar:
        for clip in clips[:per_shard]:
            tar.add(clip["id"], "flac", b"x" * 5000, {})


def test_a_tar_that_changed_behind_the_index_is_found_when_it_is_read(tokens, tmp_path):
    index = open_all(tokens)
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
        open_all(tokens)
    assert not (tokens / INDEX_NAME).exists()


def test_cut_ids_must_be_unique(tmp_path):
    clips = [*clips_of(4), clips_of(1)[0]]
    folder = write_shards(tmp_path / "s", clips, ("wavlm",), per_shard=2)
    with pytest.raises(DataError, match=r"'speech-000' is in shard 000000 and in shard 000002"):
        open_all(folder)
    assert not (folder / INDEX_NAME).exists()


def test_two_ids_with_one_hash_do_no_harm(tokens, monkeypatch):
    for module in ("index.build", "index.shard_folder", "formats.shards"):
        monkeypatch.setattr(f"spear.data.{module}.id_hash", lambda cut_id: id_hash(cut_id) % 2)
    assert [open_all(tokens).id(i) for i in range(7)] == [f"speech-{i:03d}" for i in range(7)]


@pytest.mark.parametrize("name", ["x" * 180, "größe/ünï", "a.b.c", " lead", "q'\"uote"])
def test_odd_and_long_ids(tmp_path, name):
    clips = clips_of(3)
    clips[1]["id"] = name
    index = open_all(write_shards(tmp_path / "s", clips))
    assert [index.id(number) for number in range(3)] == ["speech-000", name, "speech-002"]
    assert index.clip(1)[0] == name
    assert len(index.tokens(1, "wavlm")) > 0


def test_workers_open_the_file_and_get_no_columns(tokens):
    index = open_all(tokens)
    sent = pickle.dumps(index)
    assert len(sent) < 500
    copy = pickle.loads(sent)
    assert np.array_equal(copy.tokens(5, "wavlm"), index.tokens(5, "wavlm"))


def refuse_below(monkeypatch, *folders):
    """Has the writing of arrays fail below some folders, as on a file system without writing."""
    write = folder_module.write_arrays

    def refuse(path, arrays):
        if any(path.is_relative_to(folder) for folder in folders):
            raise OSError(30, "Read-only file system")
        write(path, arrays)

    monkeypatch.setattr(folder_module, "write_arrays", refuse)


def test_where_the_folder_is_read_only_the_cache_holds_the_index(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_below(monkeypatch, tokens)
    open_all(tokens)
    assert not (tokens / INDEX_NAME).exists()
    (cached,) = (tmp_path / "cache" / "spear").iterdir()
    assert len(list(cached.iterdir())) == 3
    monkeypatch.setattr(build_module, "_scan_shard", None)
    folder = open_all(tokens)
    assert folder.clip(2)[0] == "speech-002" and len(folder.tokens(2, "wavlm"))


def test_where_nothing_can_be_written_both_places_are_named(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_below(monkeypatch, tokens, tmp_path / "cache")
    with pytest.raises(DataError, match=r"clips.index cannot be written \(Read-only.*cache.*index"):
        ShardFolder(tokens)


def test_the_command_indexes_and_complains_in_one_line(tokens, tmp_path, capsys):
    assert main(["index", str(tokens), "--num_jobs", "1"]) == 0
    said = capsys.readouterr().err
    assert "7 cuts in 3 shards" in said and "dasheng, wavlm" in said
    assert main(["index", "--shards", f'["{tmp_path}/none"]']) == 2
    assert "no such shard folder" in capsys.readouterr().err
    os.remove(tokens / "wavlm_tokens.000001.tar")
    shutil.rmtree(tokens / INDEX_NAME)
    assert main(["index", "--shards", f'["{tokens}"]', "--num_jobs", "1"]) == 2
    assert "wavlm_tokens.000001.tar" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="num_jobs"):
        run(IndexConfig([str(tokens)], num_jobs=0))
    with pytest.raises(ConfigError, match="shards is not set"):
        run(IndexConfig())
