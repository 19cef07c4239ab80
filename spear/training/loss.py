"""The loss, normalised by global counts.

For terms k with weight w_k, sum t_kr and count n_kr on rank r of W,

    loss = sum_k w_k * (sum_r t_kr) / (sum_r n_kr)

DDP averages gradients over ranks, so each rank differentiates sum_k w_k * W * t_kr / sum_r n_kr:
the result is the gradient that one process would get from the union of all batches, however
unequal they are, and also where a rank has nothing to count.
"""

import zlib

import torch
from torch import Tensor

from spear.distributed import Ranks
from spear.errors import SpearError
from spear.training.task import LossTerm


class LossNormalizer:
    """Turns the terms of each step into the loss that this rank differentiates.

    Args:
        ranks: The processes of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._names: list[str] | None = None

    def __call__(self, terms: dict[str, LossTerm], audio_s: float) -> tuple[Tensor, Tensor]:
        """Normalises one step.

        Args:
            terms: This rank's terms.
            audio_s: Seconds of audio of this rank's batch; they travel with the counts.

        Returns:
            The loss to differentiate, (), and the seconds of audio over all ranks, () float64.

        Raises:
            SpearError: The names of the terms differ between ranks or steps.
        """
        self._check_names(sorted(terms))
        local = [terms[name].count.detach() for name in sorted(terms)]
        numbers = torch.tensor(audio_s, dtype=torch.float64, device=self.ranks.device)
        sums = torch.stack([*(count.to(numbers) for count in local), numbers])
        sums = self.ranks.all_reduce(sums)
        parts = [
            terms[name].total * (terms[name].weight * self.ranks.world_size / _divisor(count))
            for name, count in zip(sorted(terms), sums, strict=False)
        ]
        return torch.stack([part.float() for part in parts]).sum(), sums[-1]

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


def _divisor(count: Tensor) -> Tensor:
    """Returns the count as float32, 1 where nothing was counted on any rank."""
    return torch.where(count > 0, count, 1.0).float()
