"""What is in an archive, tar or zip, as one kind of member, and which members are refused.

An archive from somewhere may hold names that leave its folder, links that lead out of it, devices,
or a few bytes that unpack to terabytes. `read_members` gives what tar and zip files hold in one
form; `Gate` looks at every member before anything of it is written. The checks are our own, so
that they are the same with every version of Python; where `tarfile` has its own (`data_filter`),
a member must pass that, too.
"""

import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from spear.data.formats.manifests import printable
from spear.errors import DataError, one_line

ARCHIVE_ENDINGS = (
    ".tar",
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip"),
)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEAST_BYTES = 4096
"""What a member takes on disk at least: a million empty files are no empty archive."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    """Its name as it stands there, with slashes."""
    kind: Literal["file", "folder", "symlink", "hardlink", "other"]
    """What it is; "other" is a device, a pipe or anything else."""
    size: int
    """Bytes of its content, as its header says."""
    target: str = ""
    """Where a link points: from its own folder (symlink), from the archive's root (hardlink)."""
    source: "tarfile.TarInfo | zipfile.ZipInfo | None" = None
    """The entry in the words of its library."""
    is_encrypted: bool = False
    """Whether its content needs a password."""


Archive = tarfile.TarFile | zipfile.ZipFile


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a tar file, packed or not, or a zip file.

    Raises:
        DataError: It is neither.
    """
    with open(path, "rb") as stream:
        magic = stream.read(4)
    try:
        is_zip = _is_zip(path, magic)
        opened: Archive = zipfile.ZipFile(path) if is_zip else tarfile.open(path)  # noqa: SIM115
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        if magic == _ZSTD_MAGIC:
            raise DataError(
                f"{path}: packed with zstd, which this Python cannot read; run `zstd -d` on it and "
                "unpack the tar file"
            ) from error
        raise DataError(f"{path}: no readable tar or zip file ({one_line(error)})") from error
    with opened:
        yield opened


def _is_zip(path: Path, magic: bytes) -> bool:
    return magic == b"PK\x03\x04" or path.suffix.lower() == ".zip"


def read_members(archive: Archive) -> Iterator[Member]:
    """Yields what an archive holds, in its order."""
    if isinstance(archive, zipfile.ZipFile):
        yield from (_zip_member(archive, info) for info in archive.infolist())
    else:
        yield from map(_tar_member, archive)


def open_member(archive: Archive, member: Member) -> IO[bytes]:
    """Opens the content of a file in an archive."""
    if isinstance(archive, zipfile.ZipFile):
        assert isinstance(member.source, zipfile.ZipInfo)
        return archive.open(member.source)
    assert isinstance(member.source, tarfile.TarInfo)
    stream = archive.extractfile(member.source)
    assert stream is not None, "only files are opened"
    return stream


def check_end(archive: Archive) -> None:
    """Reads a tar file to its end, after its members; zip files have their own checks.

    A download that broke off between two members looks whole but for the zeros at the end.

    Raises:
        DataError: The tar file has no end.
        OSError: What follows is broken (the checksum of gzip, e.g.).
    """
    if isinstance(archive, zipfile.ZipFile):
        return
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError("cut short: the tar file has no end")
    while stream.read(1 << 20):
        pass


@dataclass
class Gate:
    """Lets members of one archive pass, and raises `DataError` for those that are refused."""

    max_bytes: int
    """Bytes that the archive may have unpacked."""
    num_bytes: int = 0
    """Bytes of the members that passed, by their headers."""
    num_files: int = 0
    """Files among them."""
    _kinds: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _spellings: dict[str, str] = field(default_factory=dict)

    def check(self, member: Member, folder: Path) -> PurePosixPath:
        """Checks a member.

        Args:
            member: The next one of the archive.
            folder: Where the archive is unpacked.

        Returns:
            Its path below the folder.

        Raises:
            DataError: It is refused; says why.
        """
        path = inner_path(member.name)
        if member.kind == "other":
            raise DataError("a device or another special file")
        if member.is_encrypted:
            raise DataError("encrypted")
        if member.kind in ("symlink", "hardlink"):
            check_target(path, member)
        self._check_filter(member, folder)
        self._check_name(path, member.kind)
        self.num_files += member.kind == "file"
        self.num_bytes += max(_LEAST_BYTES, member.size)
        if self.num_bytes > self.max_bytes:
            raise DataError(
                f"a bomb: more than {self.max_bytes:,} bytes unpacked; raise max_bytes or "
                "max_ratio if this is right"
            )
        return path

    def _check_filter(self, member: Member, folder: Path) -> None:
        data_filter = getattr(tarfile, "data_filter", None)  # Python 3.10.12, 3.11.4, 3.12
        if data_filter is None or not isinstance(member.source, tarfile.TarInfo):
            return
        try:
            data_filter(member.source, str(folder))
        except tarfile.TarError as error:
            raise DataError(one_line(error)) from error

    def _check_name(self, path: PurePosixPath, kind: str) -> None:
        """Refuses names that are there already, by any spelling, and files below what is none."""
        for above in [*path.parents][-2::-1]:
            self._check_spelling(above)
            if self._kinds.setdefault(str(above), "folder") != "folder":
                raise DataError(f"{str(above)!r} above it is no folder")
        self._check_spelling(path)
        known = self._kinds.setdefault(str(path), kind)
        is_new_folder = kind == known == "folder"
        if not is_new_folder and str(path) in self._seen:
            raise DataError("is there twice")
        if known != kind:
            raise DataError(f"is a {known} already")
        self._seen.add(str(path))

    def _check_spelling(self, path: PurePosixPath) -> None:
        key = unicodedata.normalize("NFC", str(path)).casefold()
        first = self._spellings.setdefault(key, str(path))
        if first != str(path):
            raise DataError(f"differs from {first!r} only in case or accents' coding")


def inner_path(name: str) -> PurePosixPath:
    """Returns the path of a member below its archive's folder.

    Raises:
        DataError: The name is absolute, goes up, or is no name.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or name.startswith("\\") or name[1:2] == ":":
        raise DataError("an absolute name")
    if ".." in path.parts or ".." in name.split("\\"):
        raise DataError("a name that goes up (..)")
    if "\0" in name:
        raise DataError("a name with a zero byte")
    return path


