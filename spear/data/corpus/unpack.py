"""`spear unpack`: archives of recordings become folders, and nothing else happens.

Takes tar files (plain, gzip, bzip2, xz) and zip files and unpacks each into a folder of its own
below `output_dir`. Files are written as plain data: no owner, no mode, nothing executable. An
archive with a member that would leave its folder, with a device, or with more than the limits allow
is left out as a whole and named in `bad_archives.jsonl`: who made one such member may have made
others. What a member may be is decided by `tarfile.data_filter`, also in zip files. A folder
appears when it is complete; run again, the command unpacks what is missing.
"""

import bz2
import gzip
import lzma
import os
import platform
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from spear.data.formats.manifests import BadCuts, printable
from spear.errors import ConfigError, DataError, one_line
from spear.system.files import atomic_folder, read_record, remove_partials, sha256_of, write_json
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

ARCHIVE_ENDINGS = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst"),
    ".zip",
)
BAD_ARCHIVES = "bad_archives.jsonl"
MAX_HEADER_BYTES = 1 << 20
"""What a tar member may take before its content: long names, attributes, maps of holes."""
MAX_DIRECTORY_BYTES = 1 << 26
"""What the directory of a zip file may take: some half a million names."""
_FREE_BYTES = 1 << 30  # small archives of silence may well shrink to a thousandth
_LEAST_BYTES = 4096  # what a member takes on disk: a million empty files are no empty archive
_UNPACKERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_ZSTD_MAGIC, _ZIP_MAGICS = b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
Member = tuple[tarfile.TarInfo, Callable[[], Any]]
"""An entry of an archive, and what opens its content."""
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
_UNREADABLE = (*_BROKEN, RuntimeError, ValueError)  # encrypted, unknown packing, impossible numbers


@dataclass
class UnpackConfig:
    """What to unpack."""

    archives: list[str] = field(default_factory=list)
    """Archives: .tar, .tar.gz, .tar.bz2, .tar.xz or .zip."""
    output_dir: str = ""
    """Folder in which each archive gets a folder of its name without the ending."""
    max_bytes: int = 1_000_000_000_000
    """Bytes that one archive may have unpacked."""
    max_ratio: float = 100.0
    """How many times larger than itself an archive of more than 1 GiB unpacked may become."""
    max_files: int = 5_000_000
    """Names that one archive may have."""


def run(config: UnpackConfig) -> None:
    """Unpacks archives.

    Raises:
        ConfigError: Settings that do not fit together, or a Python without `tarfile.data_filter`.
        DataError: Archives are broken or refused; the others are unpacked by then.
    """
    folders = _name_folders(config)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    bad = BadCuts(output, "archives", max_fraction=0.0)
    bad.path, bad.noun = output / BAD_ARCHIVES, "archives"
    for archive, folder in folders.items():
        try:
            _unpack_unless_done(archive, folder, config)
        except DataError as error:
            bad.add(archive.name, str(archive), str(error))
    bad.write()
    bad.log_summary(len(folders))
    if bad.entries:
        raise DataError(
            f"{len(bad.entries)} of {len(folders)} archives are left out; the first: "
            f"{bad.entries[0]['error']}; all are listed in {bad.path}"
        )


def unpack(archive: Path, folder: Path, max_bytes: int, max_files: int = 5_000_000) -> int:
    """Unpacks one archive into a folder, which appears when it is complete.

    Links are made last, when all files are there: nothing is ever written through one.

    Args:
        archive: A tar or zip file.
        folder: What to make; replaced where it exists.
        max_bytes: Bytes that it may have unpacked.
        max_files: Names that it may have.

    Returns:
        How many files there are.

    Raises:
        DataError: The archive is broken, or a member is refused; nothing is left of it.
    """
    num_bytes, num_files = 0, 0
    links: list[tarfile.TarInfo] = []
    spellings: dict[str, str] = {}
    try:
        with open(archive, "rb") as stream, atomic_folder(folder) as made:
            for info, content in progress(_members(stream, archive), f"unpack {archive.name}"):
                with _naming(info):
                    path = _check(info, made, spellings)
                    num_bytes += max(_LEAST_BYTES, info.size)
                    if num_bytes > max_bytes or len(spellings) > max_files:
                        raise DataError(
                            f"a bomb: more than {max_bytes:,} bytes or {max_files:,} names "
                            "unpacked; raise max_bytes or max_ratio, or max_files, if this is right"
                        )
                    if info.issym() or info.islnk():
                        links.append(info)
                    elif info.isdir():
                        _make_folder(made / path)
                    else:
                        _write_file(content, made / path, info.size)
                        num_files += 1
            for info in links:
                with _naming(info):
                    _make_link(info, Path(os.path.realpath(made)))
            return num_files
    except DataError as error:
        raise DataError(f"{archive}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{archive}: {one_line(error)}") from error


