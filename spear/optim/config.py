"""The optimiser's configuration, and the one function that turns it into objects."""

from dataclasses import dataclass
from typing import Any

from spear.errors import ConfigError
from spear.optim.eden import Eden
from spear.optim.scaled_adam import ScaledAdam


@dataclass
class OptimConfig:
    """ScaledAdam and Eden, with the published numbers of the Base model."""

    base_lr: float = 0.045
    """Learning rate before decay and warm-up. Lower it in steps of 0.005 if training diverges."""
    lr_batches: float = 7500.0
    """Updates after which the rate falls visibly (Eden's first clock)."""
    lr_hours: float = 25000.0
    """Hours of audio after which the rate falls visibly (Eden's second clock)."""
    warmup_batches: float = 500.0
    """Updates over which the rate rises to its full value."""
    warmup_start: float = 0.5
    """Factor on the rate at the very first update, in [0, 1]."""
    clipping_scale: float = 2.0
    """Gradients are clipped at this many medians of their past norms."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay per update of the momentum and of the mean squared gradient."""

    def __post_init__(self) -> None:
        for name in ("base_lr", "lr_batches", "lr_hours", "clipping_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it must be above 0")
        if not 0.0 <= self.warmup_start <= 1.0:
            raise ConfigError(f"optim.warmup_start is {self.warmup_start}: it must lie in [0, 1]")
        if self.warmup_batches < 0:
            raise ConfigError(f"optim.warmup_batches is {self.warmup_batches}: 0 turns it off")
        if len(self.betas) != 2 or not all(0.0 < beta < 1.0 for beta in self.betas):
            raise ConfigError(f"optim.betas is {self.betas}: two numbers between 0 and 1, please")


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> tuple[ScaledAdam, Eden]:
    """Builds the optimiser over `groups` and the schedule of its learning rates.

    Args:
        groups: Dicts with "named_params" (list of (name, parameter)) and optionally "lr_scale".
        config: Every number.

    Returns:
        The optimiser, and the schedule whose second clock is hours of audio.
    """
    optimizer = ScaledAdam(
        groups, lr=config.base_lr, clipping_scale=config.clipping_scale, betas=config.betas
    )
    scheduler = Eden(
        optimizer,
        lr_batches=config.lr_batches,
        lr_epochs=config.lr_hours,
        warmup_batches=config.warmup_batches,
        warmup_start=config.warmup_start,
    )
    scheduler.step_batch(0)  # the first update is warmed up too
    return optimizer, scheduler
