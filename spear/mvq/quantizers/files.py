"""The file of a quantiser: safetensors, with the kind and the origin in its metadata.

Tensors and text only: what they make, `spear.mvq.quantizers.codebooks` and `.loading` know.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from spear.errors import CheckpointError
from spear.system.files import atomic_path

_FIRST_KIND = "mvq"


def write_quantizer(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes one safetensors file, whole or not at all."""
    content = _with_sorted_header(serialize(tensors, metadata=metadata))
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def read_quantizer(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file; `kind` is always in the latter.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no quantiser at {path}: make it with `spear train-quantizer`, or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            # Files from before there were kinds do not name theirs.
            return tensors, {"kind": _FIRST_KIND, **(stream.metadata() or {})}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from error


def _with_sorted_header(content: bytes) -> bytes:
    """Returns safetensors content with the keys of its header in order.

    The library writes metadata in an order that differs from process to process; the same
    quantiser should be the same file, as token sidecars store the file's checksum.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, ensure_ascii=False)
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins at a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]
