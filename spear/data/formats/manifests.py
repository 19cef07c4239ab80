"""Cut manifests and the list of what was left out of them.

Gzipped JSON lines with equal bytes for equal content (no time in the gzip header), so that a
manifest's checksum tells whether it changed; and `BadCuts`, which counts, names and judges the
recordings that a stage could not use.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import category

from spear.errors import ConfigError, DataError
from spear.system.files import atomic_path, write_text
from spear.system.progress import get_logger

log = get_logger(__name__)

DOMAINS = ("speech", "audio")
"""Values of `cut.custom["domain"]`."""
BAD_CUTS = "bad_cuts.jsonl"
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, separators of lines


def read_jsonl_gz(path: Path) -> list[dict[str, Any]]:
    """Reads a gzipped JSON-lines file whole.

    Raises:
        DataError: The file is missing, cut short, or a line is no JSON mapping.
    """
    return list(iter_jsonl_gz(path))


def iter_jsonl_gz(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a gzipped JSON-lines file; raises as `read_jsonl_gz`, on the way."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for text in stream:
                if not text.strip():
                    continue
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise DataError(f"{path}: not a manifest, a line is no JSON mapping")
                yield line
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such manifest") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: not a readable manifest ({error})") from error


def write_jsonl_gz(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes gzipped JSON lines atomically; the same lines always give the same bytes."""
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as text,
    ):
        for line in lines:
            text.write(json.dumps(line, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    r"""Returns text that any file and terminal takes: `caf\xe9` for bytes that are no UTF-8.

    Names of files may hold any byte but "/" and zero. Python keeps those that are no UTF-8 as lone
    surrogates, which cannot be written; newlines would break a list with one name a line.
    """
    return "".join(_escaped(c) if category(c) in _UNPRINTABLE else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class BadCuts:
    """Recordings that a stage leaves out, with the reason for each.

    Attributes:
        entries: One mapping (`id`, `path`, `error`) for each, in the order of `add`.
        noun: What they are, in the plural.
    """

    noun = "recordings"

    def __init__(self, folder: Path, source: str, max_fraction: float) -> None:
        """Starts with none.

        Args:
            folder: Where `bad_cuts.jsonl` is kept.
            source: Name of the corpus; lines of other corpora in the file are kept.
            max_fraction: Largest tolerated share of bad recordings, 0 to 1.

        Raises:
            ConfigError: `max_fraction` is no fraction.
        """
        if not 0 <= max_fraction <= 1:
            raise ConfigError(f"max_bad_fraction must lie between 0 and 1, not {max_fraction}")
        self.path = Path(folder) / BAD_CUTS
        self.source = source
        self.max_fraction = max_fraction
        self.entries: list[dict[str, str]] = []

    def add(self, cut_id: str, path: str, error: str) -> None:
        """Notes a bad recording; names that are no text are escaped."""
        entry = {"id": cut_id, "source": self.source, "path": path, "error": error}
        self.entries.append({name: printable(value) for name, value in entry.items()})

    def write(self) -> None:
        """Writes the list; removes this source's old lines, and the file when nothing is left."""
        others = [line for line in self._existing() if line.get("source") != self.source]
        lines = others + self.entries
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(self.path, text)
        else:
            self.path.unlink(missing_ok=True)

    def recorded(self) -> list[dict[str, str]]:
        """Returns this source's entries in the file, as the last `write` left them."""
        return [line for line in self._existing() if line.get("source") == self.source]

    def log_summary(self, total: int) -> None:
        """Logs in one line how many of `total` are bad, and why."""
        if not self.entries:
            return
        kinds = Counter(map(kind_of_error, self.entries))
        log.warning(
            "%d of %d %s are left out: %s; all in %s, the first: %s",
            len(self.entries),
            total,
            self.noun,
            "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common()),
            self.path,
            self.entries[0]["error"],
        )

    def _existing(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        try:
            lines = self.path.read_text("utf-8").split("\n")
            return [json.loads(line) for line in lines if line]
        except ValueError:
            return []  # a list that somebody edited is written anew

    def check(self, total: int) -> None:
        """Stops the stage where more than the tolerated share of `total` recordings is bad.

        Raises:
            DataError: Names the first bad recording, its cause and the list of all.
        """
        if len(self.entries) <= self.max_fraction * total:
            return
        raise DataError(
            f"{len(self.entries)} of {total} recordings are bad, more than max_bad_fraction "
            f"{self.max_fraction:g} allows; the first: {self.entries[0]['error']}; all are listed "
            f"in {self.path}"
        )


def kind_of_error(entry: Mapping[str, str]) -> str:
    """Returns what is wrong with a bad recording without what is its own: its name, its numbers."""
    text = entry["error"].removeprefix(f"{entry['path']}: ")
    text = re.sub(r"'[^']*'", "...", text.split(", ", 1)[0]).removeprefix("...: ")
    return re.sub(r"\d[\d.,]*", "N", text)
