"""`spear import-icefall`: an icefall checkpoint as a model folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spear.asr.tokenizer import Tokenizer
from spear.encoders.icefall import load_checkpoint
from spear.hub.export import write_model_folder, write_recognizer
from spear.hub.icefall.recognizer import load_recognizer
from spear.system.progress import get_logger

logger = get_logger(__name__)


@dataclass
class ImportIcefallConfig:
    """Turns an icefall checkpoint into a model folder for `spear.from_pretrained`, or, with its
    tokenizer, into a recogniser for every command that takes one.
    """

    checkpoint: str
    """icefall's `.pt` file: `pretrained.pt`, `epoch-N.pt` or `checkpoint-N.pt`."""
    output_dir: str
    """Folder to write; an earlier export in it is replaced when the new one is complete, anything
    else is not."""
    weights: Literal["model", "model_avg"] = "model"
    """Which of the file's weights; `pretrained.pt` has the former only."""
    bpe_model: str | None = None
    """The recogniser's sentencepiece model, `data/lang_bpe_500/bpe.model`: imports all of it; none:
    the encoder alone."""
    student: dict[str, Any] = field(default_factory=dict)
    """The encoder's fields that the file does not tell, as
    `--student '{"encoder_dim": [192, 256], ...}'`; `pretrained.pt` tells none."""


def run(config: ImportIcefallConfig) -> None:
    """Imports a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or its encoder is not as described.
        ConfigError: A field of `student` does not exist or fit.
    """
    if config.bpe_model is not None:
        _import_recognizer(config, config.bpe_model)
        return
    path = Path(config.checkpoint)
    encoder, left_aside = load_checkpoint(path, config.student, config.weights)
    _log_left_aside(left_aside)
    write_model_folder(encoder, Path(config.output_dir), _origin(config))
    logger.info("imported the encoder of %s to %s", path, config.output_dir)


def _import_recognizer(config: ImportIcefallConfig, bpe_model: str) -> None:
    path = Path(config.checkpoint)
    tokenizer = Tokenizer.from_sentencepiece(bpe_model)
    model, left_aside = load_recognizer(path, tokenizer, config.student, config.weights)
    _log_left_aside(left_aside)
    write_recognizer(model, Path(config.output_dir), _origin(config))
    logger.info("imported the recogniser of %s to %s", path, config.output_dir)


def _origin(config: ImportIcefallConfig) -> dict[str, str]:
    return {"imported_from": Path(config.checkpoint).name, "weights": config.weights}


def _log_left_aside(modules: list[str]) -> None:
    if modules:
        logger.info("left aside: %s", ", ".join(modules))
