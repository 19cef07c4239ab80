"""`spear export`: what a run trained, as a folder that others load.

A folder holds `config.json`, `model.safetensors` (published names), the code for transformers, a
model card, and `spear_export.json`: where the weights come from and the files' checksums. The heads
of a pre-training run lie beside them in `token_heads.safetensors`; a recogniser's head and
vocabulary are part of the model where it is exported as one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from spear import __version__
from spear.encoders.config_json import MODEL_TYPE, released_fields
from spear.encoders.encoder import SpearEncoder
from spear.encoders.icefall import write_checkpoint
from spear.encoders.loading import EXPORT_FILE, WEIGHTS_FILE, to_released_names
from spear.errors import CheckpointError
from spear.hub.model_card import model_card, training_record
from spear.hub.plain_ctc import check_plain_ctc
from spear.hub.remote_code import AUTO_MAP, write_code
from spear.hub.token_heads import write_token_heads
from spear.system.files import atomic_folder, sha256_of
from spear.system.model_folder import CONFIG_FILE
from spear.system.progress import get_logger
from spear.training.checkpoints.checkpoint import load_weights
from spear.zipformer import ZipformerConfig
from spear.zipformer.weights import load_exact

logger = get_logger(__name__)

PREPROCESSOR_FILE = "preprocessor_config.json"
_CTC_LINEAR = "ctc_head.linear."
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
    """Folder to write; an existing one is replaced when the new one is complete."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    layout: Literal["spear", "recognizer", "ctc", "icefall"] = "spear"
    """Whose: "spear" is the encoder for `spear.from_pretrained` and transformers. Of a
    `spear finetune-asr` run, "recognizer" is all of it without the run, for `spear decode` and
    `spear transcribe`, and "ctc" its CTC recogniser for transformers (`SpearForCTC`). "icefall" is
    the encoder as a `pretrained.pt` for icefall's recipes."""


def run(config: ExportConfig) -> None:
    """Exports what a run trained.

    Raises:
        CheckpointError: The run has no valid checkpoint, or not what the layout asks for.
    """
    run_dir, output = Path(config.run_dir), Path(config.output_dir)
    state, content = load_weights(run_dir, config.weights)
    if "student" not in content:
        raise CheckpointError(f"{run_dir} is not a run of a student: it has no `student`")
    encoder = _encoder_with(ZipformerConfig.from_dict(content["student"]), state, config.run_dir)
    record = {"weights": config.weights, **content, "training": training_record(run_dir)}
    if config.layout == "icefall":
        write_checkpoint(encoder, output)
    elif config.layout == "ctc":
        _write_ctc_folder(encoder, run_dir, output, record)
    elif config.layout == "recognizer":
        _write_recognizer(run_dir, output, record)
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
        output: The folder; an existing one is replaced when the new one is complete.
        origin: Where the weights come from; kept in `spear_export.json`.
        state: All weights of a pre-training run, for the heads `heads.{teacher}.*` among them.
    """
    weights = to_released_names(encoder.state_dict())
    with atomic_folder(output) as folder:
        write_token_heads(folder, state or {}, origin.get("teachers", {}))
        config = {"architectures": ["SpearModel"], **_config_json(encoder)}
        card = model_card(encoder, output.name, _with_version(origin), "encoder")
        _write_folder(folder, config, weights, origin, card)


def _write_recognizer(run_dir: Path, output: Path, origin: Mapping[str, Any]) -> None:
    """Writes a run of `spear finetune-asr` as a folder for `load_asr_model`."""
    from spear.asr.apply.recognizer_folder import write_recognizer
    from spear.asr.loading import load_asr_model

    kept = {name: origin[name] for name in ("weights", "training")}
    write_recognizer(load_asr_model(run_dir, origin["weights"]), output, kept)


def _write_ctc_folder(
    encoder: SpearEncoder, run_dir: Path, output: Path, origin: Mapping[str, Any]
) -> None:
    """Writes a run of `spear finetune-asr` as a folder for transformers' `AutoModelForCTC`."""
    from spear.asr.loading import TOKENIZER_FOLDER, load_asr_model

    recognizer = load_asr_model(run_dir, origin["weights"])
    check_plain_ctc(recognizer, run_dir)
    head = {
        f"head.{name.removeprefix(_CTC_LINEAR)}": value
        for name, value in recognizer.state_dict().items()
        if name.startswith(_CTC_LINEAR)
    }
    body = {f"spear.{k}": v for k, v in to_released_names(encoder.state_dict()).items()}
    with atomic_folder(output) as folder:
        recognizer.tokenizer.save(folder / TOKENIZER_FOLDER)
        config = {
            "architectures": ["SpearForCTC"],
            **_config_json(encoder),
            "vocabulary": recognizer.tokenizer.vocabulary,
            "pad_token_id": 0,
        }
        card = model_card(encoder, output.name, _with_version(origin), "ctc")
        _write_folder(folder, config, {**body, **head}, origin, card)


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
