"""The training loop, which knows no task: protocol, checkpoints, averaging, metrics."""

from spear.training.checkpoints.checkpoint import average_between, load_weights
from spear.training.config import TrainConfig
from spear.training.position import Position
from spear.training.task import Batch, LossTerm, Metric, StepOutput, Task
from spear.training.trainer import Trainer, train

__all__ = [
    "Batch",
    "LossTerm",
    "Metric",
    "Position",
    "StepOutput",
    "Task",
    "TrainConfig",
    "Trainer",
    "average_between",
    "load_weights",
    "train",
]
