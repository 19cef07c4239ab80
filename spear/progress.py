"""Progress and log lines: a bar on a terminal, plain lines with a time elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; `setup_logging` decides where its lines go."""
    return logging.getLogger(name)


def setup_logging() -> None:
    """Sends log lines with a time to stderr; ranks above 0 speak only from warnings upwards."""
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[{rank}] " if "RANK" in os.environ else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s {prefix}%(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
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
    logger = get_logger("spear.progress")
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


def _aside(status: str) -> str:
    return status and f" ({status})"
