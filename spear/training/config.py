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
    accumulate: int = 1
    """Batches of each process whose gradients form one step. processes x accumulate stays the same
    for a whole run: 8 processes x 1 can be continued, in the same order, by 4 x 2 or 2 x 4."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    valid_every: int = 1000
    """Steps between two validations; 0: only at the end. There is always one at the end."""
    save_every: int = 1000
    """Steps between two checkpoints; 0: only half way and at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept, besides the one half way through the run."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good; 0: none."""
    averaging_every: int = 10
    """Steps between two contributions to the running average of the weights."""
    schedule_unit_s: float = 600.0
    """Seconds of audio, over all ranks, that move schedules such as dropout by 1."""
    num_threads: int = 0
    """CPU threads of each process; 0 leaves torch's choice."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp spreads weights, gradients, optimiser and average over the processes (torch's FSDP2),
    for models that are too large for one GPU beside their batches; none keeps all in each (DDP).
    Checkpoints are the same: either goes on with the other's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """How processes talk; auto takes nccl on CUDA and gloo elsewhere."""
    distributed_timeout_s: float = 1800.0
    """Seconds after which a process that waits for another gives up."""
    hang_timeout_s: float = 1800.0
    """Seconds without progress after which a process writes its stacks and ends (status 75);
    0: never."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a non-finite loss or gradient (or a spike) after which the run stops."""
    spike_factor: float = 0.0
    """Steps whose loss is more than this many times the median of the last 128 are skipped;
    0: none."""
    try_longest: bool = True
    """Try the longest batch before the first step, for its memory and time."""
    log_batches: bool = False
    """Write the cut ids of every step into batches-RANK.jsonl."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest intact checkpoint; never refuses a folder that has any."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl, if tensorboard is installed."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every", "keep_last", "averaging_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: at least 1 is needed")
        not_negative = (
            "valid_every",
            "save_every",
            "num_threads",
            "keep_every",
            "spike_factor",
            "hang_timeout_s",
        )
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: 0 or more is needed")
        for name in ("schedule_unit_s", "distributed_timeout_s", "max_nonfinite_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: it must be above 0")
        if 0 < self.spike_factor <= 1:
            raise ConfigError(f"train.spike_factor is {self.spike_factor}: above 1, or 0 for none")
        if not self.output_dir:
            raise ConfigError("train.output_dir is empty: name the folder for this run")
