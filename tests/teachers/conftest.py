"""Small random checkpoints of every family, in the formats that real ones come in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spear.encoders.config_json import released_fields
from spear.encoders.loading import to_released_names
from spear.hub import SpearEncoder
from spear.teachers.dasheng_network import DashengNetwork, DashengSettings
from spear.zipformer import ZipformerConfig

HF_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
}
SHORT_POSITIONS = {"num_conv_pos_embeddings": 16}
HF_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wavlm": ("WavLM", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wavlm-group": ("WavLM", {"feat_extract_norm": "group"}),
    "hubert": ("Hubert", {"feat_extract_norm": "group"}),
    "hubert-batch-norm": ("Hubert", {"feat_extract_norm": "group", "conv_pos_batch_norm": True}),
    "wav2vec2": ("Wav2Vec2", {"feat_extract_norm": "group"}),
    "wav2vec2-stable": ("Wav2Vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 5}),
}
DASHENG_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 4,
    "target_length": 80,
    "init_values": 0.7,
}
SPEAR_CONFIG: dict[str, Any] = {
    "downsampling_factor": (1, 2),
    "encoder_dim": (32, 48),
    "num_encoder_layers": (1, 1),
    "encoder_unmasked_dim": (24, 32),
    "num_heads": (2, 2),
    "feedforward_dim": (48, 48),
    "cnn_module_kernel": (15, 15),
}


def _shake(model: torch.nn.Module) -> None:
    """Moves zeros, ones and weak initial values, so that every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def _write_hf(folder: Path, variant: str) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name, changes = HF_VARIANTS[variant]
    config = getattr(transformers, f"{name}Config")(**{**HF_SIZES, **SHORT_POSITIONS, **changes})
    model = getattr(transformers, f"{name}Model")(config).eval()
    _shake(model)
    model.save_pretrained(folder)


def dasheng_network(config: dict[str, Any]) -> DashengNetwork:
    network = DashengNetwork(DashengSettings.from_config(config, "test")).eval()
    _shake(network)
    norm = network.init_bn[1]
    norm.running_mean.fill_(-20.0)
    norm.running_var.fill_(300.0)
    return network


def _write_dasheng(path: Path) -> None:
    state = dasheng_network(DASHENG_CONFIG).state_dict()
    torch.save({"model": dict(state), "config": DASHENG_CONFIG}, path)


def _write_spear(folder: Path, **changes: Any) -> None:
    folder.mkdir()
    model = SpearEncoder(ZipformerConfig.from_dict({**SPEAR_CONFIG, **changes}))
    save_file(to_released_names(model.state_dict()), folder / "model.safetensors")
    content = {"model_type": "spear", **released_fields(model.config)}
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Returns the specification of a teacher for a variant's name, e.g. "wavlm" or "spear-25"."""
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, dict[str, Any]] = {}

    def make(variant: str) -> dict[str, Any]:
        if variant in made:
            return dict(made[variant])
        torch.manual_seed(7)
        family = variant.split("-", maxsplit=1)[0]
        spec: dict[str, Any] = {"name": variant, "family": family}
        if family not in ("logmel", "mfcc"):
            spec["path"] = str(root / variant)
        if variant in HF_VARIANTS:
            _write_hf(root / variant, variant)
        elif family == "dasheng":
            spec["path"] += ".pt"
            _write_dasheng(Path(spec["path"]))
        elif family == "spear":
            factor = 2 if variant == "spear-25" else 1
            _write_spear(root / variant, output_downsampling_factor=factor)
        made[variant] = spec
        return dict(spec)

    return make
