"""A quantiser for tests of the stages around it: fast, and without training."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

LOGMEL_DIM = 160


@dataclass
class FakeQuantizer:
    """Stands in for `spear.mvq.Quantizer`: rounds the first channels of a vector."""

    dim: int
    num_codebooks: int = 4
    codebook_size: int = 16
    id: str = "0123456789abcdef"
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str) -> "FakeQuantizer":
        return cls(**json.loads(Path(path).read_text()))

    def to(self, device: torch.device) -> "FakeQuantizer":
        return self

    def eval(self) -> "FakeQuantizer":
        return self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 2 and x.shape[1] == self.dim
        return x[:, : self.num_codebooks].abs().round().long().remainder(self.codebook_size).byte()


def write_quantizer(path: Path, **settings: object) -> str:
    """Writes a `FakeQuantizer` for the log-mel teacher; returns its path."""
    path.write_text(json.dumps({"dim": LOGMEL_DIM, **settings}))
    return str(path)
