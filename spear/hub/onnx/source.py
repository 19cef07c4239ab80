"""What can be exported to ONNX, by what lies in a folder.

A folder whose `config.json` names a model is an encoder, or a recogniser where it says so; any
other is a run of `spear finetune-asr`, or one of its checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spear.asr.ctc import CtcHead
from spear.asr.loading import (
    TOKENIZER_FOLDER,
    is_model_folder,
    is_recognizer,
    load_asr_model,
)
from spear.encoders.loading import WEIGHTS_FILE, from_pretrained, resolve_folder
from spear.errors import CheckpointError
from spear.hub.onnx.graph import OnnxGraph
from spear.hub.plain_ctc import check_plain_ctc
from spear.system.model_folder import CONFIG_FILE, read_json_object, read_tensors
from spear.system.weights import load_exact
from spear.training.checkpoints.checkpoint import list_checkpoints
from spear.zipformer import ZipformerConfig

_HEAD = {"head.weight": "linear.weight", "head.bias": "linear.bias"}


@dataclass(frozen=True)
class OnnxSource:
    """A model that can be exported.

    Attributes:
        graph: Features to frames, or to log-probabilities of tokens.
        vocabulary: The text of every token, the blank first; None for an encoder alone.
    """

    graph: OnnxGraph
    vocabulary: list[str] | None = None

    @property
    def config(self) -> ZipformerConfig:
        """The encoder's configuration."""
        return self.graph.zipformer.config

    @property
    def stem(self) -> str:
        """How its files are called."""
        return "encoder" if self.vocabulary is None else "model"

    @property
    def outputs(self) -> tuple[str, str]:
        """The names of the output and its lengths."""
        if self.vocabulary is None:
            return "encoder_out", "encoder_out_lens"
        return "log_probs", "log_probs_len"


def load_source(model: str, weights: str) -> OnnxSource:
    """Loads an encoder or a recogniser.

    Args:
        model: A model folder or hub id, or a run folder of `spear finetune-asr`.
        weights: Which of a run's weights; a model folder has one kind.

    Raises:
        CheckpointError: It is neither, or cannot be loaded.
    """
    path = Path(model)
    if path.is_file():  # an icefall checkpoint, or an error that says what it is
        return OnnxSource(OnnxGraph(from_pretrained(path).model))
    folder = path if path.is_dir() else resolve_folder(model)
    if is_model_folder(folder):
        content = read_json_object(folder / CONFIG_FILE)
        if not is_recognizer(content):
            return OnnxSource(OnnxGraph(from_pretrained(folder).model))
        if not (folder / TOKENIZER_FOLDER).is_dir():
            return _of_transformers(folder, content)
    elif not (folder / CONFIG_FILE).is_file() and not list_checkpoints(folder):
        raise CheckpointError(
            f"{folder} is neither a model folder (it has no {CONFIG_FILE}) nor a run folder of "
            "`spear finetune-asr` (it has no checkpoints)"
        )
    recognizer = load_asr_model(folder, weights)
    check_plain_ctc(recognizer, folder)
    graph = OnnxGraph(recognizer.encoder, recognizer.ctc_head)
    return OnnxSource(graph, recognizer.tokenizer.vocabulary)


def _of_transformers(folder: Path, content: Mapping[str, Any]) -> OnnxSource:
    """Reads what transformers saved, which has a vocabulary and no tokenizer."""
    vocabulary = content.get("vocabulary")
    if not vocabulary:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has no vocabulary: write the text of every token into it"
        )
    zipformer = from_pretrained(folder).model
    state = read_tensors(folder / WEIGHTS_FILE)
    head = CtcHead(zipformer.output_dim, len(vocabulary))
    own = {ours: state[theirs] for theirs, ours in _HEAD.items() if theirs in state}
    load_exact(head, own, str(folder / WEIGHTS_FILE))
    return OnnxSource(OnnxGraph(zipformer, head), list(vocabulary))