@contextmanager
def _naming(info: tarfile.TarInfo) -> Iterator[None]:
    """Says of errors in which member they are."""
    try:
        yield
    except (DataError, *_UNREADABLE) as error:
        what = "is there twice" if isinstance(error, FileExistsError) else one_line(error)
        raise DataError(f"{printable(info.name)!r}: {what}") from error


def _members(stream: IO[bytes], archive: Path) -> Iterator[Member]:
    """Yields what an archive holds, in its order, as members of a tar file."""
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(_ZSTD_MAGIC):
        raise DataError("packed with zstd: run `zstd -d` on it and unpack the tar file")
    try:
        if magic.startswith(_ZIP_MAGICS) or archive.suffix.lower() == ".zip":
            limited = _Limited(stream, MAX_DIRECTORY_BYTES)
            opened = zipfile.ZipFile(cast(IO[bytes], limited))
            members = _zip_members(opened, limited)
        else:
            unpackers = [one for start, one in _UNPACKERS.items() if magic.startswith(start)]
            limited = _Limited(unpackers[0](stream) if unpackers else stream, MAX_HEADER_BYTES)
            tar: Any = tarfile.open(fileobj=cast(IO[bytes], limited), mode="r:")  # noqa: SIM115
            members = _tar_members(tar, limited)
    except _BROKEN as error:
        raise DataError(f"no readable tar or zip file ({one_line(error)})") from error
    yield from members


class _Limited:
    """A file of which only so many bytes are read, while `num_left` is a number.

    `tarfile` and `zipfile` read a header whole, however long it says that it is.
    """

    def __init__(self, stream: IO[bytes], num_left: int | None) -> None:
        self.stream, self.num_left = stream, num_left
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if self.num_left is None:
            return self.stream.read(size)
        data = self.stream.read(min(size, self.num_left + 1) if size >= 0 else self.num_left + 1)
        self.num_left -= len(data)
        if self.num_left < 0:
            raise DataError("a header longer than any recording needs")
        return data


def _tar_members(tar: Any, stream: _Limited) -> Iterator[Member]:
    while (info := tar.next()) is not None:
        stream.num_left = None
        tar.members = []  # it would keep every member
        yield info, partial(tar.extractfile, info)
        stream.num_left = MAX_HEADER_BYTES
    # A download that broke off between two members looks whole but for the zeros at the end; what
    # follows holds the checksum of gzip.
    stream.num_left = None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError("cut short: the tar file has no end")
    while stream.read(1 << 20):
        pass


def _zip_members(opened: zipfile.ZipFile, stream: _Limited) -> Iterator[Member]:
    stream.num_left = None
    for entry in opened.infolist():
        info = tarfile.TarInfo(_zip_name(entry))
        info.size = entry.file_size
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir():
            info.type = tarfile.DIRTYPE
        elif kind == stat.S_IFLNK:
            info.type = tarfile.SYMTYPE
            with opened.open(entry) as target:
                info.linkname = os.fsdecode(target.read(4096))
        elif kind not in (0, stat.S_IFREG):
            info.type = tarfile.CHRTYPE
        yield info, partial(opened.open, entry)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns the name of an entry; without the flag for UTF-8, most archives still mean UTF-8."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        log.warning("%s: the name says no coding, and is read as IBM 437", info.filename)
        return info.filename


