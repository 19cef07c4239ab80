"""Fine-tuning for tagging as the training loop sees it: model, data, and the encoder's pace."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from spear.finetune.encoder import EncoderPace, EncoderStart
from spear.tagging.data import TaggingBatch, TaggingData
from spear.tagging.model import TaggingModel
from spear.training.position import Position


class TaggingTask:
    """What is fine-tuned, on what; a `spear.training.Task`.

    Args:
        model: The tagger.
        data: Its batches.
        start: How its encoder is treated.
    """

    def __init__(self, model: TaggingModel, data: TaggingData, start: EncoderStart) -> None:
        self.model: nn.Module = model
        self.tagger = model
        self.data = data
        self._pace = EncoderPace(model, start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the encoder, which learns slowly, and the head."""
        return self._pace.parameter_groups()

    def before_step(self, position: Position) -> bool:
        """Moves schedules; freezes or unfreezes the encoder and says whether that changed."""
        return self._pace.before_step(position)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[TaggingBatch]:
        """Yields this rank's batches of an epoch."""
        return self.data.train_batches(epoch, start_step, shares, num_shares)

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of steps of an epoch."""
        return self.data.steps_in_epoch(epoch, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[TaggingBatch]:
        """Yields this rank's share of the validation data."""
        return self.data.valid_batches(rank, world_size)

    def longest_batch(self, epoch: int, num_shares: int) -> TaggingBatch:
        """Makes the training batch of an epoch that is largest with its padding."""
        return self.data.longest_batch(epoch, num_shares)

    def loss_counts(self, batch: TaggingBatch) -> dict[str, float]:
        """Returns the clips times classes of a batch."""
        return {"bce": float(batch.targets.numel())}

    def data_config(self) -> dict[str, Any]:
        """Returns what decides which batches come and what is in them."""
        return self.data.identity()

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model."""
        return self.tagger.model_config()

    def describe_validation(self, metrics: dict[str, float]) -> str:
        """Returns the validation in one line."""
        nan = float("nan")  # what has no count has no value
        loss, ranking, top = (
            metrics.get(name, nan) for name in ("bce_loss", "ranking_precision", "top_class_right")
        )
        return f"bce {loss:.4f} per class, ranking precision {ranking:.1f}%, top class {top:.1f}%"
