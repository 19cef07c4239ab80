"""`spear unpack`: archives of recordings become folders, and nothing else happens.

Takes tar files (plain, gzip, bzip2, xz) and zip files and unpacks each into a folder of its own
below `output_dir`. Files are written as plain data: no owner, no mode, nothing executable. An
archive with a member that would leave its folder, or with anything else that a recording's archive
has no business with (`spear.data.corpus.archive_members`), is left out as a whole and named in
`bad_archives.jsonl`: who made one such member may have made others. A folder appears when it is
complete; run again, the command unpacks what is missing.
"""

import json
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from spear.data.corpus.archive_members import (
    ARCHIVE_ENDINGS,
    Archive,
    Gate,
    Member,
    check_end,
    check_target,
    open_archive,
    open_member,
    read_members,
)
from spear.data.formats.manifests import BadCuts, printable
from spear.errors import ConfigError, DataError, one_line
from spear.system.files import atomic_folder, remove_partials, sha256_of, write_json
from spear.system.progress import get_logger, progress

log = get_logger(__name__)

BAD_ARCHIVES = "bad_archives.jsonl"
_FREE_BYTES = 1 << 30  # small archives of silence may well shrink to a thousandth
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


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


def run(config: UnpackConfig) -> None:
    """Unpacks archives.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: Archives are broken or refused; the others are unpacked by then.
    """
    folders = _name_folders(config)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    bad = BadArchives(output)
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


class BadArchives(BadCuts):
    """Archives that were left out, in `bad_archives.jsonl`."""

    noun = "archives"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "archives", max_fraction=0.0)
        self.path = folder / BAD_ARCHIVES


def unpack(archive: Path, folder: Path, max_bytes: int) -> tuple[int, int]:
    """Unpacks one archive into a folder, which appears when it is complete.

    Links are made last, when all files are there: nothing is ever written through one.

    Args:
        archive: A tar or zip file.
        folder: What to make; replaced where it exists.
        max_bytes: Bytes that it may have unpacked.

    Returns:
        How many files there are, and their bytes.

    Raises:
        DataError: The archive is broken, or a member is refused; nothing is left of it.
    """
    gate, num_bytes, member = Gate(max_bytes), 0, None
    links: list[tuple[PurePosixPath, Member]] = []
    try:
        with open_archive(archive) as opened, atomic_folder(folder) as partial:
            for member in progress(read_members(opened), f"unpack {archive.name}"):
                path = gate.check(member, partial)
                if member.kind == "file":
                    num_bytes += _write_file(opened, member, partial / path)
                elif member.kind == "folder":
                    (partial / path).mkdir(parents=True, exist_ok=True)
                else:
                    links.append((path, member))
            member = None
            check_end(opened)
            for path, member in links:
                _make_link(partial, path, member)
            return gate.num_files, num_bytes
    except (DataError, *_BROKEN) as error:
        where = f"{archive}: " if member is None else f"{archive}: {printable(member.name)!r}: "
        raise DataError(where + one_line(error).removeprefix(f"{archive}: ")) from error


def _write_file(archive: Archive, member: Member, path: Path) -> int:
    """Writes a file as plain data; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_member(archive, member) as source, open(path, "xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        size = target.tell()
    if size != member.size:
        raise DataError(f"{size} bytes where its header says {member.size}")
    return size


def _make_link(folder: Path, path: PurePosixPath, member: Member) -> None:
    """Makes a link to another file or folder of the archive, relative, so that it can be moved."""
    place, target = folder / path, folder / check_target(path, member)
    place.parent.mkdir(parents=True, exist_ok=True)
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(target)]) != root:
        raise DataError(f"a link to {printable(member.target)!r}, outside its archive")
    if not target.exists():
        raise DataError(f"a link to {printable(member.target)!r}, which is not there")
    place.symlink_to(os.path.relpath(target, place.parent))


def _name_folders(config: UnpackConfig) -> dict[Path, Path]:
    """Returns the folder of every archive."""
    if not config.archives or not config.output_dir:
        missing = "archives: name at least one" if config.output_dir else "output_dir is not set"
        raise ConfigError(missing)
    if config.max_bytes < 1 or config.max_ratio < 1:
        raise ConfigError("max_bytes and max_ratio must be at least 1")
    folders: dict[Path, Path] = {}
    owners: dict[str, Path] = {}
    for path in map(Path, config.archives):
        if not path.is_file():
            raise ConfigError(f"{path}: no such archive")
        name = _stem(path.name)
        if owners.setdefault(name.casefold(), path) != path:
            raise ConfigError(
                f"{path}: would be unpacked into {name}, as {owners[name.casefold()]} is; unpack "
                "it with another output_dir"
            )
        folders[path] = Path(config.output_dir) / name
    return folders


def _stem(name: str) -> str:
    endings = [ending for ending in ARCHIVE_ENDINGS if name.lower().endswith(ending)]
    return name[: -len(max(endings, key=len))] if endings else f"{name}.unpacked"


def _unpack_unless_done(archive: Path, folder: Path, config: UnpackConfig) -> None:
    """Unpacks an archive unless its folder is there; leaves a record of what it was made from."""
    record_path = folder.with_name(f".{folder.name}.unpacked.json")
    record, status = _read_record(record_path), archive.stat()
    found: dict[str, Any] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    if folder.exists() and not record:
        raise DataError(f"{archive}: {folder} is there and not made from it; remove it first")
    if not folder.exists() or any(record[key] != value for key, value in found.items()):
        found["sha256"] = sha256_of(archive)
        if not folder.exists() or found["sha256"] != record["sha256"]:
            limit = max(_FREE_BYTES, int(config.max_ratio * status.st_size))
            found["num_files"], num_bytes = unpack(archive, folder, min(config.max_bytes, limit))
            write_json(record_path, found | {"archive": printable(archive.name)})
            log.info("%s: %d files, %.2f GB", folder, found["num_files"], num_bytes / 1e9)
            return
        write_json(record_path, record | found)
    log.info("%s: is there, nothing to do", folder)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
        return record if {"bytes", "mtime_ns", "sha256"} <= set(record) else {}
    except (OSError, ValueError, TypeError):
        return {}
