"""The device and precision that a process computes in, from their names in a configuration."""

import os
from typing import Literal

import torch

from spear.errors import ConfigError


def choose_device(device: str) -> torch.device:
    """Returns the device for "auto", "cpu", "cuda", "cuda:1", ...

    "auto" is a GPU where there is one. "auto" and "cuda" are this process's own GPU where torchrun
    started several (its `LOCAL_RANK`).

    Raises:
        ConfigError: There is no such device, or there are more processes than GPUs.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", _own_gpu())
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(f"device {device!r} cannot be used ({cause}); try cpu") from error
    return torch.device(device)


def choose_precision(
    precision: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> Literal["float32", "bfloat16"]:
    """Returns what to compute in: "auto" is bfloat16 on a GPU that has it, else float32."""
    if precision != "auto":
        return precision
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def _own_gpu() -> int:
    rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= num_gpus:
        raise ConfigError(
            f"process {rank} of this machine has no GPU: there are {num_gpus}; "
            f"start at most {num_gpus} processes"
        )
    return rank
