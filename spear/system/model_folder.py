"""Folders that hold a model as Hugging Face lays it out, here or in a hub repository.

What concerns every kind of model: telling a hub id from a path, the download, and reading the
configuration. Which files a model needs is for its own module to say.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spear.errors import CheckpointError, one_line
from spear.system.optional import require

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(text: str) -> bool:
    """Whether `text` reads as "owner/name"; a relative path of two parts does too."""
    return _HUB_ID.fullmatch(text) is not None


def download(repo: str, patterns: Sequence[str], what: str) -> Path:
    """Fetches files of a hub repository, or finds them in the hub's cache.

    Args:
        repo: The id "owner/name".
        patterns: Names of files, with wildcards.
        what: What they are for, for messages.

    Returns:
        The local folder that holds them.

    Raises:
        CheckpointError: The repository cannot be had.
        MissingPackageError: `huggingface_hub` is not installed.
    """
    hub = require("huggingface_hub", f"downloading {what}")
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=list(patterns)))
    except Exception as error:  # the client's errors share no base class across its versions
        raise CheckpointError(
            f"{what}: no folder {repo}, and the hub repository of that name cannot be had "
            f"({one_line(error)}): check its name, log in if it is private, or download the folder "
            "where there is a network and give its path"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: It is missing or broken.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable weights file: {one_line(error)}"
        ) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        CheckpointError: It is missing, broken, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
