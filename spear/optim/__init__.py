"""The optimiser and learning-rate schedule of the Zipformer family: ScaledAdam and Eden.

To be read in this order: `scaled_adam` (the optimiser and its step), `group` (what is remembered of
parameters, and which of them take part), `sizes` and `clipping` (a few numbers per tensor), `stack`
(the update of elements) and `loops` (the same compiled for CPUs); `shards` for parameters that are
spread over processes; `eden`; `config`.
"""

from spear.optim.config import OptimConfig, build_optimizer
from spear.optim.eden import Eden
from spear.optim.scaled_adam import ScaledAdam

__all__ = ["Eden", "OptimConfig", "ScaledAdam", "build_optimizer"]
