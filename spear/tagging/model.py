"""The tagger: an encoder with one linear layer on its frames, pooled over time.

Takes log-mel features, gives probabilities of classes or the training loss. Its weights are the
encoder's (`encoder.*`) and `tagging_head.*`.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.encoders.protocol import Encoder
from spear.errors import CheckpointError
from spear.system.weights import load_exact
from spear.tagging.data import TaggingBatch
from spear.tagging.labels import Classes
from spear.tagging.pooling import Pooling, pool
from spear.training.checkpoints.checkpoint import load_weights
from spear.training.task import LossTerm, Metric, StepOutput
from spear.zipformer import Zipformer, ZipformerConfig

TASK = "tagging"


class TaggingModel(nn.Module):
    """Says which of its classes are in a recording, each for itself; called, it does a step.

    Args:
        config: The encoder.
        classes: What is told apart.
        pooling: How frames become a clip.
        dropout: Probability of dropout before the last layer.
    """

    def __init__(
        self,
        config: ZipformerConfig,
        classes: Classes,
        pooling: Pooling = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = Zipformer(config)
        self.classes = classes
        self.pooling: Pooling = pooling
        self.dropout = dropout
        self.tagging_head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.encoder.output_dim, len(classes))
        )

    def forward(self, batch: TaggingBatch) -> StepOutput:
        """Computes the loss of a batch, and in evaluation mode how well classes are ranked."""
        logits = pool(*self.frame_logits(batch.fbank, batch.fbank_lens), self.pooling)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum")
        count = torch.tensor(batch.targets.numel(), device=loss.device)
        metrics = {} if self.training else ranking_metrics(logits, batch.targets)
        return StepOutput({"bce": LossTerm(loss, count)}, metrics)

    def frame_logits(self, fbank: Tensor, fbank_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores the classes at every encoder frame.

        Args:
            fbank: (B, T, M) float32 log-mel.
            fbank_lens: (B,) int64, valid fbank frames.

        Returns:
            (B, T', C) logits and (B,) int64 valid frames.
        """
        encoded = self.encoder(fbank, fbank_lens)
        return self.tagging_head(encoded.output), encoded.lens

    @torch.no_grad()
    def start_at(self, shares: Tensor) -> None:
        """Sets the head's bias so that a new tagger expects each class as often as it occurs.

        Most classes are rare: from zero, the first steps would go into learning no more than that.

        Args:
            shares: (C,) float, share of the clips that have the class, 0 to 1.
        """
        bias = self.get_parameter("tagging_head.1.bias")
        bias.copy_(shares.clamp(1e-5, 1 - 1e-5).logit())

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model, as JSON."""
        return {
            "task": TASK,
            "student": self.encoder.config.to_dict(),
            "classes": dict(zip(self.classes.labels, self.classes.names, strict=True)),
            "pooling": self.pooling,
            "dropout": self.dropout,
        }


def ranking_metrics(logits: Tensor, targets: Tensor) -> dict[str, Metric]:
    """Returns label-ranking average precision and how often the top class is right.

    Both are means over the clips that have a class at all. The former is the mean, over a clip's
    classes, of the share of its classes among those ranked no lower (scikit-learn's
    `label_ranking_average_precision_score`); unlike mAP it adds up over batches.

    Args:
        logits: (B, C) float.
        targets: (B, C), 0 or 1.
    """
    has_class = targets.sum(1) > 0
    logits, truth = logits[has_class], targets[has_class] > 0.5
    no_lower = logits.unsqueeze(1) >= logits.unsqueeze(2)  # (B, of the class, than it)
    shares = (no_lower & truth.unsqueeze(1)).sum(2) / no_lower.sum(2)
    precision = (shares * truth).sum(1) / truth.sum(1)
    is_top = truth.gather(1, logits.argmax(1, keepdim=True))
    count = has_class.sum()
    return {
        "ranking_precision": Metric(100.0 * precision.sum(), count),
        "top_class_right": Metric(100.0 * is_top.sum(), count),
    }


def load_tagging_model(
    run_dir: str | Path, weights: str = "averaged", device: str | torch.device = "cpu"
) -> TaggingModel:
    """Loads a finished or running tagger in evaluation mode.

    Args:
        run_dir: Run folder of `spear finetune-tagging`, or one of its checkpoint folders.
        weights: Which of the run's weights, as
            `spear.training.checkpoints.checkpoint.load_weights` takes it.
        device: Where the weights go.

    Raises:
        CheckpointError: It is no such folder, or its parts do not belong together.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}; run `spear finetune-tagging` first")
    state, content = load_weights(folder, weights)
    if content.get("task") != TASK:
        raise CheckpointError(f"{folder} is not a run of `spear finetune-tagging`: it has no tags")
    classes = Classes(tuple(content["classes"]), tuple(content["classes"].values()))
    student = ZipformerConfig.from_dict(content["student"])
    model = TaggingModel(student, classes, content["pooling"], float(content["dropout"]))
    load_exact(model, state, str(folder))
    return model.to(device).eval()
