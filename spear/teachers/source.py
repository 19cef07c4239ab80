"""Where a teacher's weights come from: a local folder or a hub id, and the SHA-256 of the files.

A hub repository is resolved to a local snapshot first, so that everything behind this module
sees folders only and the digest is of the very files that are loaded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.system.model_folder import CONFIG_FILE, download, is_hub_id

PREPROCESSOR_FILE = "preprocessor_config.json"
# In order of preference: safetensors never run code when read.
WEIGHTS_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")


def resolve_model_folder(path: str, name: str) -> Path:
    """Returns a local folder that holds `config.json` and weights.

    Args:
        path: A folder, or a hub id "owner/name", which is downloaded or found in the hub's cache.
        name: The teacher's label, for messages.

    Raises:
        CheckpointError: It is neither, or the folder lacks one of the files.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        if not is_hub_id(path):
            raise CheckpointError(f"teacher {name!r}: no file or folder at {path}")
        folder = _snapshot(path, name)
    if not folder.is_dir():
        raise CheckpointError(f"teacher {name!r}: {path} is a file, expected a model folder")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"teacher {name!r}: {path} has no {CONFIG_FILE}: not a model folder")
    if not weights_files(folder):
        raise CheckpointError(
            f"teacher {name!r}: {path} has no weights ({' or '.join(WEIGHTS_PATTERNS)})"
        )
    return folder


def weights_files(folder: Path) -> list[Path]:
    """Returns the weights files of a model folder, sorted by name; safetensors if it has any."""
    for pattern in WEIGHTS_PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def weights_digest(files: Sequence[Path]) -> str:
    """Returns the SHA-256 that identifies the weights.

    Of one file it is the file's own, as `sha256sum` prints it. Of several it is the SHA-256 of
    what `sha256sum` prints for them: a line "digest  name" for each, in the order given.
    """
    digests = [sha256_of(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    lines = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _snapshot(repo: str, name: str) -> Path:
    """Downloads what a teacher needs of a hub repository: the `.bin` only without safetensors."""
    for weights in WEIGHTS_PATTERNS:
        wanted = [CONFIG_FILE, PREPROCESSOR_FILE, weights, f"{weights}.index.json"]
        folder = download(repo, wanted, f"teacher {name!r}")
        if weights_files(folder):
            break
    return folder
