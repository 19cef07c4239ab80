"""Numbers about a run: summed as tensors, reduced over ranks when a line is due, written down.

Tags carry their unit where they have one: `train/wavlm_loss`, `optim/learning_rate`,
`data/audio(hours)`, `speed/frames_per_s`. A value is a number, a list (one for each codebook, say)
or a table, a list of lists. Numbers and lists go to `metrics.jsonl` (one line a step, never two for
the same step, also after a resume), tables to `tables.json`, which holds the newest of each; all go
to TensorBoard where it is installed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear.system.distributed import Ranks
from spear.system.files import sync, write_json, write_text
from spear.training.logs.board import Board, open_board
from spear.training.task import StepOutput

LOSS = "loss"
Values = dict[str, Any]
"""By tag: a float, a list of floats, or a list of lists of floats."""


_Pair = tuple[Tensor, Tensor]


class MetricSums:
    """Sums of totals and counts by tag; a value is total over count.

    Adding waits for nothing; ranks talk only when values are asked for.

    Args:
        ranks: The processes whose sums belong together.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._sums: dict[str, Tensor] = {}  # (2, ...) float64: totals and counts of this rank
        self._weights: dict[str, float] = {}

    def add(self, tag: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds to a tag: a total of any shape, and a count of the same shape or ()."""
        self._add({tag: self._pair(total, count)})

    def add_output(self, output: StepOutput, is_good: Tensor | None = None) -> None:
        """Adds a batch's terms (as `{name}_loss`) and metrics.

        Args:
            output: The batch's.
            is_good: () bool; where it is False, zeros are added. Nobody looks at it.
        """
        pairs = {tag: self._pair(each.total, each.count) for tag, each in output.metrics.items()}
        for name, term in output.terms.items():
            pairs[loss_tag(name)] = self._pair(term.total, term.count)
            self._weights[loss_tag(name)] = float(term.weight)
        self._add(pairs, is_good)

    def _add(self, pairs: Mapping[str, _Pair], is_good: Tensor | None = None) -> None:
        if not pairs:
            return
        flat = torch.cat([each.flatten() for pair in pairs.values() for each in pair])
        if is_good is not None:
            flat = torch.where(is_good, flat, 0.0)
        parts = flat.split([2 * total.numel() for total, _ in pairs.values()])
        news = {
            tag: part.view(2, *total.shape)
            for (tag, (total, _)), part in zip(pairs.items(), parts, strict=True)
        }
        known = [tag for tag in news if tag in self._sums]
        if known:
            torch._foreach_add_([self._sums[tag] for tag in known], [news[tag] for tag in known])
        self._sums = news | self._sums

    def totals(self) -> dict[str, tuple[Any, Any]]:
        """Returns (total, count) by tag over all ranks, on every rank, as numbers or lists.

        Tags without a number other than 0 are left out. This rank's own sums stay as they are.
        Every rank calls this; each may have tags that others never saw.
        """
        shapes = {tag: list(pair.shape) for tag, pair in self._sums.items()}
        for content in self.ranks.gather_bytes(json.dumps([shapes, self._weights]).encode()):
            others, weights = json.loads(content)
            shapes |= others
            self._weights |= weights
        if not shapes:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        own = [self._sums.get(tag, zero.expand(shapes[tag])) for tag in sorted(shapes)]
        flat = self.ranks.all_reduce(torch.cat([pair.flatten() for pair in own])).cpu()
        parts = zip(sorted(shapes), flat.split([pair.numel() for pair in own]), strict=True)
        numbers = {tag: part.view(shapes[tag]).tolist() for tag, part in parts}
        return {tag: (pair[0], pair[1]) for tag, pair in numbers.items() if np.any(pair)}

    def values(self) -> Values:
        """Returns every tag's value over all ranks, with the weighted sum of losses as `loss`.

        Tags that were not counted, or not in every place, are left out: there is nothing to say
        about them.
        """
        values: Values = {}
        for tag, (total, count) in self.totals().items():
            if isinstance(total, list):
                if np.all(count):
                    values[tag] = _rounded(np.divide(total, count))
            elif count:
                values[tag] = total / count
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
        self.clear()
        if self.ranks.is_main:
            self._sums = {
                tag: torch.tensor(pair, dtype=torch.float64, device=self.ranks.device)
                for tag, pair in state["totals"].items()
            }

    def _pair(self, total: Tensor | float, count: Tensor | float) -> _Pair:
        """Returns both as float64, of the shape of the total."""
        wide = self._number(total)
        return wide, self._number(count).expand_as(wide)

    def _number(self, value: Tensor | float) -> Tensor:
        device = self.ranks.device
        if isinstance(value, Tensor):
            return value.detach().to(device, torch.float64, non_blocking=True)
        return torch.full((), value, dtype=torch.float64, device=device)  # a copy would wait


def loss_tag(term: str) -> str:
    """Returns the tag of a loss term: "wavlm" gives "wavlm_loss", "loss_ctc" stays."""
    return term if LOSS in term.split("_") else f"{term}_{LOSS}"


def describe_values(values: Mapping[str, Any]) -> str:
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
    """Writes values to files and TensorBoard; ranks other than 0 write nothing.

    Args:
        run_folder: Where the files go.
        resumed_step: What was written after this step is of a future that did not happen: removed.
        is_main: Whether this rank writes.
        tensorboard: Whether TensorBoard is wanted.
    """

    def __init__(
        self, run_folder: Path, resumed_step: int, is_main: bool, tensorboard: bool
    ) -> None:
        self.path, self._tables_path = run_folder / "metrics.jsonl", run_folder / "tables.json"
        self._is_main = is_main
        self._board: Board | None = None
        if not is_main:
            return
        self._lines = JsonLines(self.path)
        self._lines.drop_after(resumed_step)
        self._tables = {
            tag: table
            for tag, table in _read_tables(self._tables_path).items()
            if table["step"] <= resumed_step
        }
        if tensorboard:
            self._board = open_board(run_folder / "tensorboard", resumed_step)

    def write(self, step: int, values: Mapping[str, Any], **facts: Any) -> None:
        """Writes the values of a step, tags sorted; `facts` go into the line only."""
        if not self._is_main:
            return
        tables = {tag: value for tag, value in sorted(values.items()) if _is_table(value)}
        rest = {tag: value for tag, value in sorted(values.items()) if tag not in tables}
        self._lines.write({"step": step, **facts, **rest})
        if tables:
            self._tables |= {tag: {"step": step, "rows": rows} for tag, rows in tables.items()}
            write_json(self._tables_path, self._tables)
        if self._board is not None:
            for tag, value in values.items():
                self._board.add(tag, value, step)

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


def _rounded(values: NDArray[np.float64]) -> Any:
    """Returns numbers as nested lists, with six digits: there are many of them."""
    if values.ndim == 0:
        return float(f"{values:.6g}")
    return [_rounded(value) for value in values]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, list) for row in value)


def _read_tables(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


class JsonLines:
    """A file of JSON objects, each with its `step`, to which a run appends.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def drop_after(self, step: int) -> None:
        """Removes broken lines, and those of later steps: of a future that did not happen."""
        if self.path.is_file():
            kept = [record for record in read_jsonl(self.path) if record["step"] <= step]
            write_text(self.path, "".join(map(_as_line, kept)))

    def write(self, *records: Mapping[str, Any]) -> None:
        """Appends a line for each record."""
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write("".join(map(_as_line, records)))


def _as_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines; half a line, left by a kill, is passed over."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
