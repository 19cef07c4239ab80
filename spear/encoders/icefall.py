"""icefall checkpoints: in, as an encoder of ours, and out, for icefall's own recipes.

icefall keeps weights under `model` (and a running average under `model_avg`) of a `.pt` file, next
to optimiser states and the options of the run. Parameters of the encoder are called as ours are;
decoders, joiners and other heads of a recipe are left aside, and named. Files are read with
`weights_only=True`: what would need unpickling of anything but tensors and plain values is refused.
"""

import json
import pathlib
import pickle
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear.encoders.config_json import MODEL_TYPE, parse_field, released_fields, student_config
from spear.encoders.encoder import SpearEncoder
from spear.errors import CheckpointError
from spear.system.files import atomic_folder
from spear.system.model_folder import CONFIG_FILE, read_json_object
from spear.system.weights import load_exact
from spear.zipformer import ZipformerConfig

WEIGHTS_FILE = "pretrained.pt"
ENCODER_PREFIXES = ("encoder_embed.", "encoder.")
_OUTPUT_BIAS = "encoder.downsample_output.bias"
_MASK = "mask_emb"
_FLAGS = (
    "num_encoder_layers",
    "downsampling_factor",
    "feedforward_dim",
    "num_heads",
    "encoder_dim",
    "query_head_dim",
    "value_head_dim",
    "pos_head_dim",
    "pos_dim",
    "encoder_unmasked_dim",
    "cnn_module_kernel",
    "causal",
    "chunk_size",
    "left_context_frames",
)
"""Options of an icefall run that describe its encoder."""


def load_checkpoint(
    path: Path, student: Mapping[str, Any] | None = None, weights: str = "model"
) -> tuple[SpearEncoder, list[str]]:
    """Reads the encoder of an icefall checkpoint.

    Args:
        path: The file.
        student: Fields of `ZipformerConfig` that neither the file nor a `config.json` of ours
            beside it tells, or that they tell wrongly.
        weights: "model" or "model_avg".

    Returns:
        The encoder in evaluation mode, and the names of the modules that were left aside.

    Raises:
        CheckpointError: The file cannot be read, or its encoder is not as described.
        ConfigError: A field of `student` does not exist or fit.
    """
    content, state = read_weights(path, weights)
    left_aside = {name.split(".")[0] for name in state if not _is_ours(name)}
    own = {name: value for name, value in state.items() if _is_ours(name)}
    config = encoder_config(path, content, state, student)
    encoder = SpearEncoder(config)
    own = encoder_weights(own, config)
    own.setdefault(_MASK, encoder.model.get_parameter(_MASK).detach())
    load_exact(encoder.model, own, str(path))
    return encoder.eval(), sorted(left_aside)


