"""Evaluation of a task on its validation data, without a trace in the training."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from spear.system.distributed import Ranks
from spear.training.logs.metrics import MetricSums
from spear.training.task import Task


def evaluate(
    task: Task,
    ranks: Ranks,
    seed: int,
    use_bf16: bool = False,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, float]:
    """Runs the model over the validation data of all ranks.

    The model is called without DDP, so ranks may have unequal numbers of batches.

    Args:
        task: Its model and its validation batches.
        ranks: The processes that share them.
        seed: Of torch's generators meanwhile: masks drawn from them are the same every time.
        use_bf16: Whether the model computes in bf16, as in training.
        watch: Passes the batches on; a watchdog's sees that there is progress.

    Returns:
        Values by tag, over all ranks; empty without validation data.
    """
    sums = MetricSums(ranks)
    with evaluating(task.model, ranks.device), torch.no_grad():
        torch.manual_seed(seed)
        for batch in watch(task.valid_batches(ranks.rank, ranks.world_size)):
            with autocast(ranks.device, use_bf16):  # around the model only, not the data
                output = task.model(batch.to(ranks.device))
            sums.add_output(output)
    return sums.values()


def autocast(device: torch.device, use_bf16: bool) -> torch.autocast:
    """Returns the context of a forward pass; bf16 needs no scaling of the loss."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16)


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts the model into evaluation mode; then every module and generator is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
