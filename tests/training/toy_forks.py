"""Imports everything once, and forks a process that trains for every line on standard input.

    toy_forks.py '{"train": {...}, "task": {...}}'

Prints the number of the process and, when it has ended, its status: so a test can kill many runs
without paying for the imports each time.
"""

import json
import os
import sys
import tempfile

import torch
from toy_task import ToyTask, config_for

from spear.training import train


def main() -> None:
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    folder = arguments["train"].pop("output_dir")
    with tempfile.TemporaryDirectory() as name:  # what is imported late is imported now
        train(ToyTask(**arguments["task"]), config_for(name, max_steps=1))
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(ToyTask(**arguments["task"]), config_for(folder, **arguments["train"]))
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
