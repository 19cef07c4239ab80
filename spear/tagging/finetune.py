"""`spear finetune-tagging`: an encoder and labelled shards in, a tagger's run folder out.

What the encoder starts from says `spear.finetune.config`. With validation data the finished tagger
is evaluated on them: `evaluation/` in the run folder.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spear.errors import ConfigError
from spear.finetune.config import FinetuneConfig, num_million_parameters
from spear.system.progress import get_logger
from spear.tagging.data import TaggingData, TaggingDataConfig
from spear.tagging.evaluate import Evaluation, evaluate
from spear.tagging.metrics import require_scores
from spear.tagging.model import TaggingModel
from spear.tagging.pooling import Pooling
from spear.tagging.task import TaggingTask

logger = get_logger(__name__)

EVALUATION_FOLDER = "evaluation"


@dataclass
class FinetuneTaggingConfig(FinetuneConfig):
    """Fine-tunes an encoder to tag recordings with classes of sounds."""

    data: TaggingDataConfig = field(default_factory=TaggingDataConfig)
    """Recordings to train and validate on, and their labels."""
    pooling: Pooling = "linear-softmax"
    """How frames become a clip: "mean" averages their logits, "linear-softmax" weights their
    probabilities by themselves, so that a short event in a long clip counts."""
    dropout: float = 0.1
    """Probability of dropout before the last layer."""
    evaluation_weights: str = "averaged"
    """Which of the run's weights are evaluated at the end: "averaged" (over the later half),
    "averaged:SHARE" (over its last share, e.g. averaged:0.25), "last", "average_last:K"."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        super().__post_init__()
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}: 0 or more and below 1, please")


def run(config: FinetuneTaggingConfig) -> None:
    """Fine-tunes; the same command again goes on with an interrupted run.

    Raises:
        DataError: Shards or labels are missing.
        CheckpointError: `init` cannot be loaded, or no checkpoint of the run is intact.
        ConfigError: Values do not fit the data, or the run folder holds another run.
        MissingPackageError: There are validation data, and scikit-learn is not installed.
    """
    if config.data.valid:
        require_scores()  # now rather than after hours of training
    task = build_task(config)
    config.fit(task)
    if task.data.valid is not None and os.environ.get("RANK", "0") == "0":
        run_dir = Path(config.train.output_dir)
        settings = Evaluation(
            weights=config.evaluation_weights,
            batch_s=config.data.batch.max_duration_s,
            num_workers=config.data.num_workers,
            device=config.train.device,
        )
        evaluate(run_dir, task.data.valid, run_dir / EVALUATION_FOLDER, settings)


def build_task(config: FinetuneTaggingConfig) -> TaggingTask:
    """Builds model and data."""
    student = config.architecture()
    data = TaggingData(
        config.data,
        num_mel_bins=student.feature_dim,
        seed=config.train.seed,
        pin=config.pins_memory,
    )
    torch.manual_seed(config.train.seed)  # every rank starts from the same weights
    model = TaggingModel(student, data.classes, config.pooling, config.dropout)
    model.start_at(torch.from_numpy(data.train.members.counts / len(data.train)))
    config.start_model(model)
    _log_sizes(data, model)
    return TaggingTask(model, data, config.encoder_start())


def _log_sizes(data: TaggingData, model: TaggingModel) -> None:
    counts = data.train.members.counts
    logger.info(
        "%d training clips of %d classes (%d to %d clips each); %.2f M parameters",
        len(data.train),
        len(data.classes),
        counts.min(),
        counts.max(),
        num_million_parameters(model),
    )
