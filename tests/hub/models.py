"""Small random models that the tests of this folder share."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from spear.encoders.config_json import released_fields
from spear.encoders.encoder import SpearEncoder
from spear.encoders.loading import to_released_names
from spear.hub.export import write_model_folder
from spear.zipformer import ZipformerConfig


def tiny_config(**changes: object) -> ZipformerConfig:
    """Two stacks of different widths."""
    fields: dict[str, object] = {
        "feature_dim": 128,
        "downsampling_factor": (1, 2),
        "encoder_dim": (32, 48),
        "num_encoder_layers": (1, 1),
        "encoder_unmasked_dim": (24, 32),
        "num_heads": (2, 2),
        "feedforward_dim": (48, 48),
        "cnn_module_kernel": (15, 15),
    }
    return ZipformerConfig.from_dict({**fields, **changes})


def tiny_encoder(**changes: object) -> SpearEncoder:
    torch.manual_seed(1)
    return SpearEncoder(tiny_config(**changes)).eval()


def write_folder(folder: Path, model: SpearEncoder) -> Path:
    """Writes a folder in the published layout."""
    folder.mkdir()
    save_file(to_released_names(model.state_dict()), folder / "model.safetensors")
    content = {"model_type": "spear", **released_fields(model.config)}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def export_tiny(folder: Path, **changes: object) -> Path:
    """Writes a model folder as `spear export` does."""
    write_model_folder(tiny_encoder(**changes), folder, {"weights": "last"})
    return folder