def read_weights(path: Path, weights: str = "model") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads an icefall checkpoint.

    Args:
        path: The file.
        weights: "model" or "model_avg".

    Returns:
        All that it holds, and the weights among it.

    Raises:
        CheckpointError: The file cannot be read, or has no such weights.
    """
    content = _read(path)
    if not isinstance(content.get(weights), Mapping):
        raise CheckpointError(f"{path} has no weights called {weights!r}: is it icefall's?")
    return content, dict(content[weights])


def encoder_config(
    path: Path,
    content: Mapping[str, Any],
    state: Mapping[str, Tensor],
    student: Mapping[str, Any] | None = None,
) -> ZipformerConfig:
    """Puts together what is known of a checkpoint's encoder.

    Args:
        path: The file; a `config.json` of ours beside it is read.
        content: All that it holds.
        state: Its weights.
        student: Fields that are not told, or told wrongly.

    Raises:
        CheckpointError: It has no encoder, or the encoder's sizes are told nowhere.
        ConfigError: A field of `student` does not exist or fit.
    """
    if not any(name.startswith(ENCODER_PREFIXES) for name in state):
        modules = sorted({name.split(".")[0] for name in state})
        raise CheckpointError(f"{path} has no `encoder.*` weights: it holds {modules}")
    told = {**_told_by(content, state), **_told_beside(path), **(student or {})}
    if "encoder_dim" not in told:
        raise CheckpointError(
            f"{path} does not tell the sizes of its encoder: give the run's options as student, "
            "for example {'encoder_dim': [192, 256, 384, 512, 384, 256], ...}"
        )
    return ZipformerConfig.from_dict(told)


def encoder_weights(state: Mapping[str, Tensor], config: ZipformerConfig) -> dict[str, Tensor]:
    """Returns weights as our encoder has them, in float32."""
    wide = {name: value.to(torch.float32) for name, value in state.items()}
    if config.output_downsampling_factor == 1:
        wide.pop(_OUTPUT_BIAS, None)  # icefall has a weight for the mean of one frame
    return wide


def write_checkpoint(encoder: SpearEncoder, folder: Path) -> None:
    """Writes a folder from which an icefall recipe can start: weights, and the options to give.

    With its `config.json`, `spear.from_pretrained` reads the weights as well.
    """
    with atomic_folder(folder, (WEIGHTS_FILE, CONFIG_FILE, "README.md")) as partial:
        torch.save({"model": to_icefall(encoder)}, partial / WEIGHTS_FILE)
        fields = {"model_type": MODEL_TYPE, **released_fields(encoder.config)}
        (partial / CONFIG_FILE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_readme(encoder.config), encoding="utf-8")


def to_icefall(encoder: SpearEncoder) -> dict[str, Tensor]:
    """Returns the encoder's weights as a strict icefall `Zipformer2` loads them."""
    state = {name: v.detach() for name, v in encoder.model.state_dict().items() if name != _MASK}
    if encoder.config.output_downsampling_factor == 1:
        state[_OUTPUT_BIAS] = torch.zeros(1)
    return state


def _is_ours(name: str) -> bool:
    return name.startswith(ENCODER_PREFIXES) or name == _MASK


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: give icefall's pretrained.pt or epoch-N.pt")
    try:
        # The run's options hold paths, which do nothing when they are made.
        with torch.serialization.safe_globals([pathlib.PosixPath]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # torch's reader of pickles stumbles over other bytes in several ways.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is broken ({reason}): let "
            "icefall's export.py write its pretrained.pt, and give that"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not icefall's dictionary")
    return content


def _told_by(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of the configuration that a checkpoint tells."""
    known = {f.name for f in fields(ZipformerConfig)} & {*_FLAGS, "feature_dim"}
    told = {name: parse_field(content[name]) for name in known if name in content}
    bias = state.get(_OUTPUT_BIAS)
    factor = 1 if bias is None else len(bias)
    return {"frontend_pad": False, "output_downsampling_factor": factor, **told}


def _told_beside(path: Path) -> dict[str, Any]:
    """Returns the configuration that lies beside a checkpoint that we wrote, if there is one."""
    beside = path.parent / CONFIG_FILE
    if not beside.is_file():
        return {}
    return student_config(read_json_object(beside), str(beside)).to_dict()


def _readme(config: ZipformerConfig) -> str:
    values = config.to_dict()
    options = " ".join(f"--{name.replace('_', '-')} {_flag(values[name])}" for name in _FLAGS)
    padding = (
        "This encoder pads every utterance by 3 feature frames before and 4 behind, with "
        "log(1e-10); icefall's does not. Pad the features in the recipe, or every output frame is "
        "40 ms late and the first and last few see other values.\n"
        if config.frontend_pad
        else ""
    )
    return f"""# A SPEAR encoder for icefall

`{WEIGHTS_FILE}` holds `encoder_embed.*` and `encoder.*` under `model`, for
`egs/librispeech/ASR/zipformer/finetune.py --do-finetune 1 --finetune-ckpt {WEIGHTS_FILE}
--init-modules encoder_embed,encoder` with

    {options}

and features of {config.feature_dim} mel bins (`--feature-dim` or its place in the recipe),
`output_downsampling_factor={config.output_downsampling_factor}`. {padding}"""


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
