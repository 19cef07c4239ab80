"""What lies in a folder: runs, decodings, quantisers, shard folders and ledgers, and their files.

Nothing here fails on what is missing or broken: a page about a run that went wrong is when it is
needed most. What could not be read is noted, and the page says it.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spear.data.formats.tokens import find_teachers
from spear.errors import ConfigError, one_line
from spear.system.ledger import FILE_NAME
from spear.training.logs.metrics import read_jsonl

_PASSED_OVER = frozenset({"checkpoints", "tensorboard", "log", "tokenizer", "teachers"})
_MAX_DEPTH = 4


@dataclass
class Reader:
    """Reads files, and remembers what was wrong with them.

    Attributes:
        problems: A sentence for each file that could not be read.
    """

    problems: list[str] = field(default_factory=list)

    def json_object(self, path: Path) -> dict[str, Any]:
        """Returns the object in a JSON file; an empty one where there is none."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            return self._fail(path, one_line(error))
        return content if isinstance(content, dict) else self._fail(path, "it holds no object")

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Returns the objects of a file of JSON lines; half a line, left by a kill, is skipped."""
        try:
            return [record for record in read_jsonl(path) if isinstance(record, dict)]
        except (OSError, ValueError) as error:
            self._fail(path, one_line(error))
            return []

    def yaml_object(self, path: Path) -> dict[str, Any]:
        """Returns the mapping in a YAML file; an empty one where there is none."""
        try:
            content = yaml.safe_load(self.text(path))
        except yaml.YAMLError as error:
            return self._fail(path, one_line(error))
        return content if isinstance(content, dict) else {}

    def text(self, path: Path) -> str:
        """Returns a text file's content; empty where there is none."""
        try:
            return path.read_text("utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            self._fail(path, one_line(error))
            return ""

    def _fail(self, path: Path, why: str) -> dict[str, Any]:
        problem = f"{path} cannot be read: {why}"
        if problem not in self.problems:  # a file may be read for several sections
            self.problems.append(problem)
        return {}


@dataclass
class Sources:
    """The folders and files that a page is made of, each list sorted by path."""

    folder: Path
    runs: list[Path] = field(default_factory=list)
    """Run folders of `spear pretrain` and `spear finetune-asr`."""
    decodings: list[Path] = field(default_factory=list)
    """Folders with a `summary.json` of word error rates."""
    quantizers: list[Path] = field(default_factory=list)
    """Folders with a `summary.json` of a quantiser."""
    shards: list[Path] = field(default_factory=list)
    """Shard folders below `folder`, and those that a run's configuration names."""
    ledgers: list[Path] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report on."""
        found = (self.runs, self.decodings, self.quantizers, self.shards, self.ledgers)
        return not any(found)


def find_sources(folder: Path, reader: Reader) -> Sources:
    """Looks through a folder, the data folders that its runs name, and `data` beside it.

    Raises:
        ConfigError: There is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a run folder or a recipe's exp folder")
    found = Sources(folder)
    for path in _walk(folder):
        _sort_in(path, found, reader)
    named = (
        path for run in found.runs for path in _data_of(reader.yaml_object(run / "config.yaml"))
    )
    beside = folder.parent / "data" if not (folder / "config.yaml").is_file() else None
    for path in [*named, *(_walk(beside) if beside is not None else ())]:
        _sort_in_data(path, found)
    for paths in (found.runs, found.decodings, found.quantizers, found.shards, found.ledgers):
        paths[:] = _unique(paths)
    return found


def title_of(path: Path, folder: Path) -> str:
    """Returns a folder's name as the page says it: seen from the folder that the page is about."""
    if path.resolve() == folder.resolve():
        return path.resolve().name
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:  # elsewhere, as data folders are
        return str(Path(*path.resolve().parts[-2:]))


def _walk(folder: Path) -> Iterator[Path]:
    """Yields a folder and those below it, apart from what holds no results."""
    for name, below, _ in os.walk(folder):
        path = Path(name)
        depth = len(path.relative_to(folder).parts)
        kept = [one for one in sorted(below) if one not in _PASSED_OVER and one[0] != "."]
        below[:] = kept if depth < _MAX_DEPTH else []
        yield path


def _sort_in(path: Path, found: Sources, reader: Reader) -> None:
    if (path / "metrics.jsonl").is_file() or (
        (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
    ):
        found.runs.append(path)
    summary = reader.json_object(path / "summary.json")
    if "splits" in summary:
        found.decodings.append(path)
    if "num_codebooks" in summary:
        found.quantizers.append(path)
    _sort_in_data(path, found)


def _sort_in_data(path: Path, found: Sources) -> None:
    if not path.is_dir():
        return
    if (path / "shards.json").is_file() or find_teachers(path):
        found.shards.append(path)
    if (path / FILE_NAME).is_file():
        found.ledgers.append(path / FILE_NAME)


def _data_of(config: dict[str, Any]) -> Iterator[Path]:
    """Yields the shard folders that a run's configuration names."""
    for name in ("data", "valid"):
        entries = config.get(name)
        for entry in entries if isinstance(entries, list) else ():
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str):
                yield Path(path)


def _unique(paths: Iterable[Path]) -> list[Path]:
    return sorted({path.resolve(): path for path in paths}.values())
