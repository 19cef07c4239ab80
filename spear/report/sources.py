"""What lies in folders: runs, results, quantisers, shard folders and ledgers, and their files.

Nothing here fails on what is missing or broken: a page about a run that went wrong is when it is
needed most. What could not be read is noted, and the page says it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spear.data.formats.tokens import find_teachers
from spear.errors import ConfigError, SpearError, one_line
from spear.system.ledger import FILE_NAME
from spear.training.logs.metrics import read_jsonl

_PASSED_OVER = frozenset({"checkpoints", "tensorboard", "log", "tokenizer", "teachers"})
_MAX_DEPTH = 4
_T = TypeVar("_T")
_SUMMARIES = {
    "decoding": "splits",
    "tagging": "mean_average_precision",
    "quantizer": "num_codebooks",
}
"""A kind of result, and the key of `summary.json` that tells it."""


@dataclass
class Reader:
    """Reads files, and remembers what was wrong with them.

    Attributes:
        problems: A sentence for each file that could not be read.
    """

    problems: list[str] = field(default_factory=list)

    def read(self, path: Path, parse: Callable[[Path], _T], empty: _T) -> _T:
        """Returns what `parse` makes of a file, or `empty` without the file or where it fails."""
        try:
            return parse(path) if path.exists() else empty
        except (OSError, ValueError, yaml.YAMLError, SpearError) as error:
            problem = f"{path} cannot be read: {one_line(error)}"
            if problem not in self.problems:  # a file may be read for several sections
                self.problems.append(problem)
            return empty

    def mapping(self, path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
        """Returns the object in a JSON file, or what else `parse` reads."""

        def parsed(path: Path) -> dict[str, Any]:
            content = parse(path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no object")
            return content

        return self.read(path, parsed, {})

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Returns the objects of a file of JSON lines; half a line, left by a kill, is skipped."""
        found: list[Any] = self.read(path, lambda path: list(read_jsonl(path)), [])
        return [record for record in found if isinstance(record, dict)]

    def text(self, path: Path) -> str:
        """Returns a text file's content."""
        return self.read(path, lambda path: path.read_text("utf-8"), "")


@dataclass
class Sources:
    """The folders that a page is made of, sorted by path.

    Attributes:
        base: Folder that names are seen from.
        runs: Run folders of commands that train.
        summaries: What `summary.json` holds, by kind ("decoding", "tagging", "quantizer") and
            folder.
        shards: Shard folders below the folders, and those that a run's configuration names.
        ledgers: Folders with a ledger.
    """

    base: Path
    runs: list[Path]
    summaries: dict[str, dict[Path, dict[str, Any]]]
    shards: list[Path]
    ledgers: list[Path]

    def name(self, path: Path) -> str:
        """Returns a folder's name as the page says it: seen from the base."""
        base, path = self.base.resolve(), path.resolve()
        if path == base:
            return path.name
        return str(path.relative_to(base) if base in path.parents else Path(*path.parts[-2:]))


def find_sources(folders: Sequence[Path], reader: Reader) -> Sources:
    """Looks through folders, the data folders that their runs name, and `data` beside them.

    Raises:
        ConfigError: There is no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder}: no such folder; give a run folder or a recipe's exp folder"
            )
    below = _unique(path for folder in folders for path in _walk(folder))
    runs = [path for path in below if _is_run(path)]
    contents = {path: reader.mapping(path / "summary.json") for path in below}
    configs = (reader.mapping(run / "config.yaml", yaml.safe_load) for run in runs)
    named = [path for config in configs for path in _data_of(config)]
    beside = [f.parent / "data" for f in folders if not (f / "config.yaml").is_file()]
    data = _unique([*below, *named, *(path for folder in beside for path in _walk(folder))])
    common = os.path.commonpath([folder.resolve() for folder in folders])
    return Sources(
        folders[0] if len(folders) == 1 else Path(common),
        runs,
        {
            kind: {path: content for path, content in contents.items() if key in content}
            for kind, key in _SUMMARIES.items()
        },
        [one for one in data if (one / "shards.json").is_file() or find_teachers(one)],
        [one for one in data if (one / FILE_NAME).is_file()],
    )


def _unique(paths: Iterable[Path]) -> list[Path]:
    return sorted({path.resolve(): path for path in paths if path.is_dir()}.values())


def _is_run(path: Path) -> bool:
    is_started = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
    return is_started or (path / "metrics.jsonl").is_file()


def _walk(folder: Path) -> Iterator[Path]:
    """Yields a folder and those below it, apart from what holds no results."""
    for name, below, _ in os.walk(folder):
        path = Path(name)
        depth = len(path.relative_to(folder).parts)
        kept = [one for one in sorted(below) if one not in _PASSED_OVER and one[0] != "."]
        below[:] = kept if depth < _MAX_DEPTH else []
        yield path


def _data_of(config: dict[str, Any]) -> Iterable[Path]:
    """Yields the shard folders that a run's configuration names."""
    for name in ("data", "valid"):
        entries = config.get(name)
        for entry in entries if isinstance(entries, list) else ():
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str):
                yield Path(path)
