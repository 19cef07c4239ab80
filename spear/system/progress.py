"""Progress and log lines: a bar on a terminal, plain lines with a time elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]  # none before Python 3.11
    """Writes lines above the bars that are being drawn, not through them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:  # as logging's own handlers: a line that cannot be written stops nothing
            self.handleError(record)


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; `setup_logging` decides where its lines go."""
    return logging.getLogger(name)


def setup_logging() -> None:
    """Sends log lines with a time to stderr; ranks above 0 speak only from warnings upwards."""
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[{rank}] " if "RANK" in os.environ else ""
    handler = _AboveBars if sys.stderr.isatty() else logging.StreamHandler
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s {prefix}%(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[handler(sys.stderr)],
        force=True,
    )


def progress(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    every_s: float = 10.0,
    status: Callable[[], str] = str,
) -> Iterator[T]:
    """Yields `items`, showing how far it is.

    On a terminal this is a bar. Elsewhere it is a log line every `every_s` seconds and one at the
    end, so that a log file stays readable.

    Args:
        items: What to iterate over.
        label: What is being done, e.g. "shard speech".
        total: Number of items where `len(items)` is not known.
        every_s: Seconds between plain lines.
        status: Called whenever something is shown: a few words on how the work goes.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        bar = tqdm(items, desc=label, total=total)
        for item in bar:
            yield item
            bar.set_postfix_str(status(), refresh=False)
        return
    logger = get_logger("spear.system.progress")
    started = last = time.monotonic()
    of = "" if total is None else f" of {total}"
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            logger.info("%s: %d%s, %.0f s%s", label, done, of, last - started, _aside(status()))
    seconds = time.monotonic() - started
    logger.info("%s: %d%s done in %.1f s%s", label, done, of, seconds, _aside(status()))


class StepBar:
    """A bar for work that counts its own steps, such as training: drawn on a terminal only.

    Elsewhere, and on ranks above 0, nothing is shown: lines of the logger are the record there.
    They come out above the bar on a terminal, too.

    Args:
        label: What is being done, e.g. "pretrain".
        total: Steps after which it is complete.
        done: Steps that an earlier process did; they do not count for the speed.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
        self._done = done
        self._bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            unit="step",
            disable=not shown,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def update(self, done: int, text: str | None = None) -> None:
        """Moves to `done` steps; a `text` replaces the few words at the end of the bar."""
        if text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        self._bar.close()

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _aside(status: str) -> str:
    return status and f" ({status})"
