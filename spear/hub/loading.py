"""Loading a pre-trained encoder: our export, a published SPEAR folder, or a hub id."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spear.errors import CheckpointError
from spear.hub.encoder import SpearEncoder
from spear.hub.released_config import student_config
from spear.model_folder import CONFIG_FILE, download, is_hub_id, read_json_object
from spear.progress import get_logger
from spear.zipformer import ZipformerConfig
from spear.zipformer.weights import load_exact

logger = get_logger(__name__)

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
    return download(name, [CONFIG_FILE, WEIGHTS_FILE], "encoder")


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


def to_released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns `SpearEncoder` names into those that published folders use on disk."""
    return {OUTER_PREFIX + name: value.detach().to(torch.float32) for name, value in state.items()}
