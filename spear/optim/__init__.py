"""The optimiser and learning-rate schedule of the Zipformer family: ScaledAdam and Eden."""

from spear.optim.config import OptimConfig, build_optimizer
from spear.optim.eden import Eden
from spear.optim.scaled_adam import ScaledAdam

__all__ = ["Eden", "OptimConfig", "ScaledAdam", "build_optimizer"]
