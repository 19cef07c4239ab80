"""What two processes must get right, in one start of torchrun: a script, for the tests.

Prints nothing; leaves run folders that the test looks into. Each scenario is a run of its own, in
the process group that is made here.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from toy_task import ToyTask, config_for

from spear.errors import SpearError
from spear.system.progress import setup_logging
from spear.training import train

PLAIN = {"freeze_steps": 4}
ROUGH = {"freeze_steps": 4, "dropout": 0.3, "bad_steps": [8], "bad_on_rank": 1}


def run(folder: Path, options: dict[str, Any], **config: Any) -> str:
    """Trains; returns how it ended."""
    try:
        train(ToyTask(**options), config_for(folder, **config))
    except SystemExit as stopped:
        return f"stopped {stopped.code}"
    except SpearError as error:
        return f"error {error}"
    return "done"


def main() -> None:
    torch.set_num_threads(1)
    setup_logging()
    dist.init_process_group("gloo")
    root = Path(sys.argv[1])
    ends = {
        "plain": run(root / "plain", PLAIN, log_batches=True),
        "half": run(root / "half", {**PLAIN, "signal_at": (9, 0)}),
        "straight": run(root / "straight", ROUGH),
        "sharded": run(root / "sharded", PLAIN, sharding="fsdp"),
        "sharded_half": run(root / "sharded_half", {**PLAIN, "signal_at": (9, 0)}, sharding="fsdp"),
        "sharded_rest": run(root / "sharded_half", PLAIN, sharding="fsdp"),
        "sharded_rough": run(root / "sharded_rough", ROUGH, sharding="fsdp"),
        # Rank 1 alone is asked to stop, in the middle of an epoch.
        "broken": run(root / "broken", {**ROUGH, "signal_at": (11, 1)}),
        "resumed": run(root / "broken", ROUGH),
        "hopeless": run(
            root / "hopeless",
            {"bad_steps": [2, 3], "bad_on_rank": 1},
            max_nonfinite_steps=2,
        ),
    }
    lines = "".join(f"{name}: {end}\n" for name, end in ends.items())
    (root / f"ends-{dist.get_rank()}.txt").write_text(lines)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