def check_target(path: PurePosixPath, member: Member) -> PurePosixPath:
    """Returns what a link points to, below its archive's folder.

    Raises:
        DataError: It points outside.
    """
    target = PurePosixPath(member.target)
    if target.is_absolute():
        raise DataError(f"a link to {printable(member.target)!r}, outside its archive")
    steps: list[str] = [] if member.kind == "hardlink" else [*path.parent.parts]
    for part in target.parts:
        if part != "..":
            steps.append(part)
        elif steps:
            steps.pop()
        else:
            raise DataError(f"a link to {printable(member.target)!r}, outside its archive")
    return PurePosixPath(*steps)


def _tar_member(info: tarfile.TarInfo) -> Member:
    if info.isreg():
        return Member(info.name, "file", info.size, source=info)
    if info.isdir():
        return Member(info.name, "folder", 0, source=info)
    if info.issym():
        return Member(info.name, "symlink", 0, info.linkname, info)
    if info.islnk():
        return Member(info.name, "hardlink", 0, info.linkname, info)
    return Member(info.name, "other", 0, source=info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return Member(info.filename, "file", info.file_size, source=info, is_encrypted=True)
    if info.is_dir():
        return Member(info.filename, "folder", 0, source=info)
    if stat.S_ISLNK(mode):
        with archive.open(info) as stream:
            target = stream.read(4096).decode("utf-8", "surrogateescape")
        return Member(info.filename, "symlink", 0, target, info)
    is_file = stat.S_IFMT(mode) in (0, stat.S_IFREG)
    return Member(info.filename, "file" if is_file else "other", info.file_size, source=info)