def _check(info: tarfile.TarInfo, folder: Path, spellings: dict[str, str]) -> PurePosixPath:
    """Returns the path of a member below its archive's folder, unless it is refused.

    Raises:
        DataError: Its name leaves the folder, or is there in another spelling; it is a device, or a
            link that leads out.
    """
    name, path = info.name, PurePosixPath(info.name)
    if path.is_absolute() or name.startswith("\\") or name[1:2] == ":":
        raise DataError("an absolute name")  # of which the filter would make a relative one
    if ".." in path.parts or ".." in name.split("\\"):
        raise DataError("a name that goes up (..)")
    if "\0" in name:
        raise DataError("a name with a zero byte")
    try:
        tarfile.data_filter(info, str(folder))
    except tarfile.FilterError as error:
        target = f"a link to {printable(info.linkname)!r}, outside its archive"
        raise DataError(target if info.linkname else "a device or another special file") from error
    for one in (path, *path.parents):  # what other systems take for one name
        key = unicodedata.normalize("NFC", str(one)).casefold()
        if (first := spellings.setdefault(key, str(one))) != str(one):
            raise DataError(f"differs from {first!r} only in case or accents' coding")
    return path


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError("it or what is above it is no folder, but a file") from error


def _write_file(content: Callable[[], Any], path: Path, size: int) -> None:
    """Writes a file as plain data."""
    _make_folder(path.parent)
    with content() as source, open(path, "xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        if target.tell() != size:
            raise DataError(f"{target.tell()} bytes where its header says {size}")


def _make_link(info: tarfile.TarInfo, folder: Path) -> None:
    """Makes a link to another file or folder of the archive, relative, so that it can be moved."""
    place = folder / info.name
    start = place.parent if info.issym() else folder
    target = Path(os.path.realpath(start / info.linkname))
    _make_folder(place.parent)
    if Path(os.path.realpath(place.parent)) != place.parent:
        raise DataError("what is above it is no folder, but a link")
    if not target.is_relative_to(folder):
        raise DataError(f"a link to {printable(info.linkname)!r}, outside its archive")
    if not target.exists():
        raise DataError(f"a link to {printable(info.linkname)!r}, which is not there")
    place.symlink_to(os.path.relpath(target, place.parent))


def _name_folders(config: UnpackConfig) -> dict[Path, Path]:
    """Returns the folder of every archive."""
    if not config.archives or not config.output_dir:
        missing = "archives: name at least one" if config.output_dir else "output_dir is not set"
        raise ConfigError(missing)
    if min(config.max_bytes, config.max_ratio, config.max_files) < 1:
        raise ConfigError("max_bytes, max_ratio and max_files must be at least 1")
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError(
            f"Python {platform.python_version()} has no filter for archives of strangers; "
            "3.10.12, 3.11.4, 3.12 and later have: update it"
        )
    folders: dict[Path, Path] = {}
    owners: dict[str, Path] = {}
    for path in map(Path, config.archives):
        if not path.is_file():
            raise ConfigError(f"{path}: no such archive")
        endings = [ending for ending in ARCHIVE_ENDINGS if path.name.lower().endswith(ending)]
        stem = path.name[: -max(map(len, endings))] if endings else f"{path.name}.unpacked"
        owner = owners.setdefault(stem.casefold(), path)
        if owner != path:
            raise ConfigError(
                f"{path}: would be unpacked into {stem}, as {owner} is; unpack it with another "
                "output_dir"
            )
        folders[path] = Path(config.output_dir) / stem
    return folders


def _unpack_unless_done(archive: Path, folder: Path, config: UnpackConfig) -> None:
    """Unpacks an archive unless its folder is there; leaves a record of what it was made from."""
    record_path = folder.with_name(f".{folder.name}.unpacked.json")
    record = read_record(record_path)
    if folder.exists() and "sha256" not in record:
        raise DataError(f"{archive}: {folder} is there and not made from it; remove it first")
    size = archive.stat().st_size
    made_from = {"bytes": size, "mtime_ns": archive.stat().st_mtime_ns}
    if folder.exists() and made_from.items() <= record.items():
        log.info("%s: is there, nothing to do", folder)
        return
    sha256 = sha256_of(archive)
    if not folder.exists() or record["sha256"] != sha256:
        limit = max(_FREE_BYTES, int(config.max_ratio * size))
        num_files = unpack(archive, folder, min(config.max_bytes, limit), config.max_files)
        log.info("%s: %d files", folder, num_files)
    write_json(record_path, {**made_from, "sha256": sha256, "archive": printable(archive.name)})
