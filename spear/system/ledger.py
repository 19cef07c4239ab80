"""The compute ledger: what every process of every stage cost.

`recording` is wrapped around a stage. It appends lines to `ledger.jsonl` in the folder that the
stage writes: one when it begins, one every ten minutes, one at its end. All bear the same id and
the sums so far, so the last of an id counts, and a process that was killed has lost at most ten
minutes. Lines of several processes do not mix: each is one write at the end of the file. What
cannot be written is one warning; the ledger never stops a stage.
"""

import fcntl
import json
import os
import platform
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spear.errors import SpearError
from spear.system.energy import EnergyMeter, gpus_in_use
from spear.system.progress import get_logger
from spear.version import __version__

FILE_NAME = "ledger.jsonl"
BEAT_S = 600.0
"""Seconds between two lines of a process that runs."""
_SAMPLE_S = 10.0
_logger = get_logger(__name__)


@contextmanager
def recording(command: str, config: Any, output: str, beat_s: float = BEAT_S) -> Iterator[None]:
    """Records the block in the ledger of the folder that `config` names.

    Under torchrun rank 0 records for all.

    Args:
        command: Name of the stage.
        config: The stage's configuration. Fields `job` and `num_jobs` are noted where it has them.
        output: The field that names the folder, e.g. "train.output_dir"; of a list the first entry
            counts; "output/.." is the folder around what the field `output` names. Empty records
            nothing.
        beat_s: Seconds between two lines of a process that runs.
    """
    folder = output_folder(config, output)
    if folder is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    entry = _Entry(command, folder / FILE_NAME, beat_s)
    if getattr(config, "num_jobs", 1) > 1 and getattr(config, "job", 0) > 0:
        entry.notes |= {"job": config.job, "num_jobs": config.num_jobs}
    _open.append(entry)
    entry.begin()
    status = 1
    try:
        yield
        status = 0
    except BaseException as error:
        status = _status_of(error)
        raise
    finally:
        _open.remove(entry)
        entry.end(status)


def note(audio_hours: float = 0.0, **facts: int | float | str) -> None:
    """Says something about the stage that is being recorded; without one it does nothing.

    Args:
        audio_hours: Hours of audio that were seen since the last call; they add up.
        facts: Others, such as `first_step=100`; a later value replaces an earlier one.
    """
    if _open:
        _open[-1].audio_hours += audio_hours
        _open[-1].notes |= facts


def output_folder(config: Any, output: str) -> Path | None:
    """Returns the folder that a field of a configuration names; see `recording`."""
    if not output:
        return None
    field, _, around = output.partition("/")
    value = config
    for name in field.split("."):
        value = getattr(value, name)
    if isinstance(value, list):
        value = value[0] if value else ""
    if not value:
        return None
    return Path(value).parent if around == ".." else Path(value)


class _Entry:
    """One process of a stage: what it cost so far, and the thread that writes it down.

    Args:
        command: Name of the stage.
        path: The ledger.
        beat_s: Seconds between two lines.
    """

    def __init__(self, command: str, path: Path, beat_s: float) -> None:
        self.command, self.path = command, path
        self.audio_hours = 0.0
        self.notes: dict[str, int | float | str] = {}
        self._id = uuid.uuid4().hex[:12]
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        self._cpu_s = cpu_seconds()
        self._meter = EnergyMeter()
        self._beat_s = beat_s
        self._has_warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="spear-ledger", daemon=True)

    def begin(self) -> None:
        """Writes the first line, if the folder is there already, and starts the thread."""
        self._append("begin")
        self._thread.start()

    def end(self, status: int) -> None:
        """Stops the thread and writes the last line."""
        self._stop.set()
        self._thread.join()
        self._append("end", status)

    def _beat(self) -> None:
        written = time.monotonic()
        while not self._stop.wait(min(_SAMPLE_S, self._beat_s)):
            self._meter.sample()
            is_due = time.monotonic() - written >= self._beat_s
            if is_due or not self.path.exists():  # a stage may make its folder late
                self._append("running")
                written = time.monotonic()

    def _append(self, event: str, status: int | None = None) -> None:
        """Adds a line, unless the stage has made no folder: it wrote nothing, or failed early."""
        try:
            if self.path.parent.is_dir():
                append_line(self.path, self._record(event, status))
        except Exception as error:  # whatever it is, the stage's work counts more
            if not self._has_warned:
                _logger.warning("%s cannot be written (%s); the stage goes on", self.path, error)
            self._has_warned = True

    def _record(self, event: str, status: int | None) -> dict[str, Any]:
        wall_s = time.monotonic() - self._clock
        gpus = gpus_in_use()
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        num_gpus = num_ranks if gpus and num_ranks > 1 else len(gpus)
        energy_wh, num_measured = self._meter.watt_hours(gpus)
        return {
            "id": self._id,
            "event": event,
            "command": self.command,
            "started": self._started,
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_seconds() - self._cpu_s, 3),
            "cpu": _cpu_model(),
            "cpu_cores": num_cores(),
            "gpu": gpus[0].name if gpus else None,
            "num_gpus": num_gpus,
            "gpu_hours": round(num_gpus * wall_s / 3600.0, 6),
            "energy_wh": round(energy_wh, 4) if num_measured else None,
            "num_measured_gpus": num_measured,
            "audio_hours": round(self.audio_hours, 6),
            "num_ranks": num_ranks,
            "exit_status": status,
            "beat_s": self._beat_s,
            "spear_version": __version__,
            "notes": dict(self.notes),
        }


_open: list[_Entry] = []
"""What is being recorded: one entry at most, unless recordings are nested."""


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Appends one JSON line by one write, on a line of its own also after half a line.

    A lock keeps others out meanwhile: what they have written half would look like half a line.
    Where the file system has no locks, the worst is an empty line.

    Raises:
        OSError: It cannot be written, or not as a whole.
    """
    line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file gives it back
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError("no space is left")
    finally:
        os.close(descriptor)


def _status_of(error: BaseException) -> int:
    """Returns the exit status that an exception leads to, as `spear.cli` has it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, SpearError) else 1


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def num_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """Returns the name of the CPU, without anything that tells one machine from its like."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
