"""`spear report FOLDER`: one HTML page about a run folder, or about a recipe's whole exp folder.

The page needs nothing but a browser: no network, no other file. It is made from what the stages
left, and can be made at any time, also of a run that is going on or went wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spear.errors import ConfigError, DataError
from spear.report.compute import Process, ledger_section, read_processes
from spear.report.page import Section, render
from spear.report.results import (
    data_section,
    error_rates,
    error_section,
    quantizer_section,
    version_section,
)
from spear.report.run_files import Run, facts
from spear.report.run_section import run_section
from spear.report.scales import short
from spear.report.sources import Reader, find_sources, title_of
from spear.system.files import write_text
from spear.system.progress import get_logger

_logger = get_logger(__name__)


@dataclass
class ReportConfig:
    """Writes one HTML page about a run or a recipe: `spear report exp`."""

    folder: str = ""
    """A run folder, or a recipe's exp folder with many of them."""
    output: str = ""
    """The page; empty for report.html in the folder."""


def run(config: ReportConfig) -> None:
    """Writes the page.

    Raises:
        ConfigError: No folder is given, or it does not exist.
        DataError: Nothing in it can be reported on, or the page cannot be written.
    """
    if not config.folder:
        raise ConfigError("report of which folder? Give a run folder or a recipe's exp folder")
    folder = Path(config.folder)
    output = Path(config.output) if config.output else folder / "report.html"
    page = make_page(folder)
    try:
        write_text(output, page)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error}); choose another output") from error
    _logger.info("%s: %.0f kB; open it in a browser", output, len(page.encode()) / 1000)


def make_page(folder: Path) -> str:
    """Returns the page about a folder.

    Raises:
        ConfigError: There is no such folder.
        DataError: Nothing in it can be reported on.
    """
    reader = Reader()
    sources = find_sources(folder, reader)
    if sources.is_empty:
        raise DataError(
            f"{folder}: nothing to report on: no metrics.jsonl, summary.json, shards.json or "
            "ledger.jsonl in it or below"
        )
    ledgers = {path.parent: read_processes(reader.lines(path)) for path in sources.ledgers}
    processes = sorted((one for own in ledgers.values() for one in own), key=lambda p: p.started)
    runs = [Run.read(path, reader, ledgers.get(path, [])) for path in sources.runs]
    runs.sort(key=lambda one: (one.kind != "pre-training", one.folder))
    rates = error_rates(sources.decodings, folder, reader)
    sections = [
        Section("Word error rates", error_section(rates)),
        *(Section(title_of(one.folder, folder), run_section(one), one.kind) for one in runs),
        Section("Quantisers", quantizer_section(sources.quantizers, folder, reader)),
        Section("Data and tokens", data_section(sources.shards, folder, reader)),
        Section("Compute ledger", ledger_section(processes)),
        Section("Versions", version_section(processes)),
    ]
    title = str(Path(*folder.resolve().parts[-2:]))
    return render(title, _cards(runs, rates, processes), sections, reader.problems)


def _cards(
    runs: Sequence[Run], rates: Sequence[Sequence[str]], processes: Sequence[Process]
) -> list[tuple[str, str]]:
    """Returns the numbers that one looks for first: error rates, where runs stand, what it cost."""
    cards = [(f"{row[3]} %", f"WER, {row[0]} on {row[1]}") for row in rates]
    if len(runs) == 1:
        cards += [(value.partition(" of ")[0], name) for name, value in facts(runs[0])[:4]]
    cards += _cost(processes)
    return cards


def _cost(processes: Sequence[Process]) -> list[tuple[str, str]]:
    gpu_hours = sum(one.gpu_hours for one in processes)
    cpu_hours = sum(one.cpu_s for one in processes) / 3600.0
    energy_kwh = sum(one.energy_wh or 0.0 for one in processes) / 1000.0
    audio_hours = sum(one.audio_hours for one in processes)
    sums = (
        (gpu_hours, "GPU hours"),
        (0.0 if gpu_hours else cpu_hours, "CPU hours"),
        (energy_kwh, "kWh taken by GPUs"),
        (audio_hours, "hours of audio, all stages together"),
    )
    return [(short(float(f"{value:.3g}")), name) for value, name in sums if value]
