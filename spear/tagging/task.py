"""Fine-tuning for tagging as the training loop sees it."""

from typing import Any

from spear.finetune.encoder import EncoderStart
from spear.finetune.task import FinetuneTask
from spear.tagging.data import TaggingBatch, TaggingData
from spear.tagging.model import TaggingModel


class TaggingTask(FinetuneTask[TaggingBatch]):
    """What is fine-tuned, on what.

    Args:
        model: The tagger.
        data: Its batches.
        start: How its encoder is treated.
    """

    data: TaggingData

    def __init__(self, model: TaggingModel, data: TaggingData, start: EncoderStart) -> None:
        super().__init__(model, data, start)
        self.tagger = model

    def loss_counts(self, batch: TaggingBatch) -> dict[str, float]:
        """Returns the clips times classes of a batch."""
        return {"bce": float(batch.targets.numel())}

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
