"""Batches of a fine-tuning: what is the same whatever they hold.

A task's own data makes two loaders, of training and of validation clips; what is read, augmented
and collated is its `BatchDataset`'s.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from spear.data.index.loader import BatchLoader, BatchT
from spear.data.index.plan import BatchConfig

TensorBatchT = TypeVar("TensorBatchT", bound="TensorBatch")


class TensorBatch:
    """A dataclass with tensors among its fields that move together."""

    def to(self: TensorBatchT, device: torch.device) -> TensorBatchT:
        """Returns the batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: TensorBatchT) -> TensorBatchT:
        """Returns the batch in page-locked memory, from where copies to a GPU do not block."""
        return self._with(Tensor.pin_memory)

    def _with(self: TensorBatchT, change: Callable[[Tensor], Tensor]) -> TensorBatchT:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        changed = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]


class FinetuneData(ABC, Generic[BatchT]):
    """Training and validation batches of a run.

    Args:
        train: Makes the training batches.
        valid: Makes the validation batches, with a plan of `every_clip`; None: there are none.
    """

    def __init__(self, train: BatchLoader[BatchT], valid: BatchLoader[BatchT] | None) -> None:
        self._train = train
        self._valid = valid

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, what decides which training batches come and what is in them."""

    def longest_batch(self, epoch: int, num_shares: int) -> BatchT:
        """Makes the training batch of an epoch that is largest with its padding."""
        return self._train.longest(epoch, num_shares)

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of training steps of an epoch, equal on all ranks."""
        return self._train.plan.steps(epoch, num_shares)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[BatchT]:
        """Yields this rank's augmented batches of an epoch from step `start_step` on."""
        return self._train.train(epoch, start_step, shares, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[BatchT]:
        """Yields this rank's share of the validation clips, each once, not augmented."""
        if self._valid is None:
            return iter(())
        return self._valid.share(rank, world_size)


def every_clip(batch: BatchConfig) -> BatchConfig:
    """Validation leaves out no clip, however short or long, and pads as little as possible."""
    longest = batch.max_duration_s
    return BatchConfig(longest, min_clip_s=0.0, max_clip_s=math.inf, duration_jitter=0.0)
