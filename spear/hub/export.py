"""`spear export`: what a run trained, as a folder that others load.

A folder holds `config.json`, `model.safetensors` (published names), the code for transformers, a
model card, and `spear_export.json`: where the weights come from and the files' checksums. The heads
of a pre-training run lie beside them in `token_heads.safetensors`; a recogniser has its heads in
the model's own file, and its tokenizer beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from spear import __version__
from spear.asr.ctc import BLANK_ID
from spear.asr.loading import (
    CTC_ARCHITECTURE,
    RECOGNIZER_KEY,
    TOKENIZER_FOLDER,
    load_asr_model,
    names_in_folder,
)
from spear.asr.model import AsrModel
from spear.encoders.config_json import MODEL_TYPE, released_fields
from spear.encoders.encoder import SpearEncoder
from spear.encoders.icefall import write_checkpoint
from spear.encoders.loading import EXPORT_FILE, WEIGHTS_FILE, to_released_names
from spear.errors import CheckpointError
from spear.hub.model_card import model_card, training_record
from spear.hub.plain_ctc import check_plain_ctc
from spear.hub.remote_code import AUTO_MAP, write_code
from spear.hub.token_heads import HEADS_FILE, write_token_heads
from spear.system.files import atomic_folder, sha256_of
from spear.system.model_folder import CONFIG_FILE
from spear.system.progress import get_logger
from spear.system.weights import load_exact
from spear.training.checkpoints.checkpoint import load_weights
from spear.zipformer import ZipformerConfig

logger = get_logger(__name__)

PREPROCESSOR_FILE = "preprocessor_config.json"
OWNED = (
    EXPORT_FILE,
    WEIGHTS_FILE,
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    HEADS_FILE,
    TOKENIZER_FOLDER,
    "README.md",
    "*_spear.py",
    "spear_*.py",
    "__pycache__",
)
"""What a folder holds that an export may replace."""
_PREPROCESSOR = {
    "feature_extractor_type": "SpearFeatureExtractor",
    "auto_map": {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]},
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}


@dataclass
class ExportConfig:
    """Writes what a run trained as a model folder for `spear.from_pretrained` and transformers."""

    run_dir: str
    """Run folder, or one of its checkpoint folders."""
    output_dir: str
    """Folder to write; an earlier export in it is replaced when the new one is complete, anything
    else is not."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    layout: Literal["spear", "recognizer", "ctc", "icefall"] = "spear"
    """Whose: "spear" is the encoder for `spear.from_pretrained` and transformers. Of a
    `spear finetune-asr` run, "recognizer" is all of it without the run, for every command that
    takes a recogniser and for transformers; "ctc" is the same, and an error where transformers'
    `AutoModelForCTC` could not use it. "icefall" is the encoder as a `pretrained.pt` for icefall's
    recipes."""


def run(config: ExportConfig) -> None:
    """Exports what a run trained.

    Raises:
        CheckpointError: The run has no valid checkpoint, or not what the layout asks for.
    """
    run_dir, output = Path(config.run_dir), Path(config.output_dir)
    state, content = load_weights(run_dir, config.weights)
    if "student" not in content:
        raise CheckpointError(f"{run_dir} is not a run of a student: it has no `student`")
    record = {"weights": config.weights, **content, "training": training_record(run_dir)}
    if config.layout in ("recognizer", "ctc"):
        model = load_asr_model(run_dir, config.weights)
        if config.layout == "ctc":
            check_plain_ctc(model, run_dir)
        write_recognizer(model, output, record)
    else:
        student = ZipformerConfig.from_dict(content["student"])
        encoder = _encoder_with(student, state, config.run_dir)
        if config.layout == "icefall":
            write_checkpoint(encoder, output)
        else:
            write_model_folder(encoder, output, record, state)
    logger.info("exported %s weights of %s to %s", config.weights, run_dir, output)


def write_model_folder(
    encoder: SpearEncoder,
    output: Path,
    origin: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an encoder as a folder for `spear.from_pretrained` and transformers.

    Args:
        encoder: What to write.
        output: The folder; an earlier export in it is replaced when the new one is complete.
        origin: Where the weights come from; kept in `spear_export.json`.
        state: All weights of a pre-training run, for the heads `heads.{teacher}.*` among them.
    """
    weights = to_released_names(encoder.state_dict())
    with atomic_folder(output, OWNED) as folder:
        write_token_heads(folder, state or {}, origin.get("teachers", {}))
        config = {"architectures": ["SpearModel"], **_config_json(encoder)}
        card = model_card(encoder, output.name, _with_version(origin), "encoder")
        _write_folder(folder, config, weights, origin, card)


def write_recognizer(model: AsrModel, output: Path, origin: Mapping[str, Any]) -> None:
    """Writes a recogniser as a folder for `load_asr_model`, and for transformers.

    `AutoModelForCTC` takes it where its CTC head reads the encoder's output, `AutoModel` takes the
    encoder of any.

    Args:
        model: What to write.
        output: The folder; an earlier export in it is replaced when the new one is complete.
        origin: Where the weights come from; kept in `spear_export.json`.
    """
    encoder = _encoder_with(model.encoder.config, model.state_dict(), str(output))
    whole = {**model.state_dict(), "encoder.mask_emb": encoder.model.get_parameter("mask_emb")}
    own = {name: value for name, value in model.model_config().items() if name != "student"}
    config: dict[str, Any] = {"architectures": ["SpearModel"], **_config_json(encoder)}
    if is_plain := model.has_ctc and model.layer_mix is None:
        config["architectures"] = [CTC_ARCHITECTURE]
        config |= {"vocabulary": model.tokenizer.vocabulary, "pad_token_id": BLANK_ID}
    use = "ctc" if is_plain else "encoder"
    with atomic_folder(output, OWNED) as folder:
        model.tokenizer.save(folder / TOKENIZER_FOLDER)
        card = model_card(encoder, output.name, _with_version(origin), use)
        weights = {name: v.detach().float() for name, v in names_in_folder(whole).items()}
        _write_folder(folder, {**config, RECOGNIZER_KEY: own}, weights, origin, card)


def _write_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    origin: Mapping[str, Any],
    card: str,
) -> None:
    """Fills a model folder; its record, with the checksums of what is loaded, comes last."""
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    _write(folder / CONFIG_FILE, config)
    _write(folder / PREPROCESSOR_FILE, _PREPROCESSOR)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    write_code(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write(folder / EXPORT_FILE, {**_with_version(origin), "files": files})


def _encoder_with(student: ZipformerConfig, state: dict[str, Tensor], source: str) -> SpearEncoder:
    body = {
        f"model.{name.removeprefix('encoder.')}": value
        for name, value in state.items()
        if name.startswith("encoder.") or name == "mask_emb"
    }
    encoder = SpearEncoder(student)
    # A fine-tuned encoder never sees the mask vector; a loaded one must have it all the same.
    body.setdefault("model.mask_emb", encoder.model.get_parameter("mask_emb").detach())
    load_exact(encoder, body, source)
    return encoder


def _config_json(encoder: SpearEncoder) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "auto_map": AUTO_MAP,
        **released_fields(encoder.config),
        "hidden_size": encoder.output_dim,
        "num_hidden_layers": encoder.num_layers,
        "frame_rate_hz": int(encoder.frame_rate_hz),
        "sampling_rate": encoder.sampling_rate,
    }


def _with_version(origin: Mapping[str, Any]) -> dict[str, Any]:
    return {"spear_version": __version__, **origin}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
