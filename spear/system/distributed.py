"""The processes of a run: who am I, how many are we, and the few things that we say to each other.

Under torchrun the environment names rank and world size; without it there is one process and
every operation here is a no-op. Nothing is pickled: ranks exchange tensors and bytes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from spear.errors import ConfigError
from spear.system.device import choose_device

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run.

    Attributes:
        device: Where this process computes, and where its messages lie.
        rank: Index of this process.
        world_size: Number of processes.
        control: Group by which the processes themselves talk, past their devices; None: the
            default group does that.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor, operation: Literal["sum", "max", "min"] = "sum") -> Tensor:
        """Combines a tensor over all ranks in place, and returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=_OPERATIONS[operation])
        return tensor

    def sum_on_host(self, numbers: Sequence[float]) -> list[float]:
        """Returns sums over all ranks, in float64, without waiting for the device's work."""
        if self.world_size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        sums: list[float] = tensor.tolist()
        return sums

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, in order of rank, on every rank."""
        if self.world_size == 1:
            return [payload]
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(payload)
        lengths = [int(size) for size in self.all_reduce(sizes).tolist()]
        mine = torch.zeros(max(1, *lengths), dtype=torch.uint8, device=self.device)
        if payload:
            mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        received = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(received, mine)
        return [
            bytes(tensor[:length].cpu().numpy().tobytes())
            for tensor, length in zip(received, lengths, strict=True)
        ]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor by rank 0's in place, and returns it."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def broadcast_int(self, number: int) -> int:
        """Returns rank 0's number on every rank."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        return int(self.broadcast(tensor).item())

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.all_reduce(torch.zeros((), device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def join_ranks(
    device: str = "auto", backend: str = "auto", timeout_s: float = 1800.0
) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, and leaves them at the end.

    A process group that exists already is used, and left standing.

    Args:
        device: "auto", "cpu" or "cuda"; with several processes a machine each takes its own GPU.
        backend: "auto", "gloo" or "nccl".
        timeout_s: Seconds after which waiting for another process becomes an error.

    Raises:
        ConfigError: There is no such GPU, or the environment does not describe a group.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1 or dist.is_initialized():
        yield Ranks(chosen, rank, world_size, _control_group(world_size))
        return
    if backend == "auto":
        backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{world_size} processes could not find each other by {backend}: start them with "
            f"torchrun ({error})"
        ) from error
    try:
        yield Ranks(chosen, rank, world_size, _control_group(world_size))
    finally:
        dist.destroy_process_group()


def _control_group(world_size: int) -> Any:
    """Returns a gloo group beside nccl's; None where the default group is gloo's or not needed."""
    if world_size == 1 or dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo")
