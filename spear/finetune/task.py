"""A fine-tuning as the training loop sees it: model, data, and the encoder's pace."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Any, Generic, TypeVar

from torch import nn

from spear.finetune.data import FinetuneData, TensorBatch
from spear.finetune.encoder import EncoderPace, EncoderStart
from spear.training.position import Position

BatchT = TypeVar("BatchT", bound=TensorBatch)


class FinetuneTask(ABC, Generic[BatchT]):
    """What is fine-tuned, on what; a `spear.training.Task`.

    Args:
        model: It holds `encoder`, and a head.
        data: Its batches.
        start: When the encoder begins to learn, and how fast.
        idle: Names of weights that the model does not use.
    """

    def __init__(
        self,
        model: nn.Module,
        data: FinetuneData[BatchT],
        start: EncoderStart,
        idle: Collection[str] = frozenset(),
    ) -> None:
        self.model = model
        self.data = data
        self.start = start
        self._pace = EncoderPace(model, start, idle)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the encoder, which learns slowly, and the head."""
        return self._pace.parameter_groups()

    def before_step(self, position: Position) -> bool:
        """Moves schedules; freezes or unfreezes the encoder and says whether that changed."""
        return self._pace.before_step(position)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[BatchT]:
        """Yields this rank's batches of an epoch."""
        return self.data.train_batches(epoch, start_step, shares, num_shares)

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of steps of an epoch."""
        return self.data.steps_in_epoch(epoch, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[BatchT]:
        """Yields this rank's share of the validation data."""
        return self.data.valid_batches(rank, world_size)

    def longest_batch(self, epoch: int, num_shares: int) -> BatchT:
        """Makes the training batch of an epoch that is largest with its padding."""
        return self.data.longest_batch(epoch, num_shares)

    def data_config(self) -> dict[str, Any]:
        """Returns what decides which batches come and what is in them."""
        return self.data.identity()

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model."""

    @abstractmethod
    def loss_counts(self, batch: BatchT) -> dict[str, float]:
        """Returns what the loss of a batch counts, term by term."""

    @abstractmethod
    def describe_validation(self, metrics: dict[str, float]) -> str:
        """Returns the validation in one line."""
