"""Quantisers by the name that `--method` and the files give their kind, and reading any of them."""

from pathlib import Path

import torch

from spear.errors import CheckpointError
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.files import read_quantizer
from spear.mvq.quantizers.kmeans import KMeansQuantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.quantizers.random_projection import RandomProjectionQuantizer
from spear.mvq.quantizers.residual import ResidualQuantizer

_CLASSES = (Quantizer, KMeansQuantizer, ResidualQuantizer, RandomProjectionQuantizer)
QUANTIZERS: dict[str, type[CodebookQuantizer]] = {one.kind: one for one in _CLASSES}


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
    kind = metadata["kind"]
    if kind not in QUANTIZERS:
        raise CheckpointError(
            f"{path} is a quantiser of kind {kind!r}; this spear knows {', '.join(QUANTIZERS)}"
        )
    return QUANTIZERS[kind].from_file(path, tensors, metadata).to(device)
