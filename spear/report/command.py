"""`spear report FOLDER ...`: one HTML page about runs, or about a recipe's whole exp folder.

The page needs nothing but a browser: no network, no other file. It is made from what the stages
left, and can be made at any time, also of a run that is going on or went wrong. Runs of one kind
are laid over each other.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spear.data.formats.tokens import TokenSidecar, find_teachers, sidecar_name
from spear.errors import ConfigError, DataError
from spear.report.compute import Process, read_processes
from spear.report.page import embedded, render
from spear.report.panels import panel_groups
from spear.report.run_files import KINDS, Run, differences
from spear.report.sources import Reader, find_sources
from spear.system.files import write_text
from spear.system.ledger import FILE_NAME
from spear.system.progress import get_logger

MAX_PICTURE_BYTES = 2_000_000
_logger = get_logger(__name__)


@dataclass
class ReportConfig:
    """Writes one HTML page about runs or a recipe: `spear report exp`, `spear report A B`."""

    folders: list[str] = field(default_factory=list)
    """Run folders, or a recipe's exp folder with many of them; as plain words."""
    output: str = ""
    """The page; empty for report.html in the folder, or here where there are several folders."""


def run(config: ReportConfig) -> None:
    """Writes the page.

    Raises:
        ConfigError: No folder is given, or one does not exist.
        DataError: Nothing in them can be reported on, or the page cannot be written.
        MissingPackageError: jinja2 or plotly is not installed.
    """
    if not config.folders:
        raise ConfigError("report of which folder? Give run folders or a recipe's exp folder")
    folders = [Path(folder) for folder in config.folders]
    home = folders[0] if len(folders) == 1 else Path()
    output = Path(config.output) if config.output else home / "report.html"
    page = make_page(folders)
    try:
        write_text(output, page)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error}); choose another output") from error
    _logger.info("%s: %.1f MB; open it in a browser", output, len(page.encode()) / 1e6)


def make_page(folders: Sequence[Path]) -> str:
    """Returns the page about folders.

    Raises:
        ConfigError: There is no such folder.
        DataError: Nothing in them can be reported on.
        MissingPackageError: jinja2 or plotly is not installed.
    """
    reader = Reader()
    sources = find_sources(folders, reader)
    ledgers = {path: read_processes(reader.lines(path / FILE_NAME)) for path in sources.ledgers}
    processes = sorted((one for own in ledgers.values() for one in own), key=lambda p: p.started)
    runs = [Run.read(p, sources.name(p), reader, ledgers.get(p, [])) for p in sources.runs]
    results = {
        kind: {sources.name(path): content for path, content in found.items()}
        for kind, found in sources.summaries.items()
    }
    shards = [_shard_folder(path, sources.name(path), reader) for path in sources.shards]
    if not (runs or shards or ledgers or any(results.values())):
        raise DataError(
            f"{', '.join(map(str, folders))}: nothing to report on: no metrics.jsonl, "
            "summary.json, shards.json or ledger.jsonl there or below"
        )
    stages: dict[tuple[str, str], list[Process]] = {}
    for one in processes:
        stages.setdefault((one.command, one.device), []).append(one)
    by_kind = {kind: [run for run in runs if run.kind == kind] for kind in KINDS}
    groups = {kind: panel_groups(own) for kind, own in by_kind.items() if own}
    pictures = {sources.name(p): sorted(p.glob("*.png")) for p in sources.summaries["quantizer"]}
    return render(
        "report.html.j2",
        "spear report",
        has_charts=bool(groups),
        title=", ".join(str(Path(*folder.resolve().parts[-2:])) for folder in folders),
        runs=runs,
        groups=groups,
        by_kind=by_kind,
        differences={kind: differences(own) for kind, own in by_kind.items()},
        results=results,
        quantizer_pictures=_pictures(pictures, reader),
        shards=shards,
        stages=stages,
        processes=processes,
        versions={"Python": platform.python_version(), "torch": torch.__version__},
        problems=reader.problems,
    )


def _shard_folder(path: Path, name: str, reader: Reader) -> dict[str, Any]:
    """Returns what a shard folder says of itself, its teachers' tokens and their pictures."""
    sidecars = {one: path / sidecar_name(one) for one in find_teachers(path)}
    return {
        "name": name,
        "content": reader.mapping(path / "shards.json"),
        "verification": reader.text(path / "verify.md"),
        "sidecars": {t: reader.read(p, TokenSidecar.load, None) for t, p in sidecars.items()},
        "pictures": _pictures({name: sorted(path.glob("*_tokens.png"))}, reader),
    }


def _pictures(paths: Mapping[str, Sequence[Path]], reader: Reader) -> dict[str, str]:
    """Returns the sources of PNG files by caption, apart from very large ones."""
    return {
        f"{name}: {path.stem}": source
        for name, own in paths.items()
        for path in own
        if path.stat().st_size <= MAX_PICTURE_BYTES and (source := reader.read(path, embedded, ""))
    }
