"""`spear export`: a run folder's student as a model folder that others load.

The folder holds `config.json`, `model.safetensors` (published names) and a model card. Prediction
heads stay behind: they are of use to the pre-training run only.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from spear import __version__
from spear.errors import CheckpointError
from spear.files import atomic_folder
from spear.hub.encoder import SpearEncoder
from spear.hub.loading import WEIGHTS_FILE, to_released_names
from spear.hub.released_config import MODEL_TYPE, released_fields
from spear.model_folder import CONFIG_FILE
from spear.progress import get_logger
from spear.training.checkpoint import load_weights
from spear.zipformer import ZipformerConfig
from spear.zipformer.weights import load_exact

logger = get_logger(__name__)

HEAD_PREFIXES = ("heads.", "ctc_head.")


@dataclass
class ExportConfig:
    """Writes a run's encoder as a model folder for `spear.from_pretrained` and transformers."""

    run_dir: str
    """Run folder, or one of its checkpoint folders."""
    output_dir: str
    """Folder to write; an existing one is replaced when the new one is complete."""
    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    layout: Literal["spear", "icefall"] = "spear"
    """Whose: "spear" is what `spear.from_pretrained` and transformers load, "icefall" a
    `pretrained.pt` for icefall's recipes."""


def run(config: ExportConfig) -> None:
    """Exports a run's encoder.

    Raises:
        CheckpointError: The run has no valid checkpoint, or it is not one of an encoder.
    """
    state, content = load_weights(Path(config.run_dir), config.weights)
    if "student" not in content:
        raise CheckpointError(f"{config.run_dir} is not a run of a student: it has no `student`")
    student = ZipformerConfig.from_dict(content["student"])
    encoder = _encoder_with(student, state, config.run_dir)
    output = Path(config.output_dir)
    if config.layout == "icefall":
        from spear.hub.icefall import write_checkpoint

        write_checkpoint(encoder, output)
    else:
        write_model_folder(encoder, output, {"weights": config.weights, **content})
    logger.info("exported %s weights of %s to %s", config.weights, config.run_dir, output)


def write_model_folder(encoder: SpearEncoder, output: Path, origin: dict[str, Any]) -> None:
    """Writes an encoder as a folder for `spear.from_pretrained` and transformers.

    Args:
        encoder: What to write.
        output: The folder; an existing one is replaced when the new one is complete.
        origin: Where the weights come from; kept in `spear_export.json`.
    """
    record = {"spear_version": __version__, **origin}
    with atomic_folder(output) as folder:
        save_file(
            {k: v.contiguous() for k, v in to_released_names(encoder.state_dict()).items()},
            folder / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )
        _write(folder / CONFIG_FILE, _config_json(encoder))
        _write(folder / "spear_export.json", record)
        (folder / "README.md").write_text(_model_card(encoder, output, record), encoding="utf-8")


def _encoder_with(student: ZipformerConfig, state: dict[str, Tensor], source: str) -> SpearEncoder:
    heads = sorted(name for name in state if name.startswith(HEAD_PREFIXES))
    if heads:
        logger.info("left aside: %s", ", ".join(heads))
    body = {f"model.{name}": value for name, value in state.items() if name not in heads}
    encoder = SpearEncoder(student)
    # A fine-tuned encoder never sees the mask vector; a loaded one must have it all the same.
    body.setdefault("model.mask_emb", encoder.model.mask_emb.detach())
    load_exact(encoder, body, source)
    return encoder


def _config_json(encoder: SpearEncoder) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["SpearModel"],
        **released_fields(encoder.config),
        "hidden_size": encoder.output_dim,
        "num_hidden_layers": sum(encoder.config.num_encoder_layers),
        "frame_rate_hz": int(encoder.frame_rate_hz),
    }


def _origin(record: dict[str, Any]) -> str:
    if "imported_from" in record:
        return f"Imported by spear {record['spear_version']} from `{record['imported_from']}`."
    return (
        f"Pre-trained with spear {record['spear_version']} to predict multi-codebook tokens of "
        f"its teachers; these are the {record['weights']} weights of the run."
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _model_card(encoder: SpearEncoder, folder: Path, record: dict[str, Any]) -> str:
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    teachers = record.get("teachers", {})
    rows = "".join(
        f"| {name} | {t['num_codebooks']} x {t['codebook_size']} | {t['frame_rate_hz']} |\n"
        for name, t in teachers.items()
    )
    table = f"| teacher | codebooks | Hz |\n| --- | --- | --- |\n{rows}\n" if rows else ""
    return f"""# {folder.name}

A SPEAR encoder for speech and general audio: {millions:.2f} M parameters, {encoder.output_dim}
channels at {encoder.frame_rate_hz:g} Hz from 16 kHz mono audio. {_origin(record)}

{table}```python
import spear
import torch

model = spear.from_pretrained("{folder}")
audio = torch.zeros(1, 16000)  # (batch, samples), 16 kHz mono in [-1, 1]
with torch.no_grad():
    out = model(audio, torch.tensor([16000]))
print(out["encoder_out"].shape, out["encoder_out_lens"])
```
"""
