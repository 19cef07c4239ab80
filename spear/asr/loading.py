"""Recognisers from files: a run of `spear finetune-asr`, or a recogniser without its run."""

from pathlib import Path
from typing import Any

from torch import Tensor

from spear.asr.layer_mix import LAST
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.system.model_folder import read_json_object
from spear.training.checkpoints.checkpoint import load_tensors, load_weights
from spear.zipformer import ZipformerConfig
from spear.zipformer.weights import load_exact

TOKENIZER_FOLDER = "tokenizer"
RECOGNIZER_FILE = "recognizer.json"
RECOGNIZER_WEIGHTS = "model.safetensors"


def load_asr_model(run_dir: str | Path, weights: str = "averaged", device: str = "cpu") -> AsrModel:
    """Loads a finished or running recogniser in evaluation mode.

    Args:
        run_dir: Run folder of `spear finetune-asr`, one of its checkpoint folders, or a recogniser
            that was exported or imported.
        weights: Which of the run's weights, as
            `spear.training.checkpoints.checkpoint.load_weights` takes it; a folder that is no run
            has its weights only.
        device: Where the weights go.

    Raises:
        CheckpointError: It is no such folder, or its parts do not belong together.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}; run `spear finetune-asr` first")
    if is_recognizer_folder(folder):
        state, content = _read_recognizer(folder)
    else:
        state, content = load_weights(folder, weights)
    if content.get("task") != "asr":
        raise CheckpointError(f"{folder} is not a run of `spear finetune-asr`: it has no ASR head")
    tokenizer = Tokenizer.load(find_tokenizer(folder))
    if tokenizer.sha256 != content["tokenizer_sha256"]:
        raise CheckpointError(
            f"{folder}: the tokenizer is not the one the weights were trained with"
        )
    model = _build(content, tokenizer)
    load_exact(model, state, str(folder))
    return model.to(device).eval()


def is_recognizer_folder(folder: Path) -> bool:
    """Whether this is a recogniser without its run, which has one set of weights only."""
    return (folder / RECOGNIZER_FILE).is_file()


def _read_recognizer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights and configuration of a folder that `write_recognizer` wrote."""
    content = read_json_object(folder / RECOGNIZER_FILE)
    weights = folder / RECOGNIZER_WEIGHTS
    if not weights.is_file() or sha256_of(weights) != content.get("weights_sha256"):
        raise CheckpointError(f"{weights} is not the file that was written there")
    return load_tensors(weights), content


def _build(content: dict[str, Any], tokenizer: Tokenizer) -> AsrModel:
    """Builds the model that `model_config` described."""
    transducer = content.get("transducer")
    return build_model(
        ZipformerConfig.from_dict(content["student"]),
        tokenizer,
        None if transducer is None else TransducerConfig(**transducer),
        dropout=float(content["dropout"]),
        layers=str(content.get("layers", LAST)),
    )


def build_model(
    student: ZipformerConfig,
    tokenizer: Tokenizer,
    transducer: TransducerConfig | None,
    **others: Any,
) -> AsrModel:
    """Builds a recogniser, with weights as torch's generator draws them.

    Args:
        student: The encoder.
        tokenizer: What the ids mean.
        transducer: Its sizes and losses; None for CTC alone.
        **others: What else `AsrModel` takes.
    """
    if transducer is None:
        return AsrModel(student, tokenizer, **others)
    return TransducerModel(student, tokenizer, transducer, **others)


def find_tokenizer(folder: Path) -> Path:
    """Finds the tokenizer of a run folder, or of the run that a checkpoint folder lies in."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        if (candidate / TOKENIZER_FOLDER).is_dir():
            return candidate / TOKENIZER_FOLDER
    return folder / TOKENIZER_FOLDER
