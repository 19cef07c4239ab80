"""Shard folders into batches: an index of all clips, the reading, and a loader that can be sought.

An item of `BatchDataset` is a whole batch: a data worker gets the clip numbers and the place in
the run, reads, augments, computes features and masks, and hands over tensors. All that is random
is drawn from generators keyed by the place, so batches do not depend on the number of workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from spear.data.augment import AugmentConfig, Augmenter
from spear.data.collate import Collator, Example, PretrainBatch
from spear.data.noise import NoiseSource, RecordedNoise, SyntheticNoise
from spear.data.plan import BatchPlan
from spear.data.rng import generator
from spear.data.shards import CutInfo, ShardFolder
from spear.data.tokens import Tokens, TokenSidecar
from spear.errors import ConfigError, SpearError, TokenError
from spear.progress import get_logger

logger = get_logger(__name__)
BatchT = TypeVar("BatchT")


@dataclass
class SourceConfig:
    """A shard folder and how often its clips come."""

    path: str
    """Shard folder, with the tokens that the run asks for."""

    weight: float = 1.0
    """Times that each clip comes per epoch, on average: 2 is twice, 0.5 in every other epoch."""


class Place(NamedTuple):
    """Where in a run a batch stands; keys of its random numbers."""

    epoch: int
    step: int
    rank: int
    world_size: int


class ClipIndex:
    """All clips of several shard folders under one numbering.

    Args:
        sources: The folders.
        required: Domain ("speech" or "audio") -> teachers whose tokens a clip of it must have.
        expected: Teacher -> what its sidecars must say, by `TokenSidecar`'s field names.

    Attributes:
        durations: (n,) float64 seconds.
        weights: (n,) float64 repeats per epoch.
        is_audio: (n,) bool.
        ids: n cut ids.

    Raises:
        ConfigError: There is no source.
        DataError: A folder is missing or broken.
        TokenError: Tokens are missing, or of another teacher, quantiser or shape.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        required: Mapping[str, Sequence[str]],
        expected: Mapping[str, Mapping[str, Any]],
    ) -> None:
        if not sources:
            raise ConfigError("no shard folder is given: name at least one source with a path")
        self.required = {domain: tuple(teachers) for domain, teachers in required.items()}
        self.folders = [ShardFolder(source.path) for source in sources]
        self.durations = self._facts(lambda info: info.duration_s, np.float64)
        self.is_audio = self._facts(lambda info: info.domain == "audio", np.bool_)
        self.ids = [info.id for folder in self.folders for info in folder.infos]
        sizes = [len(folder) for folder in self.folders]
        self.weights = np.repeat([source.weight for source in sources], sizes).astype(np.float64)
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self._check_tokens(expected)

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.ids)

    def info(self, number: int) -> tuple[ShardFolder, CutInfo]:
        """Returns the folder and the facts of a clip."""
        position = int(np.searchsorted(self._first, number, side="right")) - 1
        folder = self.folders[position]
        return folder, folder.infos[number - int(self._first[position])]

    def audio(self, number: int) -> NDArray[np.float32]:
        """Reads the (S,) float32 audio of a clip."""
        folder, info = self.info(number)
        return folder.audio(info)

    def tokens(self, number: int, teacher: str) -> Tokens:
        """Reads the (T', N) tokens of a clip, uint8 or uint16."""
        folder, info = self.info(number)
        return folder.tokens(info, teacher)

    def example(self, number: int) -> Example:
        """Reads a clip with the tokens that its domain requires."""
        folder, info = self.info(number)
        clip = folder.clip(info, self.required[info.domain])
        return Example(clip.id, clip.audio, clip.domain == "audio", clip.tokens)

    def has(self, number: int, teacher: str) -> bool:
        """Whether a clip comes with a teacher's tokens."""
        return teacher in self.required["audio" if self.is_audio[number] else "speech"]

    def _facts(self, of: Callable[[CutInfo], Any], dtype: Any) -> NDArray[Any]:
        return np.array([of(info) for folder in self.folders for info in folder.infos], dtype)

    def _check_tokens(self, expected: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares every folder's sidecars with what the run expects, and with each other."""
        first: dict[str, tuple[ShardFolder, TokenSidecar]] = {}
        for folder in self.folders:
            domains = {info.domain for info in folder.infos}
            for teacher in sorted({one for domain in domains for one in self.required[domain]}):
                sidecar = _sidecar(folder, teacher)
                sidecar.check(folder.path, teacher=teacher, **expected.get(teacher, {}))
                other_folder, other = first.setdefault(teacher, (folder, sidecar))
                if differing := sidecar.differences(other):
                    raise TokenError(
                        f"{folder.path}: tokens of {teacher!r} differ from those in "
                        f"{other_folder.path} in {', '.join(differing)}; extract one of them again"
                    )


def _sidecar(folder: ShardFolder, teacher: str) -> TokenSidecar:
    if teacher not in folder.teachers():
        has = ", ".join(folder.teachers()) or "none"
        raise TokenError(
            f"{folder.path}: no tokens of teacher {teacher!r} (there: {has}), which its clips "
            f"need; first run: spear extract-tokens --shards+ {folder.path} "
            f"--teacher.name {teacher} --teacher.path MODEL --quantizer QUANTIZER_FILE"
        )
    return folder.sidecar(teacher)


def open_noise(config: AugmentConfig, index: ClipIndex) -> NoiseSource:
    """Builds the source of noise that a configuration asks for.

    Raises:
        ConfigError: The run has no clips of general audio, and noise is to come from them.
        DataError: The noise folder is missing or broken.
    """
    if config.noise_source == "folder":
        assert config.noise_folder is not None
        folder = ShardFolder(config.noise_folder)
        return RecordedNoise([info.id for info in folder.infos], folder.audio)
    numbers = np.flatnonzero(index.is_audio)
    if config.noise_source == "audio" and not len(numbers):
        raise ConfigError(
            "augment.noise_source is audio, but no source has clips of general audio: use "
            "synthetic, or folder with augment.noise_folder"
        )
    if config.noise_source == "synthetic" or not len(numbers):
        logger.info("noise is synthetic")
        return SyntheticNoise()
    return RecordedNoise([index.ids[i] for i in numbers], _ReadClip(index, numbers))


@dataclass(frozen=True)
class _ReadClip:
    """Reads the i-th of some clips of an index; a class, so that it can be pickled."""

    index: ClipIndex
    numbers: NDArray[np.int64]

    def __call__(self, position: int) -> NDArray[np.float32]:
        return self.index.audio(int(self.numbers[position]))


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
        audio_s = float(self.index.durations[list(numbers)].sum())
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
        self.places: list[Place] = []

    def __iter__(self) -> Iterator[tuple[Place, list[int]]]:
        for place in self.places:
            yield place, self.plan.batch(*place)

    def __len__(self) -> int:
        return len(self.places)


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

    def train(self, epoch: int, start_step: int, rank: int, world_size: int) -> Iterator[BatchT]:
        """Yields one rank's batches of an epoch from `start_step` on."""
        steps = range(start_step, self.plan.steps(epoch, world_size))
        return self._run([Place(epoch, step, rank, world_size) for step in steps])

    def share(self, rank: int, world_size: int) -> Iterator[BatchT]:
        """Yields one rank's share of epoch 0, planned for one rank.

        Batches and their random numbers do not depend on the number of ranks, so a validation
        gives the same numbers on one machine as on many.
        """
        steps = range(rank, self.plan.steps(0), world_size)
        return self._run([Place(0, step, 0, 1) for step in steps])

    def _run(self, places: list[Place]) -> Iterator[BatchT]:
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
    numbers = [number for number in range(len(index)) if index.has(number, teacher)]
    if len(numbers) > max_clips:
        rng = generator(seed, "token-counts")
        numbers = sorted(rng.choice(numbers, max_clips, replace=False).tolist())
    counts = np.zeros(num_codebooks * codebook_size, dtype=np.int64)
    offsets = np.arange(num_codebooks) * codebook_size
    for number in numbers:
        tokens = index.tokens(number, teacher)
        if tokens.shape[1:] != (num_codebooks,) or tokens.max(initial=0) >= codebook_size:
            raise TokenError(
                f"cut {index.ids[number]}, teacher {teacher}: tokens of shape {tokens.shape} and "
                f"up to {tokens.max(initial=0)}, expected {num_codebooks} codebooks of "
                f"{codebook_size}"
            )
        counts += np.bincount((tokens + offsets).ravel(), minlength=len(counts))
    return counts.reshape(num_codebooks, codebook_size)
