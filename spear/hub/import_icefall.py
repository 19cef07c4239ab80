"""`spear import-icefall`: an icefall checkpoint as a model folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spear.hub.export import write_model_folder
from spear.hub.icefall import load_checkpoint
from spear.progress import get_logger

logger = get_logger(__name__)


@dataclass
class ImportIcefallConfig:
    """Turns an icefall checkpoint into a model folder for `spear.from_pretrained`."""

    checkpoint: str
    """icefall's `.pt` file: `pretrained.pt`, `epoch-N.pt` or `checkpoint-N.pt`."""
    output_dir: str
    """Folder to write; an existing one is replaced when the new one is complete."""
    weights: Literal["model", "model_avg"] = "model"
    """Which of the file's weights; `pretrained.pt` has the former only."""
    student: dict[str, Any] = field(default_factory=dict)
    """The encoder's fields that the file does not tell, as
    `--student '{"encoder_dim": [192, 256], ...}'`; `pretrained.pt` tells none."""


def run(config: ImportIcefallConfig) -> None:
    """Imports a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or its encoder is not as described.
        ConfigError: A field of `student` does not exist or fit.
    """
    path = Path(config.checkpoint)
    encoder, left_aside = load_checkpoint(path, config.student, config.weights)
    if left_aside:
        logger.info("left aside: %s", ", ".join(left_aside))
    record = {"imported_from": path.name, "weights": config.weights}
    write_model_folder(encoder, Path(config.output_dir), record)
    logger.info("imported the encoder of %s to %s", path, config.output_dir)
