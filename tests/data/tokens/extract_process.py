"""The command `extract-tokens` in processes of its own that begin with everything imported."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

import spear.data.stage_reports
from spear.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["spear.data.tokens.extract", "spear.mvq.search.compiled", "spear.teachers.features"]
)


def start(options: Sequence[str], **variables: str) -> BaseProcess:
    """Starts a process; its exit code is the command's."""
    process = CONTEXT.Process(target=_run, args=(list(options), variables))
    process.start()
    return process


def _run(options: list[str], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    spear.data.stage_reports.new_figure = lambda *_: None  # pictures take longer than all the rest
    sys.exit(main(["extract-tokens", *options]))
