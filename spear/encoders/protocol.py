"""What pre-training, fine-tuning and exports need of an encoder, which they hold and never are.

`Zipformer` is one. Weights of a model that holds an encoder are named `encoder.*`, and below that
as the encoder names them. Numbers that change in training are `ScheduledFloat`s, which
`set_schedule` finds in any module; where parameters are spread over processes, modules with
`is_shard_unit` travel whole.
"""

from typing import Protocol

from torch import Tensor

from spear.zipformer.config import ZipformerConfig


class Encoded(Protocol):
    """What an encoder makes of a batch.

    Attributes:
        output: (B, T', D) float; padding holds anything.
        lens: (B,) int64, valid frames of it.
    """

    output: Tensor
    lens: Tensor

    @property
    def hidden_states(self) -> list[Tensor]:
        """The output (B, T, D_layer) of every layer at 50 Hz."""


class Encoder(Protocol):
    """Log-mel features in, frames out; in evaluation batch mates change nothing.

    Attributes:
        config: What rebuilds it.
        output_dim: D, channels of the output.
        layer_dims: Channels of the front end's output and of each layer's.
        frame_rate_hz: Frames of the output in a second.
    """

    config: ZipformerConfig
    output_dim: int
    layer_dims: tuple[int, ...]
    frame_rate_hz: float

    def __call__(self, fbank: Tensor, lens: Tensor) -> Encoded:
        """Encodes (B, T, M) float log-mel at 100 Hz, of which lens (B,) int64 are valid."""

    def num_output_frames(self, num_fbank_frames: int) -> int:
        """Returns how many frames come out for so many fbank frames."""

    def set_checkpointing(self, on: bool) -> None:
        """Chooses whether the backward pass runs layers again instead of keeping their inside."""
