"""The configuration of the training loop."""

from dataclasses import dataclass, field
from typing import Literal

from spear.errors import ConfigError
from spear.optim import OptimConfig


@dataclass
class TrainConfig:
    """How long, how fast and how carefully to train."""

    output_dir: str = "exp"
    """The run folder: checkpoints, metrics, report. The same folder again continues the run."""
    seed: int = 0
    """Fixes dropout (and, through the task, everything else that is random)."""
    max_steps: int = 400_000
    """Steps after which the run is complete."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass: bf16 means autocast; weights stay float32."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    valid_every: int = 1000
    """Steps between two validations; 0: only at the end. There is always one at the end."""
    save_every: int = 1000
    """Steps between two checkpoints; 0: only half way and at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept, besides the one half way through the run."""
    averaging_every: int = 10
    """Steps between two contributions to the running average of the weights."""
    schedule_unit_s: float = 600.0
    """Seconds of audio, over all ranks, that move schedules such as dropout by 1."""
    num_threads: int = 0
    """CPU threads of each process; 0 leaves torch's choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """How processes talk; auto takes nccl on CUDA and gloo elsewhere."""
    distributed_timeout_s: float = 1800.0
    """Seconds after which a process that waits for another gives up."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a non-finite loss or gradient after which the run stops."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest intact checkpoint; never refuses a folder that has any."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl, if tensorboard is installed."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every", "keep_last", "averaging_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: at least 1 is needed")
        for name in ("valid_every", "save_every", "num_threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: 0 or more is needed")
        for name in ("schedule_unit_s", "distributed_timeout_s", "max_nonfinite_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: it must be above 0")
        if not self.output_dir:
            raise ConfigError("train.output_dir is empty: name the folder for this run")
