"""The configuration that every fine-tuning shares: encoder, its start, and the training.

The encoder comes from an export (`init`), or has an export's architecture with fresh weights
(`init_config`, for a baseline with the same budget), or is described here (`student`).
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from spear.config import to_dict
from spear.encoders.loading import from_pretrained
from spear.errors import ConfigError
from spear.finetune.encoder import EncoderStart, load_encoder, resolve_student
from spear.training import Task, TrainConfig, train
from spear.zipformer import ZipformerConfig


@dataclass
class FinetuneConfig:
    """What to start from, and how to train."""

    init: str | None = None
    """Export folder or hub id whose weights the encoder starts from; none: fresh weights."""
    init_config: str | None = None
    """Export folder or hub id whose architecture is taken, without its weights; instead of `init`
    and `student`."""
    student: ZipformerConfig = field(default_factory=ZipformerConfig)
    """The encoder's architecture; used where neither `init` nor `init_config` is given."""
    freeze_encoder_steps: int = 2000
    """Steps during which only the head is trained; without `init` the encoder is never frozen."""
    encoder_lr_scale: float = 0.05
    """Factor on the encoder's learning rate; without `init` it is 1."""
    schedule_offset: float = 100_000.0
    """Where the encoder's schedules (dropout, layer skip, balancers) begin, in units of
    `train.schedule_unit_s`: a pre-trained encoder has left their steep part behind. Without `init`
    they begin at 0."""
    profile: bool = False
    """Trace 20 steps with torch's profiler into the run folder's profile/; `--profile` will do."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast to train, and the run folder."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if self.init is not None and self.init_config is not None:
            raise ConfigError("give either init (with weights) or init_config (without), not both")
        self.encoder_start()

    def encoder_start(self) -> EncoderStart:
        """Returns how the encoder is treated."""
        start = EncoderStart(self.freeze_encoder_steps, self.encoder_lr_scale, self.schedule_offset)
        return EncoderStart() if self.init is None else start

    def architecture(self) -> ZipformerConfig:
        """Returns the encoder's architecture.

        Raises:
            CheckpointError: `init` or `init_config` holds no model.
        """
        return resolve_student(self.init, self.init_config, self.student)

    @property
    def pins_memory(self) -> bool:
        """Whether batches go to a GPU."""
        return self.train.device != "cpu" and torch.cuda.is_available()

    def start_model(self, model: nn.Module) -> None:
        """Fills a model's encoder with the weights of `init`, where it is given.

        Raises:
            CheckpointError: They cannot be loaded, or do not fit.
        """
        if self.init is not None:
            load_encoder(model, from_pretrained(self.init).model.state_dict(), self.init)

    def fit(self, task: Task) -> None:
        """Trains; the same configuration again goes on with an interrupted run.

        Raises:
            CheckpointError: No checkpoint of the run is intact.
            ConfigError: Values do not fit the data, or the run folder holds another run.
        """
        train(task, self.train, to_dict(self), profile=self.profile)


def num_million_parameters(model: nn.Module) -> float:
    """Returns the size of a model in millions of parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
