"""The pre-trained encoder in a fine-tuning: where it comes from, and when it learns how fast.

A fine-tuned model holds an encoder, whose weights are `encoder.*`, and a head. The encoder may stay
frozen while a new head finds its place, and learns more slowly afterwards. Freezing is by
`requires_grad`: an optimiser that sees zero gradients instead would age its statistics, and the
first updates after unfreezing would be several times too large.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spear.encoders.loading import read_student_config, resolve_folder
from spear.errors import ConfigError
from spear.system.progress import get_logger
from spear.system.weights import load_exact
from spear.training.position import Position
from spear.zipformer import ZipformerConfig, set_schedule

logger = get_logger(__name__)

_OUTPUT_RATE = "encoder.downsample_output."


@dataclass(frozen=True)
class EncoderStart:
    """How a pre-trained encoder is treated; the defaults are for fresh weights.

    Attributes:
        freeze_steps: Steps during which only the head is trained.
        lr_scale: Factor on the encoder's learning rate.
        schedule_offset: Where its schedules (dropout, layer skip) begin, in units of
            `train.schedule_unit_s`.
    """

    freeze_steps: int = 0
    lr_scale: float = 1.0
    schedule_offset: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if self.freeze_steps < 0:
            raise ConfigError(f"freeze_encoder_steps is {self.freeze_steps}, below 0")
        if not self.lr_scale > 0:
            raise ConfigError(f"encoder_lr_scale is {self.lr_scale}: it must be above 0")


class EncoderPace:
    """Freezes the encoder of a model at first, and moves its schedules.

    Args:
        model: It holds `encoder`, and a head.
        start: When it begins to learn, and how fast.
        idle: Names of weights that the model does not use: they stay frozen for good.
    """

    def __init__(
        self, model: nn.Module, start: EncoderStart, idle: Collection[str] = frozenset()
    ) -> None:
        self.model = model
        self.start = start
        self.idle = idle
        self._trains = True
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in idle)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the encoder, at its own rate, and the head, as `Task.parameter_groups`."""
        encoder: list[tuple[str, nn.Parameter]] = []
        head: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.model.named_parameters():
            (encoder if is_of_encoder(name) else head).append((name, parameter))
        return [
            {"named_params": encoder, "lr_scale": self.start.lr_scale},
            {"named_params": head, "lr_scale": 1.0},
        ]

    def before_step(self, position: Position) -> bool:
        """Moves schedules; freezes or unfreezes the encoder and says whether that changed."""
        set_schedule(self.model, self.start.schedule_offset + position.schedule)
        trains = position.step >= self.start.freeze_steps
        if trains == self._trains:
            return False
        for name, parameter in self.model.named_parameters():
            if is_of_encoder(name):
                parameter.requires_grad_(trains and name not in self.idle)
        self._trains = trains
        logger.info("step %d: encoder %s", position.step, "unfrozen" if trains else "frozen")
        return True


def is_of_encoder(name: str) -> bool:
    """Whether a weight of this name belongs to the encoder, not to the head."""
    return name.startswith("encoder.")


def resolve_student(
    init: str | None, init_config: str | None, student: ZipformerConfig
) -> ZipformerConfig:
    """Returns the encoder's architecture: of `init` or `init_config` where given, else `student`.

    Raises:
        CheckpointError: A folder or hub id does not hold a model.
    """
    source = init if init is not None else init_config
    return student if source is None else read_student_config(resolve_folder(source))


def load_encoder(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Starts a model's encoder from pre-trained weights; the head stays as it is.

    A 25 Hz model may start from a 50 Hz encoder and the reverse: the two weights of the output's
    downsampling, which the other has not, keep their initial value or stay behind.

    Args:
        model: It holds `encoder`.
        state: Weights by the encoder's own names, and perhaps `mask_emb`, which has no use here.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: Any other weight is missing, surplus or of another shape.
    """
    encoder = model.get_submodule("encoder")
    own = encoder.state_dict()
    rate = {name: value for name, value in own.items() if name.startswith(_OUTPUT_RATE)}
    body = {
        name: value
        for name, value in state.items()
        if name != "mask_emb" and (name in own or not name.startswith(_OUTPUT_RATE))
    }
    load_exact(encoder, {**rate, **body}, source)
