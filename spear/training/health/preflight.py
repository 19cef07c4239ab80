"""Before the first step: what the run will need, and the longest batch tried once.

Out of memory is found in the first minute and not in the ninth hour, and the log says how large
the model is, what it takes and about how long the run will last. Nothing that is tried here leaves
a trace: gradients are dropped, buffers restored, and every batch seeds its own random numbers.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spear.errors import ConfigError
from spear.system.distributed import Ranks
from spear.system.progress import get_logger
from spear.training.logs.clock import format_duration
from spear.training.task import Batch, StepOutput
from spear.training.validation import autocast

_GIB = 2**30
_logger = get_logger(__name__)


def describe_memory(model: nn.Module, num_parts: int = 1) -> str:
    """Returns what a run keeps for its parameters: weights, gradients, optimiser, average.

    Args:
        model: What is trained, float32.
        num_parts: Among how many processes all of it is spread.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    num_all, num_trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
    parts: dict[str, float] = {
        "weights": 4 * num_all,
        "gradients": 4 * num_trained,
        "optimiser": 8 * num_trained,
        "average": 8 * num_all,
    }
    parts = {name: size / num_parts for name, size in parts.items()}
    shown = " + ".join(f"{size / _GIB:.2f} {name}" for name, size in parts.items())
    total = sum(parts.values()) / _GIB
    return (
        f"{num_all / 1e6:.2f} M parameters, {num_trained / 1e6:.2f} M trained; memory without "
        f"activations {total:.2f} GiB on rank 0: {shown}"
    )


def try_batch(
    model: nn.Module,
    batch: Batch,
    ranks: Ranks,
    use_bf16: bool,
    loss_of: Callable[[StepOutput], Tensor],
) -> float:
    """Runs a batch forward and backward, twice, and leaves the model as it was.

    The first time pays for what is compiled, loaded and tuned; the second is timed.

    Args:
        model: What is trained, not wrapped: no rank waits for another here.
        batch: The batch that needs most memory.
        ranks: The processes of the run.
        use_bf16: As in training.
        loss_of: Turns an output into something to differentiate.

    Returns:
        Seconds that it takes.

    Raises:
        ConfigError: The device's memory is not enough.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    begin = 0.0
    try:
        for _ in range(2):
            begin = time.monotonic()
            with autocast(ranks.device, use_bf16):
                output = model(batch.to(ranks.device))
            loss_of(output).backward()
            if ranks.device.type == "cuda":
                torch.cuda.synchronize(ranks.device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory with the longest batch ({len(batch.ids)} clips, {batch.audio_s:.0f} s "
            f"of audio): lower batch.max_duration_s, or set activation_checkpointing "
            f"({str(error).splitlines()[0]})"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    return time.monotonic() - begin


def describe_trial(batch: Batch, took_s: float, num_steps: int, device: torch.device) -> str:
    """Returns what the trial says of the run: its memory, and about how long it will last."""
    memory, whole = "", format_duration(took_s * num_steps)
    if device.type == "cuda":
        peak, there = torch.cuda.max_memory_allocated(device), _device_memory(device)
        memory = f", {peak / _GIB:.1f} of {there / _GIB:.1f} GiB"
    return (
        f"longest batch tried: {len(batch.ids)} clips, {batch.audio_s:.0f} s of audio, "
        f"{took_s:.2f} s{memory}; {num_steps} steps like it take {whole}"
    )


def _device_memory(device: torch.device) -> int:
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.total_memory)
