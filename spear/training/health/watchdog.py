"""A run that hangs says where, and ends.

A rank that waits for a file server, for a lock or for a rank that died keeps sixty-three others
waiting, at full price. Every rank has a watchdog that the loop tells of progress; when nothing was
heard for longer than the limit, it writes the stacks of all threads to the log and into the run
folder and ends the process. Since ranks wait for each other, all notice within moments.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from spear.system.progress import get_logger

EXIT_HANG = 75
"""Exit status of a process that hung: "try again later" (EX_TEMPFAIL)."""
_GRACE_S = 30.0
_logger = get_logger(__name__)
T = TypeVar("T")


class Watchdog:
    """Ends this process when `beat` was not called for too long; a context manager.

    Args:
        limit_s: Seconds without progress; 0 turns the watchdog off.
        path: Where the stacks are written, beside the log.
    """

    def __init__(self, limit_s: float, path: Path) -> None:
        self.limit_s = limit_s
        self.path = path
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Notes progress."""
        self._last = time.monotonic()

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on; each is progress."""
        for item in items:
            self.beat()
            yield item

    def __enter__(self) -> "Watchdog":
        if self.limit_s > 0:
            self.beat()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        pause_s = min(5.0, self.limit_s / 4)
        while not self._ended.wait(pause_s):
            silent_s = time.monotonic() - self._last
            if silent_s > self.limit_s:
                self._give_up(silent_s)
            # C code that holds the interpreter's lock stops this thread too: then the one of
            # faulthandler, which needs no lock, does the same with status 1.
            later_s = self.limit_s - silent_s + 2 * pause_s + _GRACE_S
            faulthandler.dump_traceback_later(max(later_s, _GRACE_S), exit=True)

    def _give_up(self, silent_s: float) -> None:
        _logger.error(
            "no progress for %.0f s (train.hang_timeout_s): the stacks of all threads are in %s; "
            "ending with status %d",
            silent_s,
            self.path,
            EXIT_HANG,
        )
        try:
            with open(self.path, "w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
        except OSError as error:  # the file system may be what hangs or is full
            _logger.error("%s cannot be written: %s", self.path, error)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os._exit(EXIT_HANG)
