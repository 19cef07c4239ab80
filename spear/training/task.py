"""What the training loop knows of a task: a protocol, and the few things that cross it.

A task owns a model whose forward turns a batch into sums and counts. The loop divides global sums
by global counts, so no loss depends on how the data was spread over processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spear.training.position import Position


@dataclass
class LossTerm:
    """One named part of the loss, as a sum over this rank's batch.

    Every term is present in every step on every rank, with a graph to every trainable parameter
    that it ever uses; where there is nothing to count, both numbers are 0.

    Attributes:
        total: () float, differentiable: the summed loss.
        count: () what the sum over all ranks is divided by, e.g. frames times codebooks.
        weight: Factor of the term in the loss.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0


@dataclass
class Metric:
    """What to report: the sum of `total` over the sum of `count`, over steps and ranks.

    Attributes:
        total: () for a number, (N,) for a list of one for each codebook, say, (N, K) for a table;
            every rank and step has the same shape.
        count: () or the shape of `total`.
    """

    total: Tensor
    count: Tensor


@dataclass
class StepOutput:
    """What a model returns for a batch. Names become tags: terms {"wavlm": ...} `wavlm_loss`."""

    terms: dict[str, LossTerm]
    metrics: dict[str, Metric] = field(default_factory=dict)


class Batch(Protocol):
    """One rank's share of a step."""

    @property
    def ids(self) -> list[str]:
        """Ids of its cuts, to be named when something is wrong with them."""

    @property
    def audio_s(self) -> float:
        """Seconds of audio in it."""

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with its tensors on `device`."""


class Task(Protocol):
    """What is trained, on what.

    Whatever changes the course of a run is a function of the arguments below, of the model's
    state_dict or of torch's default generators, which are seeded before every batch.
    """

    model: nn.Module
    """`model(batch)` returns a `StepOutput`; DDP can wrap it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns dicts of "named_params" [(name, parameter)] and optionally "lr_scale".

        Parameters that are frozen at first and trained later are among them.
        """

    def before_step(self, position: Position) -> bool:
        """Moves schedules and freezes or unfreezes; returns whether the trainable set changed."""

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[Batch]:
        """Yields this rank's batches of an epoch from step `start_step` on.

        Every step has `num_shares` batches over all ranks; this rank's are those of `shares`, and
        they come one after another, step by step.
        """

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of steps of an epoch, equal on all ranks."""

    def valid_batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Yields this rank's share of the validation data; ranks may have unequal numbers."""

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model, as JSON; stored in every checkpoint."""


@runtime_checkable
class DescribesValidation(Protocol):
    """A task that puts validation into words."""

    def describe_validation(self, metrics: dict[str, float]) -> str:
        """Returns one line about the values of a validation, by tag without `valid/`."""


@runtime_checkable
class HasData(Protocol):
    """A task that can say what its data are: a run is not continued on other data."""

    def data_config(self) -> dict[str, Any]:
        """Returns, as JSON, everything that decides which batches come and what is in them."""


@runtime_checkable
class CountsLoss(Protocol):
    """A task that knows before the forward pass what its loss will count, for accumulation."""

    def loss_counts(self, batch: Any) -> dict[str, float]:
        """Returns the count of each term of the loss of a batch, as its model will return them."""


@runtime_checkable
class HasLongestBatch(Protocol):
    """A task that can say which batch needs most memory, to be tried before the first step."""

    def longest_batch(self, epoch: int, num_shares: int) -> Batch:
        """Returns the batch of an epoch that costs most; the same on every rank."""
