"""TensorBoard events of a run, where tensorboard is installed.

A number is a scalar. Of a list, one number for each codebook say, a curve each would be clutter: it
is a histogram, which shows how they spread and move. Of a table, shares of tokens by codebook, rows
are sorted and averaged: the curve from the most to the least frequent token.
"""

from pathlib import Path
from typing import Any

import numpy as np

from spear.errors import MissingPackageError
from spear.system.optional import require
from spear.system.progress import get_logger

_logger = get_logger(__name__)


class Board:
    """A folder of TensorBoard events.

    Args:
        folder: Where they go.
        resumed_step: Events after this step are of a future that did not happen: hidden.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def add(self, tag: str, value: Any, step: int) -> None:
        """Adds a number, a list of numbers or a table."""
        if not isinstance(value, list):
            self._writer.add_scalar(tag, value, step)
        elif np.ndim(value) == 1:
            self._writer.add_histogram(tag, np.asarray(value), step)
        else:
            self._add_ranking(tag, np.sort(np.asarray(value), axis=1)[:, ::-1].mean(axis=0), step)

    def flush(self) -> None:
        """Puts everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _add_ranking(self, tag: str, shares: Any, step: int) -> None:
        """Adds shares (K,), the highest first, as bars over their ranks 1, 2, ... K."""
        ranks = np.arange(1, len(shares) + 1)
        self._writer.add_histogram_raw(
            tag,
            min=0.0,
            max=float(len(shares)),
            num=float(shares.sum()),
            sum=float(shares @ ranks),
            sum_squares=float(shares @ ranks**2),
            bucket_limits=ranks.tolist(),
            bucket_counts=shares.tolist(),
            global_step=step,
        )


def open_board(folder: Path, resumed_step: int) -> Board | None:
    """Opens a `Board`; where tensorboard is not installed a line says so."""
    try:
        require("tensorboard", "writing TensorBoard events")
    except MissingPackageError as error:
        _logger.info("%s; metrics go to metrics.jsonl only", error)
        return None
    return Board(folder, resumed_step)
