import bz2
import gzip
import io
import json
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spear.data.corpus import unpack
from spear.data.corpus.prepare import PrepareConfig
from spear.data.corpus.prepare import run as prepare
from spear.data.corpus.unpack import UnpackConfig
from spear.errors import ConfigError, DataError

Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]
GOOD = {"a/one.wav": b"1" * 700, "a/b/two.wav": b"2" * 10, "three.flac": b""}


def entry(name: str, content: bytes = b"x", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, b"", type=kind, linkname=target)


def write_tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


def good_tar(path: Path, mode: str = "w") -> Path:
    return write_tar(path, *(entry(name, content) for name, content in GOOD.items()), mode=mode)


def good_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def config(tmp_path: Path) -> UnpackConfig:
    return UnpackConfig(output_dir=str(tmp_path / "out"))


def refusal(config: UnpackConfig, archive: Path) -> str:
    """Unpacks a bad archive beside a good one; returns why it was refused."""
    good = good_tar(archive.with_name("good.tar"))
    outside = {path: path.read_bytes() for path in archive.parent.iterdir() if path.is_file()}
    with pytest.raises(DataError, match="1 of 2 archives are left out") as raised:
        unpack.run(replace(config, archives=[str(archive), str(good)]))
    output = Path(config.output_dir)
    names = sorted(path.name for path in output.iterdir())
    assert names == [".good.unpacked.json", "bad_archives.jsonl", "good"]
    assert contents(output / "good") == GOOD
    assert {p: p.read_bytes() for p in archive.parent.iterdir() if p.is_file()} == outside
    (line,) = (output / "bad_archives.jsonl").read_text().splitlines()
    error = json.loads(line)["error"]
    assert error in str(raised.value) and error.startswith(f"{archive}: ")
    return error.removeprefix(f"{archive}: ")


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tbz2", "w:bz2"), ("x.txz", "w:xz")]
)
def test_tar_files_are_unpacked(config: UnpackConfig, tmp_path: Path, name: str, mode: str) -> None:
    archive = good_tar(tmp_path / name, mode)
    unpack.run(replace(config, archives=[str(archive)]))
    assert contents(tmp_path / "out" / "x") == GOOD


def test_a_zip_file_is_unpacked_whatever_it_is_called(config: UnpackConfig, tmp_path: Path) -> None:
    paths = [str(good_zip(tmp_path / "x.zip")), str(good_zip(tmp_path / "y.data"))]
    unpack.run(replace(config, archives=paths))
    assert (
        contents(tmp_path / "out" / "x") == contents(tmp_path / "out" / "y.data.unpacked") == GOOD
    )


