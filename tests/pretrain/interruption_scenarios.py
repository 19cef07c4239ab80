"""Runs of pre-training that are stopped in three ways, and one that is not; also for torchrun.

    interruption_scenarios.py ROOT

ROOT holds a corpus of `small_shards`. Every scenario is stopped and started again; what they leave
is compared by test_interruptions.py. Stops: in the middle of an epoch, without a warning, some
steps after the last checkpoint; by a signal at the end of an epoch; by a signal after a validation.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_pretrain_command import make_config

from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.pretrain import command
from spear.pretrain.task import PretrainTask
from spear.system.progress import setup_logging
from spear.training import Position

STEPS = 9
SAVE_EVERY = 3
VALID_EVERY = 4


class KilledError(Exception):
    """Stands for a process that ends without a word."""


class Stopped(PretrainTask):
    """Ends when a step begins, or asks for an end after it."""

    killed_at: int | None = None
    signal_at: int | None = None

    def before_step(self, position: Position) -> bool:
        """See `PretrainTask`."""
        if position.step == self.killed_at:
            raise KilledError
        if position.step + 1 == self.signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().before_step(position)


def config_of(root, name, num_workers):
    """The configuration of a scenario; batches are small, so that epochs are short."""
    parts = [
        [root / part / domain for domain in ("speech", "audio")] for part in ("train", "valid")
    ]
    corpus = [[SourceConfig(str(path)) for path in part] for part in parts]
    batch = BatchConfig(max_duration_s=26.0)
    config = make_config(corpus, root / name, STEPS, num_workers=num_workers, batch=batch)
    config.train.save_every = SAVE_EVERY
    config.train.valid_every = VALID_EVERY
    config.train.keep_last = 10
    config.train.log_batches = True
    return config


def stop_and_go_on(config, **when):
    """Runs until the stop, then again to the end."""
    stopped = type("StoppedThere", (Stopped,), when)
    command.PretrainTask = stopped
    try:
        command.run(config)
    except (KilledError, SystemExit):
        pass
    finally:
        command.PretrainTask = PretrainTask
    command.run(config)


def main(root):
    """Does all scenarios; returns the steps at which they were stopped."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    straight = config_of(root, "straight", 0)
    steps_in_epoch = PretrainTask(straight).steps_in_epoch(0, world_size)
    command.run(straight)
    stops = {
        "killed": {"killed_at": steps_in_epoch + 2},
        "epoch": {"signal_at": steps_in_epoch},
        "validated": {"signal_at": VALID_EVERY},
    }
    for name, when in stops.items():
        for num_workers in (0, 2):
            stop_and_go_on(config_of(root, f"{name}-{num_workers}", num_workers), **when)
    return stops


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup_logging()
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
