"""Batches of a plan, made by workers: a loader that can be sought.

An item of `BatchDataset` is a whole batch: a data worker gets the clip numbers and the place in
the run, reads, augments, computes features, and hands over tensors. What is random is drawn from
generators keyed by the place, so batches do not depend on the number of workers. Every task has a
data set of its own.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from spear.data.index.plan import BatchPlan
from spear.errors import SpearError

BatchT = TypeVar("BatchT")
ItemT = TypeVar("ItemT")


class Place(NamedTuple):
    """Where in a run a batch stands; keys of its random numbers."""

    epoch: int
    step: int
    share: int
    """Which of the step's batches, over all processes."""
    num_shares: int
    """Batches of a step."""


class BatchDataset(Dataset[BatchT | SpearError]):
    """Makes batches; item (place, clip numbers) is a whole batch.

    An error that the data causes is returned and not raised: a worker would wrap a traceback
    around its one clear line. `BatchLoader` raises it.
    """

    def __getitem__(self, item: tuple[Place, Sequence[int]]) -> BatchT | SpearError:
        """Makes the batch of a place from its clips."""
        try:
            return self.batch(*item)
        except SpearError as error:
            return error

    @abstractmethod
    def batch(self, place: Place, numbers: Sequence[int]) -> BatchT:
        """Makes the batch of a place from its clips.

        Raises:
            SpearError: A clip cannot be read, or does not fit.
        """


class _Places(Sampler[tuple[Place, list[int]]]):
    """What the workers are to do next; set before each pass."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.places: Iterable[Place] = ()

    def __iter__(self) -> Iterator[tuple[Place, list[int]]]:
        for place in self.places:
            yield place, self.plan.batch(*place)


class BatchLoader(Generic[BatchT]):
    """Batches of a plan, made by worker processes, from any step on.

    Args:
        dataset: Makes the batches.
        plan: Says which clips form them.
        num_workers: Processes that read; 0 reads in this one.
        pin_memory: Put batches into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: BatchDataset[BatchT],
        plan: BatchPlan,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._sampler = _Places(plan)
        self.plan = plan
        self._dataset = dataset
        self._loader = DataLoader(
            dataset,
            sampler=self._sampler,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            # The loader draws a number per pass: from here, so that torch's own generator, which
            # dropout uses, is the same after a restart in the middle of an epoch.
            generator=torch.Generator(),
        )

    def train(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[BatchT]:
        """Yields the batches of some shares of each step of an epoch, from `start_step` on."""
        steps = range(start_step, self.plan.steps(epoch, num_shares))
        return self._run(
            Place(epoch, step, share, num_shares) for step in steps for share in shares
        )

    def longest(self, epoch: int, num_shares: int) -> BatchT:
        """Makes the batch of an epoch that is largest with its padding, in this process."""
        place = Place(epoch, *self.plan.largest(epoch, num_shares), num_shares)
        return _unless_error(self._dataset[place, self.plan.batch(*place)])

    def share(self, share: int, num_shares: int) -> Iterator[BatchT]:
        """Yields one of some shares of epoch 0, which is planned as a whole.

        Batches and their random numbers do not depend on the number of shares, so a validation
        gives the same numbers on one machine as on many.
        """
        steps = range(share, self.plan.steps(0), num_shares)
        return self._run(Place(0, step, 0, 1) for step in steps)

    def _run(self, places: Iterable[Place]) -> Iterator[BatchT]:
        self._sampler.places = places
        yield from map(_unless_error, self._loader)


@dataclass(frozen=True)
class _Numbered(Dataset[ItemT | SpearError]):
    """Items by their number; errors are returned, as those of `BatchDataset` are."""

    make: Callable[[int], ItemT]
    num_items: int

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, number: int) -> ItemT | SpearError:
        try:
            return self.make(number)
        except SpearError as error:
            return error


def made_in_order(
    make: Callable[[int], ItemT], num_items: int, num_workers: int
) -> Iterator[ItemT]:
    """Yields the items 0 to `num_items` - 1, made by workers.

    Args:
        make: Makes an item; it must pickle, for workers that are spawned.
        num_items: How many there are.
        num_workers: Processes that make them; 0 makes them in this one.

    Raises:
        SpearError: As `make` raises it.
    """
    loader: DataLoader[Any] = DataLoader(
        _Numbered(make, num_items),
        batch_size=None,
        shuffle=False,
        num_workers=min(num_workers, num_items),
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # the global one is not ours to draw from
    )
    yield from map(_unless_error, loader)


def _unless_error(item: ItemT | SpearError) -> ItemT:
    """Returns an item, or raises the error that a worker returned in its place."""
    if isinstance(item, SpearError):
        raise item
    return item


def _as_it_is(item: Any) -> Any:
    return item
