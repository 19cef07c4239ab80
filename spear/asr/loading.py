"""Recognisers from files: a run of `spear finetune-asr`, or the folder of a recogniser.

The folder is a model folder, which transformers loads as well. `spear export --layout recognizer`
and `spear import-icefall --bpe_model FILE` write it:

    config.json          the encoder, what transformers asks for, and what rebuilds the rest
    model.safetensors    all weights, the encoder's and the CTC head's by transformers' names
    tokenizer/           what the ids mean
    spear_export.json    where it comes from, and checksums
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spear.asr.layer_mix import LAST
from spear.asr.model import AsrModel
from spear.asr.tokenizer import Tokenizer
from spear.asr.transducer import TransducerConfig, TransducerModel
from spear.encoders.config_json import student_config
from spear.encoders.loading import WEIGHTS_FILE, check_files
from spear.errors import CheckpointError
from spear.system.model_folder import CONFIG_FILE, read_json_object, read_tensors
from spear.system.weights import load_exact
from spear.training.checkpoints.checkpoint import load_weights
from spear.zipformer import ZipformerConfig

TOKENIZER_FOLDER = "tokenizer"
RECOGNIZER_KEY = "recognizer"
CTC_ARCHITECTURE = "SpearForCTC"
_EARLIER_FILE = "recognizer.json"
_NAMES = (("encoder.", "spear.model.model."), ("ctc_head.linear.", "head."))
"""How names of weights begin here, and in a recogniser's folder; the others are the same."""


def load_asr_model(run_dir: str | Path, weights: str = "averaged", device: str = "cpu") -> AsrModel:
    """Loads a recogniser in evaluation mode: a finished or running one, or one without its run.

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
    if (folder / _EARLIER_FILE).is_file():
        raise CheckpointError(f"{folder} was written by an earlier version: export it again")
    if is_model_folder(folder):
        state, content = _read_recognizer(folder)
    else:
        state, content = load_weights(folder, weights)
    if content.get("task") != "asr":
        raise CheckpointError(f"{folder} is not a run of `spear finetune-asr`: it has no ASR head")
    tokenizer = Tokenizer.load(find_tokenizer(folder))
    if tokenizer.sha256 != content.get("tokenizer_sha256", tokenizer.sha256):
        raise CheckpointError(
            f"{folder}: the tokenizer is not the one the weights were trained with"
        )
    transducer = content.get("transducer")
    model = build_model(
        ZipformerConfig.from_dict(content["student"]),
        tokenizer,
        None if transducer is None else TransducerConfig(**transducer),
        dropout=float(content.get("dropout", 0.1)),
        layers=str(content.get("layers", LAST)),
    )
    load_exact(model, state, str(folder))
    return model.to(device).eval()


def is_model_folder(folder: Path) -> bool:
    """Whether this is a model folder, which has one set of weights, rather than a run."""
    config = folder / CONFIG_FILE
    return config.is_file() and "model_type" in read_json_object(config)


def is_recognizer(config: Mapping[str, Any]) -> bool:
    """Whether the `config.json` of a model folder is a recogniser's."""
    return RECOGNIZER_KEY in config or CTC_ARCHITECTURE in (config.get("architectures") or ())


def names_in_folder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of an `AsrModel` as a recogniser's folder has them."""
    return _renamed(state, _NAMES)


def _read_recognizer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights and configuration of a recogniser's folder."""
    check_files(folder)
    config = read_json_object(folder / CONFIG_FILE)
    if not is_recognizer(config):
        return {}, {}
    student = student_config(config, str(folder / CONFIG_FILE)).to_dict()
    named = read_tensors(folder / WEIGHTS_FILE)
    state = _renamed(named, ((theirs, ours) for ours, theirs in _NAMES))
    state.pop("encoder.mask_emb", None)  # of pre-training
    return state, {"task": "asr", "student": student, **config.get(RECOGNIZER_KEY, {})}


def _renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Replaces what names begin with."""
    pairs = list(names)
    renamed = {}
    for name, value in state.items():
        old, new = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
        renamed[new + name.removeprefix(old)] = value
    return renamed


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
