"""From the index of all clips to batches: reading, augmenting, and a loader that can be sought.

An item of `BatchDataset` is a whole batch: a data worker gets the clip numbers and the place in
the run, reads, augments, computes features and masks, and hands over tensors. All that is random
is drawn from generators keyed by the place, so batches do not depend on the number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from spear.audio.noise import NoiseSource, RecordedNoise, SyntheticNoise
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.plan import BatchPlan
from spear.errors import ConfigError, SpearError, TokenError
from spear.mvq.usage import count_codes
from spear.pretrain.augment import AugmentConfig, Augmenter
from spear.pretrain.collate import Collator, PretrainBatch
from spear.system.progress import get_logger
from spear.system.rng import generator

logger = get_logger(__name__)
BatchT = TypeVar("BatchT")


class Place(NamedTuple):
    """Where in a run a batch stands; keys of its random numbers."""

    epoch: int
    step: int
    share: int
    """Which of the step's batches, over all processes."""
    num_shares: int
    """Batches of a step."""


def open_noise(config: AugmentConfig, index: ClipIndex) -> NoiseSource:
    """Builds the source of noise that a configuration asks for.

    Raises:
        ConfigError: The run has no clips of general audio, and noise is to come from them.
        DataError: The noise folder is missing or broken.
    """
    if config.noise_source == "folder":
        assert config.noise_folder is not None
        index = ClipIndex([SourceConfig(config.noise_folder)], {"speech": (), "audio": ()}, {})
        clips = _Clips(index, np.arange(len(index)))
        return RecordedNoise(clips, clips.audio)
    numbers = np.flatnonzero(index.is_audio)
    if config.noise_source == "audio" and not len(numbers):
        raise ConfigError(
            "augment.noise_source is audio, but no source has clips of general audio: use "
            "synthetic, or folder with augment.noise_folder"
        )
    if config.noise_source == "synthetic" or not len(numbers):
        logger.info("noise is synthetic")
        return SyntheticNoise()
    clips = _Clips(index, numbers)
    return RecordedNoise(clips, clips.audio)


class _Clips(Sequence[str]):
    """The ids of some clips of an index, each read when asked for, and their audio."""

    def __init__(self, index: ClipIndex, numbers: NDArray[np.int64]) -> None:
        self._clips = index
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> list[str]: ...

    def __getitem__(self, position: int | slice) -> str | list[str]:
        chosen = self._numbers[position]
        if isinstance(position, slice):
            return [self._clips.id(int(number)) for number in chosen]
        return self._clips.id(int(chosen))

    def audio(self, position: int) -> NDArray[np.float32]:
        """Reads the (S,) float32 audio of one of the clips."""
        return self._clips.audio(int(self._numbers[position]))


class BatchDataset(Dataset[PretrainBatch | SpearError]):
    """Makes batches; item (place, clip numbers) is a whole batch.

    An error that the data causes is returned and not raised: a DataLoader would wrap a traceback
    around its one clear line. `BatchLoader` raises it.

    Args:
        index: Where clips are read.
        collator: Turns examples into a batch.
        seed: The run's seed.
        purpose: "train" or "valid"; keeps their random numbers apart.
        augmenter: Noise and token mixing; None leaves clips as they are.
    """

    def __init__(
        self,
        index: ClipIndex,
        collator: Collator,
        seed: int,
        purpose: str,
        augmenter: Augmenter | None = None,
    ) -> None:
        self.index = index
        self.collator = collator
        self.seed = seed
        self.purpose = purpose
        self.augmenter = augmenter

    def __getitem__(self, item: tuple[Place, Sequence[int]]) -> PretrainBatch | SpearError:
        """Makes the batch of a place from its clips."""
        place, numbers = item
        try:
            return self._batch(place, numbers)
        except SpearError as error:
            return error

    def _batch(self, place: Place, numbers: Sequence[int]) -> PretrainBatch:
        examples = [self.index.example(number) for number in numbers]
        audio_s = self.index.duration_s(numbers)
        if self.augmenter is not None:
            examples = self.augmenter(
                examples, generator(self.seed, f"{self.purpose}/augment", *place)
            )
        masks = generator(self.seed, f"{self.purpose}/mask", *place)
        return self.collator(examples, audio_s, masks)


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
        dataset: Item (place, clip numbers) is a whole batch, or the user's error in it, which is
            raised here: a worker would wrap a traceback around an error that it raises.
        plan: Says which clips form them.
        num_workers: Processes that read; 0 reads in this one.
        pin_memory: Put batches into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: Dataset[BatchT | SpearError],
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
        item = self._dataset[place, self.plan.batch(*place)]
        if isinstance(item, SpearError):
            raise item
        return item

    def share(self, rank: int, world_size: int) -> Iterator[BatchT]:
        """Yields one rank's share of epoch 0, planned for one rank.

        Batches and their random numbers do not depend on the number of ranks, so a validation
        gives the same numbers on one machine as on many.
        """
        steps = range(rank, self.plan.steps(0), world_size)
        return self._run(Place(0, step, 0, 1) for step in steps)

    def _run(self, places: Iterable[Place]) -> Iterator[BatchT]:
        self._sampler.places = places
        for item in self._loader:
            if isinstance(item, SpearError):
                raise item
            yield item


def _as_it_is(item: Any) -> Any:
    return item


def token_counts(
    index: ClipIndex,
    teacher: str,
    *,
    num_codebooks: int,
    codebook_size: int,
    max_clips: int,
    seed: int,
) -> NDArray[np.int64]:
    """Counts how often each token occurs, in at most `max_clips` clips drawn without replacement.

    Args:
        index: Where tokens are read.
        teacher: Whose tokens.
        num_codebooks: N.
        codebook_size: K.
        max_clips: Clips to look at.
        seed: The run's seed.

    Returns:
        (N, K) int64.

    Raises:
        TokenError: Tokens are unreadable, or not N wide and below K.
    """
    numbers = index.with_tokens(teacher)
    if len(numbers) > max_clips:
        rng = generator(seed, "token-counts")
        numbers = np.sort(rng.choice(numbers, max_clips, replace=False))
    counts = np.zeros((num_codebooks, codebook_size), dtype=np.int64)
    for number in numbers.tolist():
        tokens = index.tokens(number, teacher)
        if tokens.shape[1:] != (num_codebooks,) or tokens.max(initial=0) >= codebook_size:
            raise TokenError(
                f"cut {index.id(number)}, teacher {teacher}: tokens of shape {tokens.shape} and "
                f"up to {tokens.max(initial=0)}, expected {num_codebooks} codebooks of "
                f"{codebook_size}"
            )
        counts += count_codes(torch.from_numpy(tokens), codebook_size).numpy()
    return counts
