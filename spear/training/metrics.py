"""Numbers about a run: summed as tensors, reduced over ranks when a line is due, written down.

Tags carry their unit where they have one: `train/wavlm_loss`, `optim/learning_rate`,
`data/audio(hours)`, `speed/frames_per_s`. The same numbers go to `metrics.jsonl` (one line a
step, never two for the same step, also after a resume) and to TensorBoard where it is installed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear.distributed import Ranks
from spear.errors import MissingPackageError
from spear.files import sync, write_text
from spear.optional import require
from spear.progress import get_logger
from spear.training.task import StepOutput

_logger = get_logger(__name__)
LOSS = "loss"


class MetricSums:
    """Sums of totals and counts by tag; a value is total over count.

    Args:
        ranks: The processes whose sums belong together.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, tag: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds to a tag without waiting for the device."""
        pair = torch.stack([self._number(total), self._number(count)])
        previous = self._sums.get(tag)
        self._sums[tag] = pair if previous is None else previous + pair

    def add_output(self, output: StepOutput) -> None:
        """Adds a batch's terms (as `{name}_loss`) and metrics."""
        for name, term in output.terms.items():
            tag = loss_tag(name)
            self.add(tag, term.total, term.count)
            self._weights[tag] = float(term.weight)
        for name, metric in output.metrics.items():
            self.add(name, metric.total, metric.count)

    def totals(self) -> dict[str, tuple[float, float]]:
        """Returns sums over all ranks, on every rank; this rank's own stay as they are."""
        union: set[str] = set()
        known = json.dumps([sorted(self._sums), self._weights]).encode()
        for content in self.ranks.gather_bytes(known):
            names, weights = json.loads(content)
            union.update(names)
            self._weights.update(weights)  # a rank that got no batch learns them here
        if not union:
            return {}
        zero = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        tags = sorted(union)
        table = self.ranks.all_reduce(torch.stack([self._sums.get(tag, zero) for tag in tags]))
        return {tag: (row[0], row[1]) for tag, row in zip(tags, table.tolist(), strict=True)}

    def values(self) -> dict[str, float]:
        """Returns every tag's value over all ranks, with the weighted sum of losses as `loss`.

        Tags without any count are left out: there is nothing to say about them.
        """
        values = {tag: total / count for tag, (total, count) in self.totals().items() if count}
        losses = [self._weights[tag] * values[tag] for tag in self._weights if tag in values]
        return {LOSS: sum(losses), **values} if losses else values

    def clear(self) -> None:
        """Begins a new interval."""
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over all ranks, as JSON; every rank calls this."""
        return {"totals": self.totals(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from stored sums: they are held by rank 0, the other ranks start at zero."""
        self._weights = dict(state["weights"])
        self._sums = {}
        if self.ranks.is_main:
            for tag, (total, count) in state["totals"].items():
                self.add(tag, total, count)

    def _number(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.ranks.device, torch.float64)
        return torch.tensor(value, dtype=torch.float64, device=self.ranks.device)


def loss_tag(term: str) -> str:
    """Returns the tag of a loss term: "wavlm" gives "wavlm_loss", "loss_ctc" stays."""
    return term if LOSS in term.split("_") else f"{term}_{LOSS}"


def describe_values(values: Mapping[str, float]) -> str:
    """Returns the values of a step that a person wants to see pass by, as one line."""
    losses = [tag for tag in values if LOSS in tag.removeprefix("train/").split("_")]
    parts = [f"{tag.removeprefix('train/')} {values[tag]:.4g}" for tag in losses]
    shown = {
        "optim/learning_rate": "lr {:.3g}",
        "optim/grad_norm": "grad norm {:.3g}",
        "data/audio(hours)": "{:.4g} h audio",
        "speed/audio_s_per_s": "{:.0f} s audio/s",
        "data/wait(%)": "wait {:.0f}%",
    }
    parts += [text.format(values[tag]) for tag, text in shown.items() if tag in values]
    return ", ".join(parts if losses else ["every step was skipped", *parts])


class MetricWriter:
    """Writes values to `metrics.jsonl` and TensorBoard; ranks other than 0 write nothing.

    Args:
        run_folder: Where the files go.
        resumed_step: Lines after this step are of a future that did not happen: removed.
        is_main: Whether this rank writes.
        tensorboard: Whether TensorBoard is wanted.
    """

    def __init__(
        self, run_folder: Path, resumed_step: int, is_main: bool, tensorboard: bool
    ) -> None:
        self.path = run_folder / "metrics.jsonl"
        self._is_main = is_main
        self._board: Any = None
        if not is_main:
            return
        drop_after(self.path, resumed_step)
        if tensorboard:
            self._board = _open_board(run_folder / "tensorboard", resumed_step)

    def write(self, step: int, values: Mapping[str, float], **facts: Any) -> None:
        """Writes the values of a step, tags sorted; `facts` go into the line only."""
        if not self._is_main:
            return
        line = json.dumps({"step": step, **facts, **dict(sorted(values.items()))})
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        if self._board is not None:
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Puts everything on disk, before a checkpoint says that it is there."""
        if self._board is not None:
            self._board.flush()
        if self._is_main and self.path.is_file():
            sync(self.path)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines; half a line, left by a kill, is passed over."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def drop_after(path: Path, step: int) -> None:
    """Rewrites a file of JSON lines without broken lines and lines of later steps."""
    if not path.is_file():
        return
    kept = [record for record in read_jsonl(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def _open_board(folder: Path, resumed_step: int) -> Any:
    try:
        require("tensorboard", "writing TensorBoard events")
    except MissingPackageError as error:
        _logger.info("%s; metrics go to metrics.jsonl only", error)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=resumed_step + 1)