def test_the_same_archive_again_does_nothing(
    config: UnpackConfig, tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = good_tar(tmp_path / "x.tar")
    config = replace(config, archives=[str(archive)])
    unpack.run(config)
    before = snapshot(tmp_path / "out")
    monkeypatch.setattr(unpack, "unpack", None)  # not called again
    unpack.run(config)
    assert snapshot(tmp_path / "out") == before
    os.utime(archive, (1, 1))  # copied anew: the checksum tells that it is the same
    unpack.run(config)
    unpack.run(config)


def test_another_archive_of_the_name_replaces_what_was_there(
    config: UnpackConfig, tmp_path: Path
) -> None:
    config = replace(config, archives=[str(good_tar(tmp_path / "x.tar"))])
    unpack.run(config)
    write_tar(tmp_path / "x.tar", entry("new.wav", b"new"))
    unpack.run(config)
    assert contents(tmp_path / "out" / "x") == {"new.wav": b"new"}


def test_a_folder_of_somebody_else_is_not_replaced(config: UnpackConfig, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "x" / "mine.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    with pytest.raises(DataError, match="is there and not made from it; remove it first"):
        unpack.run(replace(config, archives=[str(good_tar(tmp_path / "x.tar"))]))
    assert mine.read_bytes() == b"precious"


def test_a_kill_leaves_nothing_half_done(
    config: UnpackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, archives=[str(good_tar(tmp_path / "x.tar"))])
    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            unpack.run(config)
    assert not (tmp_path / "out" / "x").exists()
    (tmp_path / "out" / ".x.partial-1").mkdir()
    unpack.run(config)
    assert contents(tmp_path / "out").keys() >= {f"x/{name}" for name in GOOD}
    assert not list((tmp_path / "out").glob(".*partial*"))


def test_nothing_is_executable_or_has_another_owner(config: UnpackConfig, tmp_path: Path) -> None:
    evil = entry("run.wav", mode=0o6777, uid=1234, gid=1234, uname="nobody")
    unpack.run(replace(config, archives=[str(write_tar(tmp_path / "x.tar", evil))]))
    status = (tmp_path / "out" / "x" / "run.wav").stat()
    assert stat.S_IMODE(status.st_mode) & 0o7111 == 0
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


OUTSIDE = "outside its archive"
EVIL = {
    "absolute": ([entry("/tmp/evil.wav")], "an absolute name"),
    "windows": ([entry("C:\\evil.wav")], "an absolute name"),
    "up": ([entry("../evil.wav")], "a name that goes up (..)"),
    "deep_up": ([entry("a/b/../../../evil.wav")], "a name that goes up (..)"),
    "backslashes": ([entry("..\\evil.wav")], "a name that goes up (..)"),
    "symlink_out": ([link("a", "../..")], OUTSIDE),
    "symlink_absolute": ([link("a", "/etc")], OUTSIDE),
    "hardlink_out": ([link("a", "../victim", tarfile.LNKTYPE)], OUTSIDE),
    "hardlink_absolute": ([link("a", "/etc/passwd", tarfile.LNKTYPE)], OUTSIDE),
    "through_a_link": ([link("a", "b"), entry("b/x.wav"), entry("a/y.wav")], "is there twice"),
    "link_to_nothing": ([link("a.wav", "b.wav")], "which is not there"),
    "circle": ([link("a", "b"), link("b", "a")], "which is not there"),
    "over_a_link": ([entry("x"), link("a", "x"), entry("a")], "is there twice"),
    "device": ([entry("zero.wav", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)], "a device"),
    "pipe": ([entry("x.wav", b"", type=tarfile.FIFOTYPE)], "a device or another special file"),
    "case": ([entry("a/X.wav"), entry("A/X.wav")], "only in case"),
    "accents": ([entry("caf\u00e9.wav"), entry("cafe\u0301.wav")], "only in case or accents"),
    "twice": ([entry("x.wav", b"1"), entry("x.wav", b"2")], "is there twice"),
    "file_as_folder": ([entry("x"), entry("x/y.wav")], "is no folder, but a file"),
    "link_in_a_link": (
        [entry("b/x"), link("a", "b"), link("a/y", "b/x")],
        "is no folder, but a link",
    ),
    "long": ([entry("x" * 300)], "File name too long"),
}


@pytest.mark.parametrize("case", EVIL)
def test_an_evil_tar_file_is_left_out_and_named(
    config: UnpackConfig, tmp_path: Path, case: str
) -> None:
    (tmp_path / "victim").write_bytes(b"secret")
    entries, reason = EVIL[case]
    error = refusal(config, write_tar(tmp_path / "evil.tar", entry("good.wav"), *entries))
    assert reason in error
    name = error.split("'")[1]
    assert name in [repr(info.name)[1:-1] for info, _ in entries] or name in entries[-1][0].name


def test_a_chain_of_links_cannot_leave_the_folder(tmp_path: Path) -> None:
    """Each link is inside by its words; what the first one is decides where the second leads."""
    chain = [entry("d/x"), link("d/a", "."), link("b", "d/a/../..")]
    with pytest.raises(DataError, match=OUTSIDE):
        unpack.unpack(write_tar(tmp_path / "x.tar", *chain), tmp_path / "made", 10**6)
    chain = [entry("d/e/x"), link("up", "d/e"), link("out", "up/../../x")]
    with pytest.raises(DataError, match=OUTSIDE):
        unpack.unpack(write_tar(tmp_path / "y.tar", *chain), tmp_path / "made", 10**6)
    assert not (tmp_path / "made").exists()


def test_links_inside_are_kept_as_relative_links(config: UnpackConfig, tmp_path: Path) -> None:
    entries = [link("b/y.wav", "../a/x.wav"), entry("a/x.wav", b"1")]
    entries.append(link("z.wav", "a/x.wav", tarfile.LNKTYPE))
    unpack.run(replace(config, archives=[str(write_tar(tmp_path / "x.tar", *entries))]))
    (tmp_path / "out" / "x").rename(tmp_path / "moved")
    assert contents(tmp_path / "moved") == dict.fromkeys(["a/x.wav", "b/y.wav", "z.wav"], b"1")


@pytest.mark.parametrize("name", ["../evil.wav", "/evil.wav", "a/../../evil.wav", "..\\evil.wav"])
def test_an_evil_zip_name_is_refused(config: UnpackConfig, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("good.wav", b"1")
        archive.writestr(name, b"2")
    assert "a name that goes up (..)" in (error := refusal(config, tmp_path / "evil.zip")) or (
        "an absolute name" in error
    )


def test_a_zip_symlink_out_and_a_zip_device_are_refused(
    config: UnpackConfig, tmp_path: Path
) -> None:
    for mode, reason in ((stat.S_IFLNK, OUTSIDE), (stat.S_IFCHR, "a device")):
        info = zipfile.ZipInfo("a.wav")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(DataError, match=reason):
            unpack.unpack(tmp_path / "evil.zip", tmp_path / "made", 10**6)


def test_an_encrypted_zip_is_refused(config: UnpackConfig, tmp_path: Path) -> None:
    path = good_zip(tmp_path / "evil.zip")
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1  # the last entry of the directory
    path.write_bytes(content)
    assert "encrypted" in refusal(config, path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(
    config: UnpackConfig, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_FREE_BYTES", 1000)
    path = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zero.wav", bytes(10**6))
    else:
        write_tar(path, entry("zero.wav", bytes(10**6)), mode="w:gz")
    good = good_tar(tmp_path / "good.tar")
    with pytest.raises(DataError, match=r"zero\.wav': a bomb.*raise max_bytes or max_ratio"):
        unpack.run(replace(config, archives=[str(path), str(good)]))
    unpack.run(replace(config, archives=[str(path)], max_ratio=1e4))
    assert (tmp_path / "out" / "evil" / "zero.wav").stat().st_size == 10**6


def test_a_million_empty_files_are_a_bomb_too(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", *(entry(f"{n}", b"") for n in range(30)))
    with pytest.raises(DataError, match="'24': a bomb: more than 100,000 bytes"):
        unpack.unpack(archive, tmp_path / "made", 100_000)


def test_a_zip_that_lies_about_a_size_is_refused(config: UnpackConfig, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zero.wav", bytes(10**5))
    content = bytearray((tmp_path / "evil.zip").read_bytes())
    place = content.rfind(b"PK\x01\x02") + 24
    content[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "evil.zip").write_bytes(content)
    assert "CRC" in refusal(config, tmp_path / "evil.zip")


@pytest.mark.parametrize("kept", [100, 512 + 300, 512 + 1024, 3 * 512 + 1024, 0])
def test_a_tar_file_cut_short_anywhere_is_refused(
    config: UnpackConfig, tmp_path: Path, kept: int
) -> None:
    """Within a header, within data, at a member's boundary, before the end; nothing at all."""
    path = good_tar(tmp_path / "evil.tar")
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(config, path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_packed_tar_file_cut_short_or_changed_is_refused(
    config: UnpackConfig, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(good_tar(tmp_path / "x.tar").read_bytes())
    for broken in (whole[:-9], whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]):
        (tmp_path / "evil.tgz").write_bytes(broken)
        assert refusal(config, tmp_path / "evil.tgz")
        unpack_again = replace(config, archives=[str(tmp_path / "good.tar")])
        unpack.run(unpack_again)
        assert not (tmp_path / "out" / "bad_archives.jsonl").exists()


def test_what_is_no_archive_is_refused(config: UnpackConfig, tmp_path: Path) -> None:
    (tmp_path / "evil.zip").write_bytes(b"no zip at all")
    assert "no readable tar or zip file" in refusal(config, tmp_path / "evil.zip")


def test_zstd_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(DataError, match="run `zstd -d`"):
        unpack.unpack(tmp_path / "x.tar.zst", tmp_path / "made", 10**6)


def test_a_python_without_the_filter_of_tarfile_is_named(
    config: UnpackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(unpack.tarfile, "data_filter")
    with pytest.raises(ConfigError, match=r"Python 3\..* has no filter .*3\.10\.12"):
        unpack.run(replace(config, archives=[str(good_tar(tmp_path / "x.tar"))]))


def test_names_that_stay_inside_are_left_as_they_are(tmp_path: Path) -> None:
    names = ("a/b.wav", "./a/c.wav", "a..b/c..wav", "-a b'\"\u00e9.wav", "...")
    unpack.unpack(write_tar(tmp_path / "x.tar", *map(entry, names)), tmp_path / "made", 10**6)
    assert set(contents(tmp_path / "made")) == {name.removeprefix("./") for name in names}


@pytest.mark.parametrize("kind", ["long name", "long link", "pax", "many", "zip"])
def test_a_header_that_would_fill_the_memory_is_not_read(
    config: UnpackConfig, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten megabytes stand for the terabytes that a small file unpacks to."""
    path = tmp_path / ("evil.zip" if kind == "zip" else "evil.tar.gz")
    name = "x" * (10_000_000 if kind == "long name" else 10)
    one = {
        "long link": link("a", "x" * 10_000_000),
        "pax": entry("a", pax_headers={"comment": "x" * 10_000_000}),
    }.get(kind, entry(name))
    if kind == "zip":
        monkeypatch.setattr(unpack, "MAX_DIRECTORY_BYTES", 1_000)
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(20):
                archive.writestr(f"{number}.wav", b"")
    elif kind == "many":
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, 12
        block = header.tobuf() + b"12 a=bbbbbb\n".ljust(512, b"\0")
        path.write_bytes(gzip.compress(block * 2000 + entry("a")[0].tobuf() + bytes(2048)))
    else:
        form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
        with tarfile.open(path, "w:gz", format=form) as tar:
            tar.addfile(*(one[0], io.BytesIO(one[1])))
    tracemalloc.start()
    try:
        error = refusal(config, path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert "a header longer than any recording needs" in error or "recursion" in error


def test_more_names_than_allowed_are_a_bomb(config: UnpackConfig, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", *(entry(f"{n}") for n in range(30)))
    with pytest.raises(DataError, match=r"a bomb: .* or 10 names unpacked"):
        unpack.run(replace(config, archives=[str(archive)], max_files=10))


def test_zip_names_without_the_flag_for_utf8_are_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten years of zip programs wrote UTF-8 and did not say so."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("caf\u00e9.wav", b"1")
        archive.writestr("caXX.wav", b"2")
    content = (tmp_path / "x.zip").read_bytes().replace(b"caXX", b"ca\xe9\xe8")
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        place, skip = content.find(start), 6 if start[2] == 3 else 8
        flags = bytes([content[place + skip], content[place + skip + 1] & ~8])
        content = content[: place + skip] + flags + content[place + skip + 2 :]
    (tmp_path / "x.zip").write_bytes(content)
    unpack.unpack(tmp_path / "x.zip", tmp_path / "made", 10**6)
    assert contents(tmp_path / "made") == {"caf\u00e9.wav": b"1", "ca\u0398\u03a6.wav": b"2"}
    assert "ca\u0398\u03a6.wav: the name says no coding" in caplog.text


def test_settings_that_do_not_fit(config: UnpackConfig, tmp_path: Path) -> None:
    path = str(good_tar(tmp_path / "x.tar"))
    (tmp_path / "sub").mkdir()
    other = str(good_tar(tmp_path / "sub" / "X.tar.gz", "w:gz"))
    for change, message in (
        ({"archives": []}, "name at least one"),
        ({"archives": [path], "output_dir": ""}, "output_dir is not set"),
        ({"archives": [f"{path}x"]}, "no such archive"),
        ({"archives": [path, other]}, "would be unpacked into X, as .*x.tar is"),
        ({"archives": [path], "max_ratio": 0.5}, "must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            unpack.run(replace(config, **change))  # type: ignore[arg-type]


def test_prepare_says_what_to_run_for_a_folder_of_archives(tmp_path: Path) -> None:
    good_tar(tmp_path / "in.tar.gz", "w:gz")
    config = PrepareConfig(source_dir=str(tmp_path), corpus="c", output_dir=f"{tmp_path}/m")
    with pytest.raises(DataError, match=r"1 archives; .*: spear unpack .*in\.tar\.gz \.\.\. --out"):
        prepare(config)
