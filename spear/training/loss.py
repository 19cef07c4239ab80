"""The loss, normalised by global counts.

For terms k with weight w_k, sum t_kr and count n_kr on rank r of W,

    loss = sum_k w_k * (sum_r t_kr) / (sum_r n_kr)

DDP averages gradients over ranks, so each rank differentiates sum_k w_k * W * t_kr / sum_r n_kr:
the result is the gradient that one process would get from the union of all batches, however
unequal they are, and also where a rank has nothing to count. With gradient accumulation the counts
are those of all batches of a step, known before the first of them is differentiated.
"""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from spear.errors import SpearError
from spear.system.distributed import Ranks
from spear.training.task import LossTerm


class LossNormalizer:
    """Turns the terms of each step into the loss that this rank differentiates.

    Args:
        ranks: The processes of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._names: list[str] | None = None

    def divisors(self, counts: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """Returns what the total of each term is divided by, () float32, over W.

        Args:
            counts: This rank's counts of one step, of all its batches together.

        Raises:
            SpearError: The names of the terms differ between ranks or steps.
        """
        names = sorted(counts)
        self._check_names(names)
        numbers = torch.zeros(len(names), dtype=torch.float64, device=self.ranks.device)
        for place, name in enumerate(names):
            numbers[place] = counts[name]
        sums = self.ranks.all_reduce(numbers)
        shares = torch.where(sums > 0, sums, 1.0).float() / self.ranks.world_size
        return dict(zip(names, shares, strict=True))

    @staticmethod
    def loss(terms: Mapping[str, LossTerm], divisors: Mapping[str, Tensor]) -> Tensor:
        """Returns what this rank differentiates of one batch, () float32.

        Raises:
            SpearError: The terms are not those that were counted.
        """
        if terms.keys() != divisors.keys():
            raise SpearError(
                f"the loss has the terms {sorted(terms)} and counts for {sorted(divisors)}: a task "
                "must return every term in every step, with count 0 where there is nothing to count"
            )
        parts = [
            terms[name].total.float() * (terms[name].weight / divisors[name]) for name in terms
        ]
        return torch.stack(parts).sum()

    def _check_names(self, names: list[str]) -> None:
        """Sums of different terms must never meet: they would be added without a sound."""
        if names == self._names:
            return
        if self._names is not None or not names:
            raise SpearError(
                f"the loss had the terms {self._names} before and has {names} now: a task must "
                "return every term in every step, with count 0 where there is nothing to count"
            )
        mark = torch.tensor(zlib.crc32("\n".join(names).encode()), device=self.ranks.device)
        low = self.ranks.all_reduce(mark.clone(), "min")
        high = self.ranks.all_reduce(mark.clone(), "max")
        if low.item() != high.item():
            raise SpearError(
                f"rank {self.ranks.rank} has the loss terms {names}, another rank has others: "
                "a task must return every term on every rank"
            )
        self._names = names
