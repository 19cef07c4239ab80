"""Files written whole or not at all, and checksums of what was written."""

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spear.errors import ConfigError

_HOST = re.sub(r"\W", "_", socket.gethostname()) or "host"
_OWNER = re.compile(r"\.partial-(\w+)-(\d+)(?=\.|$)")
_DAY_S = 86400.0
_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


def sha256_of(path: Path, chunk_bytes: int = 1 << 22) -> str:
    """Returns the SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Asks the system to put a file's or folder's content on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish(file: Path) -> None:
    """Puts a written file on disk, with the permissions that a new file has by default.

    Some writers (safetensors 0.8) make their files readable by the user alone, so that nobody else
    in a laboratory could load a checkpoint.
    """
    with suppress(OSError):  # some network file systems have no permissions to set
        os.chmod(file, 0o666 & ~_UMASK)
    sync(file)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` when the block succeeds.

    The suffix stays (`a.wav` is written as `.a.partial-HOST-PID.wav`): writers look at it.
    A block that raises, or a process that is killed, leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name.split(".")[0], _suffixes(path)))
    try:
        yield partial
        _finish(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        _remove(partial)


@contextmanager
def atomic_folder(path: Path, owned: Sequence[str] = ("*",)) -> Iterator[Path]:
    """Like `atomic_path` for a folder; an existing folder at `path` is replaced at the end.

    Args:
        path: The folder.
        owned: Patterns of what such a folder holds; one that has anything else in it, or nothing
            of the first pattern, was made by another and is not replaced.

    Yields:
        The folder to fill, under a temporary name.

    Raises:
        ConfigError: `path` is a file, lies below one, or is a folder with other content.
    """
    path = Path(os.path.abspath(path))
    _check_replaceable(path, owned)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_dir():
                sync(file)
            else:
                _finish(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(path: Path, owned: Sequence[str]) -> None:
    """Refuses a place whose content would be lost; see `atomic_folder`."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is a file: choose another output folder")
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    foreign = [name for name in found if not any(fnmatch(name, pattern) for pattern in owned)]
    if found and not foreign and not any(fnmatch(name, owned[0]) for name in found):
        foreign = found
    if foreign or not path.name:
        raise ConfigError(
            f"{path} is not replaced: it holds {foreign[0] if foreign else 'everything'}, which is "
            "no part of what is written here; choose another output folder, or remove this one"
        )


def partial_name(stem: str, suffixes: str = "") -> str:
    """Returns the temporary name of a file or folder, which says who writes it."""
    return f".{stem}.partial-{_HOST}-{os.getpid()}{suffixes}"


def remove_partials(folder: Path) -> None:
    """Removes what killed processes left in `folder` under temporary names.

    What a live process of this machine is writing stays: several stages may share a folder. So
    does what another machine wrote within the last day, since nobody here can tell.
    """
    for leftover in Path(folder).glob(".*.partial-*"):
        if not _may_be_in_use(leftover):
            _remove(leftover)


def _may_be_in_use(partial: Path) -> bool:
    owner = _OWNER.search(partial.name)
    if owner is None:
        return False
    host, pid = owner.group(1), int(owner.group(2))
    if host == _HOST:
        # A process asks before it writes: what bears its number was left by one before it.
        return pid != os.getpid() and _is_alive(pid)
    try:
        return time.time() - partial.stat().st_mtime < _DAY_S
    except OSError:  # finished or removed meanwhile
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, indented, with a newline at the end."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Returns the JSON mapping of a finished stage; empty where there is none or it is broken."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(content, "utf-8")


def _suffixes(path: Path) -> str:
    return "".join(f".{part}" for part in path.name.split(".")[1:] if part)
