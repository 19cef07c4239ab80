"""Loading a pre-trained encoder, whoever wrote it.

Our exports, folders that transformers saved, published SPEAR folders, repositories on the hub that
hold one of these, and icefall's checkpoints.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear.encoders.config_json import student_config
from spear.encoders.encoder import SpearEncoder
from spear.encoders.icefall import load_checkpoint
from spear.errors import CheckpointError, ConfigError
from spear.system.files import sha256_of
from spear.system.model_folder import (
    CONFIG_FILE,
    download,
    is_hub_id,
    read_json_object,
    read_tensors,
)
from spear.system.progress import get_logger
from spear.system.weights import load_exact
from spear.zipformer import ZipformerConfig

logger = get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
EXPORT_FILE = "spear_export.json"
MODEL_VARIABLE = "SPEAR_MODEL"
"""Environment variable that names the model where a tool gives no path."""
# A published checkpoint nests the Zipformer in two modules that are both called `model`; a model
# with a head nests these in a third.
OUTER_PREFIX = "model."
WRAPPED_PREFIX = "spear."
_DOWNLOADED = (CONFIG_FILE, WEIGHTS_FILE, EXPORT_FILE, "*.json", "token_heads.safetensors")


def from_pretrained(
    path_or_repo: str | Path,
    device: str | torch.device = "cpu",
    *,
    student: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> SpearEncoder:
    """Loads an encoder in evaluation mode, and logs what it found.

    Args:
        path_or_repo: A folder with `config.json` and `model.safetensors` (our export, what
            transformers saved, or the published layout), the id of a Hugging Face repository that
            holds these, or an icefall checkpoint (`.pt`).
        device: Where the weights go.
        student: Of an icefall checkpoint: the encoder's fields, where neither the file nor a
            `config.json` beside it tells them.
        verify: Whether the files of our exports must have the checksums that were written down.

    Raises:
        CheckpointError: Nothing is there, it is another kind of model, files are missing or were
            changed, or weights are missing, surplus or of another shape.
    """
    path = Path(path_or_repo)
    if path.is_file():
        model, kind = _from_icefall(path, student), "an icefall checkpoint"
    elif student:
        raise CheckpointError(
            f"{path_or_repo}: student is for icefall's .pt files, folders have a {CONFIG_FILE}"
        )
    else:
        folder = resolve_folder(path_or_repo)
        if verify:
            check_files(folder)
        model, kind = _from_folder(folder), _kind_of(folder)
        if not path.is_dir():
            kind += f", downloaded to {folder}"
    logger.info("loaded %s: %s", path_or_repo, kind)
    return model.to(device).eval()


def model_name(given: str = "") -> str:
    """Returns a model folder or hub id: the given one, or the one that SPEAR_MODEL names.

    Raises:
        ConfigError: There is neither.
    """
    name = given or os.environ.get(MODEL_VARIABLE, "")
    if not name:
        raise ConfigError(
            f"no model is given: pass a model folder or set {MODEL_VARIABLE} to one, "
            f"e.g. export {MODEL_VARIABLE}=exp/model"
        )
    return name


def check_files(folder: Path) -> None:
    """Compares the files of an export with the checksums that it wrote down; others have none.

    Raises:
        CheckpointError: A file is missing or has another content.
    """
    if not (folder / EXPORT_FILE).is_file():
        return
    for name, checksum in read_json_object(folder / EXPORT_FILE).get("files", {}).items():
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks {name}, which its export wrote: copy the folder or export it again"
            )
        if sha256_of(folder / name) != checksum:
            raise CheckpointError(
                f"{folder / name} was changed since its export: copy the folder or export it "
                f"again, or remove {EXPORT_FILE} if the change is meant"
            )


def _from_folder(folder: Path) -> SpearEncoder:
    model = SpearEncoder(read_student_config(folder))
    load_exact(model, read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return model


def _from_icefall(path: Path, student: Mapping[str, Any] | None) -> SpearEncoder:
    model, left_aside = load_checkpoint(path, student)
    if left_aside:
        logger.info("left aside: %s", ", ".join(left_aside))
    return model


def _kind_of(folder: Path) -> str:
    if (folder / EXPORT_FILE).is_file():
        record = read_json_object(folder / EXPORT_FILE)
        return f"an export of spear {record.get('spear_version', 'of an unknown version')}"
    if "transformers_version" in read_json_object(folder / CONFIG_FILE):
        return "a folder that transformers saved"
    return "a SPEAR folder as published"


def read_student_config(folder: Path) -> ZipformerConfig:
    """Reads the architecture of a model folder, without its weights."""
    return student_config(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))


def resolve_folder(path_or_repo: str | Path) -> Path:
    """Returns the local folder of a model, downloading a hub repository where needed.

    Raises:
        CheckpointError: It is neither a folder with a configuration nor a repository.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"{path} has no {CONFIG_FILE}: give the folder of an export")
        return path
    name = str(path_or_repo)
    if path.exists() or not is_hub_id(name):
        raise CheckpointError(f"{name} is neither a model folder nor a hub id like 'owner/name'")
    return download(name, _DOWNLOADED, "encoder")


def weights_file(path_or_repo: str | Path) -> Path:
    """Returns the file with the weights of what `from_pretrained` loads.

    Raises:
        CheckpointError: There is no such model.
    """
    path = Path(path_or_repo)
    return path if path.is_file() else resolve_folder(path_or_repo) / WEIGHTS_FILE


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file with the published names, and drops their outer prefixes.

    The head of a model that has one is left aside.

    Raises:
        CheckpointError: The file is missing or broken.
    """
    state = read_tensors(path)
    if any(name.startswith(WRAPPED_PREFIX) for name in state):
        heads = sorted(name for name in state if not name.startswith(WRAPPED_PREFIX))
        logger.info("left aside: %s", ", ".join(heads))
        state = {k.removeprefix(WRAPPED_PREFIX): v for k, v in state.items() if k not in heads}
    return {name.removeprefix(OUTER_PREFIX): value for name, value in state.items()}


def to_released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns `SpearEncoder` names into those that published folders use on disk."""
    return {OUTER_PREFIX + name: value.detach().to(torch.float32) for name, value in state.items()}
