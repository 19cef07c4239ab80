"""Which cuts each step saw, written down: `batches-00000.jsonl` in the run folder, a file a rank.

For the search after what made a loss jump, and for the proof that a run which was interrupted saw
the same cuts in the same order as one that was not.
"""

import json
from pathlib import Path

from spear.training.logs.metrics import drop_after


class BatchLog:
    """Appends the cuts of every step of this rank.

    Args:
        run_folder: Where the file goes.
        rank: This rank.
        resumed_step: Lines after this step are of a future that did not happen: removed.
    """

    def __init__(self, run_folder: Path, rank: int, resumed_step: int) -> None:
        self.path = run_folder / f"batches-{rank:05d}.jsonl"
        drop_after(self.path, resumed_step)

    def write(self, step: int, epoch: int, ids: list[list[str]]) -> None:
        """Notes the cuts of each batch of a step (counted from 1)."""
        line = json.dumps({"step": step, "epoch": epoch, "ids": ids}, ensure_ascii=False)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
