"""Which files below a folder are recordings, and what their ids are.

A corpus that people collected has anything in it: links in a circle, folders that nobody may read,
names that are no text. `scan_recordings` finds what looks like a recording by its suffix, follows
links but visits no folder twice, and names what it cannot take instead of passing over it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spear.audio.sound_reader import AUDIO_SUFFIXES, cause_of
from spear.data.corpus.unpack import ARCHIVE_ENDINGS
from spear.data.formats.manifests import printable
from spear.errors import DataError
from spear.system.progress import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """What lies below a folder."""

    files: dict[str, Path]
    """File by id, sorted by id."""
    refused: list[tuple[str, str, str]]
    """Id, path and what is wrong with it, all printable, for what cannot be taken."""


def scan_recordings(source: Path) -> Found:
    """Finds the recordings below a folder.

    The id of a recording is its path below `source` without suffix, "/" as "-". Names that are no
    UTF-8 or hold control characters are refused, since no manifest and no list of ids can hold
    them; so are folders that cannot be listed. Hidden files and folders are passed over.

    Raises:
        DataError: The folder is missing or has no recordings, or two files have the same id.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder of recordings")
    refused: list[tuple[str, str, str]] = []
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    archives: list[Path] = []
    for path in _walk(source, refused):
        suffix = path.suffix.lower()
        if suffix not in AUDIO_SUFFIXES:
            others[suffix or path.name] += 1
            if path.name.lower().endswith(ARCHIVE_ENDINGS):
                archives.append(path)
            continue
        key = "-".join(path.relative_to(source).with_suffix("").parts)
        if key in files:
            raise DataError(f"{path}: has the id {key!r}, as has {files[key]}; rename one of them")
        if printable(key) == key:
            files[key] = path
        else:
            refused.append(_refuse(key, path, "its name is no plain UTF-8 text, rename it"))
    if not files and not refused:
        raise DataError(_nothing_found(source, others, archives))
    _log_others(source, others, archives)
    return Found(dict(sorted(files.items())), refused)


def _walk(source: Path, refused: list[tuple[str, str, str]]) -> Iterator[Path]:
    """Yields every file below a folder, through links, but no folder twice and nothing hidden.

    A folder with the name of a recording and nothing in it is yielded, too: somebody expects a
    recording there.
    """

    def refuse(error: OSError) -> None:
        folder = Path(os.fsdecode(error.filename))
        key = "-".join(folder.relative_to(source).parts) or folder.name
        refused.append(_refuse(key, folder, f"the folder cannot be listed ({cause_of(error)})"))

    seen = set()
    for folder, below, names in os.walk(source, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if not below and not names and Path(folder).suffix.lower() in AUDIO_SUFFIXES:
            yield Path(folder)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _refuse(key: str, path: Path, reason: str) -> tuple[str, str, str]:
    where = printable(str(path))
    return printable(key), where, f"{where}: {reason}"


def _nothing_found(source: Path, others: Counter[str], archives: list[Path]) -> str:
    if archives:
        return (
            f"{source}: no recordings, but {len(archives)} archives; take them out first: "
            f"spear unpack {archives[0]} ... --output_dir FOLDER"
        )
    return f"{source}: no recordings in this folder ({sum(others.values())} files)"


def _log_others(source: Path, others: Counter[str], archives: list[Path]) -> None:
    if others:
        kinds = printable(", ".join(f"{count} {kind}" for kind, count in others.most_common(5)))
        log.info("%s: %d files that are no recordings: %s", source, sum(others.values()), kinds)
    if archives:
        log.warning(
            "%s: %d archives are not looked into, e.g. %s; `spear unpack` takes them out",
            source,
            len(archives),
            printable(archives[0].name),
        )
