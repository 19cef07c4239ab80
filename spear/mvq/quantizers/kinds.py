"""The kinds of quantisers, by the name that `--method` and the files give them."""

from pathlib import Path

import torch

from spear.errors import CheckpointError, ConfigError
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.files import FORMAT_VERSION, OWN_KEYS, read_quantizer
from spear.mvq.quantizers.kmeans import KMeansQuantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.quantizers.random_projection import RandomProjectionQuantizer
from spear.mvq.quantizers.residual import ResidualQuantizer

_CLASSES = (Quantizer, KMeansQuantizer, ResidualQuantizer, RandomProjectionQuantizer)
KINDS: dict[str, type[CodebookQuantizer]] = {one.kind: one for one in _CLASSES}


def load_quantizer(path: str | Path, device: str | torch.device = "cpu") -> CodebookQuantizer:
    """Reads a quantiser of any kind.

    Args:
        path: What a quantiser's `save` wrote.
        device: Where to put it.

    Returns:
        An object of the kind's own class.

    Raises:
        CheckpointError: The file is missing, broken, or no quantiser of a known kind and version.
    """
    tensors, metadata = read_quantizer(Path(path))
    version = metadata.get("format_version")
    # Files from before there were kinds do not name theirs.
    kind = metadata.get("kind", Quantizer.kind)
    if kind not in KINDS:
        raise CheckpointError(
            f"{path} is a quantiser of kind {kind!r}; this spear knows {', '.join(KINDS)}"
        )
    if version != FORMAT_VERSION or set(tensors) != KINDS[kind].tensor_names:
        raise CheckpointError(
            f"{path} is no quantiser of format version {FORMAT_VERSION} (version {version}, "
            f"tensors {sorted(tensors)}): make it with `spear train-quantizer`"
        )
    own = {key: value for key, value in metadata.items() if key not in OWN_KEYS}
    try:
        quantizer = KINDS[kind].from_tensors(tensors, own)
    except ConfigError as error:
        raise CheckpointError(f"{path} is a broken quantiser: {error}") from error
    if quantizer.id != metadata.get("id"):
        raise CheckpointError(
            f"{path} is broken: its tensors have the id {quantizer.id}, but it was saved as "
            f"{metadata.get('id')}; copy or train it again"
        )
    return quantizer.to(device)
