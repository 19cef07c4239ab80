"""Loading a pre-trained encoder: our export, a published SPEAR folder, or a hub id."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spear.errors import CheckpointError
from spear.hub.encoder import SpearEncoder
from spear.hub.released_config import student_config
from spear.optional import require
from spear.progress import get_logger
from spear.zipformer import ZipformerConfig
from spear.zipformer.weights import load_exact

logger = get_logger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# A published checkpoint nests the Zipformer in two modules that are both called `model`.
OUTER_PREFIX = "model."


def from_pretrained(path_or_repo: str | Path, device: str = "cpu") -> SpearEncoder:
    """Loads an encoder in evaluation mode.

    Args:
        path_or_repo: A folder with `config.json` and `model.safetensors` (our export or the
            published layout), or the id of a Hugging Face repository that holds these.
        device: Where the weights go.

    Raises:
        CheckpointError: Nothing is there, it is another kind of model, or weights are missing,
            surplus or of another shape.
    """
    folder = resolve_folder(path_or_repo)
    model = SpearEncoder(read_student_config(folder))
    load_exact(model, read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    origin = "a spear export" if (folder / "spear_export.json").is_file() else "a SPEAR folder"
    logger.info("loaded %s from %s", origin, folder)
    return model.to(device).eval()


def read_student_config(folder: Path) -> ZipformerConfig:
    """Reads the architecture of a model folder, without its weights."""
    return student_config(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))


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
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(f"{name} is neither a model folder nor a hub id like 'owner/name'")
    hub = require("huggingface_hub", f"downloading {name!r}")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the client's errors share no base class across its versions
        raise CheckpointError(
            f"no folder {name}, and the hub repository of that name cannot be had: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file with the published names, and drops their outer prefix.

    Raises:
        CheckpointError: The file is missing or broken.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return {name.removeprefix(OUTER_PREFIX): value for name, value in state.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        CheckpointError: The file is missing, broken, or holds something else.
    """
    import json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def to_released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns `SpearEncoder` names into those that published folders use on disk."""
    return {OUTER_PREFIX + name: value.detach().to(torch.float32) for name, value in state.items()}
