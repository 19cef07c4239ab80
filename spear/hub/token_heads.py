"""The heads of a pre-training run beside its exported encoder: what would the teachers' tokens be?

`token_heads.safetensors` holds a linear layer for every teacher, `{teacher}.weight` (N x K, D) and
`{teacher}.bias`, and says in its metadata how their rows are to be read. The encoder needs none of
it; pictures and studies of what a student learned do.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spear.errors import CheckpointError, DataError, one_line
from spear.system.files import atomic_path
from spear.system.weights import load_exact

HEADS_FILE = "token_heads.safetensors"
RUN_PREFIX = "heads."
"""What the names of a pre-training run's heads begin with."""
_METADATA_KEY = "teachers"
_FRAMES_AT_ONCE = 2048


@dataclass(frozen=True)
class TokenShape:
    """What the rows of a teacher's head stand for.

    Attributes:
        num_codebooks: N, tokens in a frame.
        codebook_size: K, values of a token.
        frame_rate_hz: Of the teacher; below the student's, its tokens were repeated for training.
    """

    num_codebooks: int
    codebook_size: int
    frame_rate_hz: float

    def __post_init__(self) -> None:
        """Refuses what cannot be a head."""
        if self.num_codebooks < 1 or self.codebook_size < 2:
            raise ValueError(f"{self.num_codebooks} codebooks of {self.codebook_size} entries")

    @property
    def token_dtype(self) -> torch.dtype:
        """uint8 where every token fits into a byte, else int32."""
        return torch.uint8 if self.codebook_size <= 256 else torch.int32


@dataclass(frozen=True)
class PredictedTokens:
    """The most probable tokens of one teacher.

    Attributes:
        tokens: (T, N) uint8, or int32 where codebooks have more than 256 entries.
        probabilities: (T, N) float32, what the head gives each of them.
    """

    tokens: Tensor
    probabilities: Tensor


class TokenHeads(nn.Module):
    """Predicts the tokens of every teacher that a student learned from.

    Args:
        dim: D, channels of the student's output.
        shapes: Teacher -> what is predicted of it.

    Attributes:
        dim: The same.
        shapes: The same.
        linear: Teacher -> D to N x K.
    """

    def __init__(self, dim: int, shapes: Mapping[str, TokenShape]) -> None:
        super().__init__()
        self.dim = dim
        self.shapes = dict(shapes)
        self.linear = nn.ModuleDict(
            {
                name: nn.Linear(dim, shape.num_codebooks * shape.codebook_size)
                for name, shape in shapes.items()
            }
        )

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """K of every teacher."""
        return {name: shape.codebook_size for name, shape in self.shapes.items()}

    @torch.no_grad()
    def predict(self, encoder_out: Tensor) -> dict[str, PredictedTokens]:
        """Predicts tokens for the frames of one recording.

        Args:
            encoder_out: (T, D) float, valid frames of the encoder's output.

        Returns:
            By teacher, one prediction for each of the T frames.

        Raises:
            DataError: The frames are not (T, D) for the D of these heads.
        """
        if encoder_out.ndim != 2 or encoder_out.shape[1] != self.dim:
            raise DataError(
                f"frames have shape {tuple(encoder_out.shape)}, the token heads take "
                f"(frames, {self.dim}): give the encoder_out of one recording, by their own encoder"
            )
        return {name: self._predict(name, encoder_out) for name in self.shapes}

    def _predict(self, name: str, frames: Tensor) -> PredictedTokens:
        shape = self.shapes[name]
        head = self.linear[name]
        # The logits of an hour at once would be gigabytes.
        parts = [
            head(part.float()).unflatten(1, (-1, shape.codebook_size)).softmax(-1).max(-1)
            for part in frames.split(_FRAMES_AT_ONCE)
        ]
        tokens = torch.cat([part.indices for part in parts])
        return PredictedTokens(
            tokens.to(shape.token_dtype), torch.cat([part.values for part in parts])
        )


def write_token_heads(
    folder: Path, state: Mapping[str, Tensor], teachers: Mapping[str, Mapping[str, Any]]
) -> Path | None:
    """Writes the heads of a pre-training run beside its encoder.

    Args:
        folder: The model folder.
        state: The run's weights; heads are `heads.{teacher}.weight` and `.bias`, the rest is
            ignored.
        teachers: The run's teachers: `num_codebooks`, `codebook_size`, `frame_rate_hz` of each.

    Returns:
        The file; None where the run has no heads, as a recogniser's.

    Raises:
        CheckpointError: Heads are missing, have no teacher, or another shape than it says.
    """
    weights = {
        name.removeprefix(RUN_PREFIX): value.detach().to("cpu", torch.float32).contiguous()
        for name, value in state.items()
        if name.startswith(RUN_PREFIX)
    }
    if not weights:
        return None
    shapes = _read_shapes(teachers, "the run's teachers")
    _heads_of(weights, shapes, "the run")
    metadata = {_METADATA_KEY: json.dumps({name: asdict(shape) for name, shape in shapes.items()})}
    path = folder / HEADS_FILE
    with atomic_path(path) as partial:
        save_file(weights, partial, metadata={"format": "pt", **metadata})
    return path


def load_token_heads(folder: str | Path) -> TokenHeads | None:
    """Loads the heads of a model folder.

    Args:
        folder: As `spear export` wrote it.

    Returns:
        The heads on the CPU, in evaluation mode; None where the folder has none.

    Raises:
        CheckpointError: The file is broken, or its parts do not fit each other.
    """
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        teachers = json.loads(metadata[_METADATA_KEY])
    except KeyError:
        raise CheckpointError(f"{path} does not say what it predicts: export it again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error)}): export it again"
        ) from error
    return _heads_of(weights, _read_shapes(teachers, str(path)), str(path))


def _read_shapes(teachers: Any, source: str) -> dict[str, TokenShape]:
    try:
        return {
            name: TokenShape(
                int(fields["num_codebooks"]),
                int(fields["codebook_size"]),
                float(fields["frame_rate_hz"]),
            )
            for name, fields in teachers.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: num_codebooks, codebook_size and frame_rate_hz of each teacher are needed "
            f"({error.__class__.__name__}: {one_line(error)})"
        ) from error


def _heads_of(
    weights: Mapping[str, Tensor], shapes: Mapping[str, TokenShape], source: str
) -> TokenHeads:
    """Builds heads and fills them; every weight must have its place."""
    widths = {value.shape[1] for value in weights.values() if value.ndim == 2}
    if len(widths) != 1:
        raise CheckpointError(f"{source}: token heads for frames of {sorted(widths)} channels")
    try:
        heads = TokenHeads(widths.pop(), shapes)
    except KeyError as error:  # such as one with a dot
        raise CheckpointError(f"{source}: a teacher's name cannot be: {one_line(error)}") from error
    load_exact(heads.linear, weights, source)
    return heads.eval()
