"""`spear finetune-tagging`: an encoder and labelled shards in, a tagger's run folder out.

The encoder comes from an export (`init`), or has an export's architecture with fresh weights
(`init_config`, for a baseline with the same budget), or is described here (`student`). With
validation data the finished tagger is evaluated on them: `evaluation/` in the run folder.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spear.config import to_dict
from spear.encoders.loading import from_pretrained
from spear.errors import ConfigError
from spear.finetune.encoder import EncoderStart, load_encoder, resolve_student
from spear.system.progress import get_logger
from spear.tagging.data import TaggingData, TaggingDataConfig
from spear.tagging.evaluate import Evaluation, evaluate
from spear.tagging.metrics import require_scores
from spear.tagging.model import TaggingModel
from spear.tagging.pooling import Pooling
from spear.tagging.task import TaggingTask
from spear.training import TrainConfig, train
from spear.zipformer import ZipformerConfig

logger = get_logger(__name__)

EVALUATION_FOLDER = "evaluation"


@dataclass
class FinetuneTaggingConfig:
    """Fine-tunes an encoder to tag recordings with classes of sounds."""

    data: TaggingDataConfig = field(default_factory=TaggingDataConfig)
    """Recordings to train and validate on, and their labels."""
    init: str | None = None
    """Export folder or hub id whose weights the encoder starts from; none: fresh weights."""
    init_config: str | None = None
    """Export folder or hub id whose architecture is taken, without its weights; instead of `init`
    and `student`."""
    student: ZipformerConfig = field(default_factory=ZipformerConfig)
    """The encoder's architecture; used where neither `init` nor `init_config` is given."""
    pooling: Pooling = "linear-softmax"
    """How frames become a clip: "mean" averages their logits, "linear-softmax" weights their
    probabilities by themselves, so that a short event in a long clip counts."""
    dropout: float = 0.1
    """Probability of dropout before the last layer."""
    freeze_encoder_steps: int = 2000
    """Steps during which only the head is trained; without `init` the encoder is never frozen."""
    encoder_lr_scale: float = 0.05
    """Factor on the encoder's learning rate; without `init` it is 1."""
    schedule_offset: float = 100_000.0
    """Where the encoder's schedules (dropout, layer skip, balancers) begin, in units of
    `train.schedule_unit_s`: a pre-trained encoder has left their steep part behind. Without `init`
    they begin at 0."""
    evaluation_weights: str = "averaged"
    """Which of the run's weights are evaluated at the end: "averaged" (over the later half),
    "averaged:SHARE" (over its last share, e.g. averaged:0.25), "last", "average_last:K"."""
    profile: bool = False
    """Trace 20 steps with torch's profiler into the run folder's profile/; `--profile` will do."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast to train, and the run folder."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if self.init is not None and self.init_config is not None:
            raise ConfigError("give either init (with weights) or init_config (without), not both")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}: 0 or more and below 1, please")
        self.encoder_start()

    def encoder_start(self) -> EncoderStart:
        """Returns how the encoder is treated."""
        start = EncoderStart(self.freeze_encoder_steps, self.encoder_lr_scale, self.schedule_offset)
        return EncoderStart() if self.init is None else start


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
    train(task, config.train, to_dict(config), profile=config.profile)
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
    student = resolve_student(config.init, config.init_config, config.student)
    data = TaggingData(
        config.data,
        num_mel_bins=student.feature_dim,
        seed=config.train.seed,
        pin=config.train.device != "cpu" and torch.cuda.is_available(),
    )
    torch.manual_seed(config.train.seed)  # every rank starts from the same weights
    model = TaggingModel(student, data.classes, config.pooling, config.dropout)
    model.start_at(torch.from_numpy(data.train.members.counts / len(data.train)))
    if config.init is not None:
        load_encoder(model, from_pretrained(config.init).model.state_dict(), config.init)
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
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )
