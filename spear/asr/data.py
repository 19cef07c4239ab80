"""Batches for speech recognition: shards with transcripts in, fbank and token ids out.

`AsrData` reads shard folders whose cuts have transcripts, asks `BatchPlan` which clips form which
batch, and lets workers read, perturb, compute features and augment. What is in a batch depends on
(seed, epoch, step, rank, world size, data) alone: every clip has its own generator, so neither the
number of workers nor a restart changes a value.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from spear.asr.augment import SpecAugment, SpecAugmentConfig, check_speeds, perturb_speed
from spear.asr.tokenizer import Tokenizer
from spear.audio import LOG_EPS, Fbank
from spear.data.clip_table import ClipTable
from spear.data.dataset import BatchLoader, Place
from spear.data.folder_index import AUDIO, fingerprints
from spear.data.plan import BatchConfig, BatchPlan
from spear.data.rng import generator
from spear.data.shards import ShardFolder
from spear.errors import DataError, SpearError
from spear.progress import get_logger

logger = get_logger(__name__)

SAMPLE_RATE_HZ = 16000


@dataclass
class AsrDataConfig:
    """Which recordings to train and validate on, and how they are read."""

    train: list[str] = field(default_factory=list)
    """Shard folders with transcripts to train on."""
    valid: list[str] = field(default_factory=list)
    """Shard folders with transcripts for loss and word error rate during training; may be empty."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """How training clips are put into batches; validation uses `max_duration_s` of it only."""
    skip_untranscribed: bool = False
    """Whether cuts without a transcript are counted and left out; otherwise they are an error."""
    speeds: tuple[float, ...] = (1.0,)
    """Speeds at which training clips are played, one drawn per clip and epoch; (0.9, 1.0, 1.1) is
    Kaldi's choice."""
    specaugment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Masks and warping of the training features."""
    num_workers: int = 2
    """Processes per rank that read and augment; 0 does it in the training process."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        self.speeds = tuple(self.speeds)
        check_speeds(self.speeds)


@dataclass
class AsrBatch:
    """One rank's batch.

    Attributes:
        ids: B cut ids.
        audio_s: Seconds of audio in it, without padding.
        fbank: (B, T, M) float32 log-mel, `LOG_EPS` beyond the lengths.
        fbank_lens: (B,) int64, valid fbank frames.
        tokens: (B, L) int64 token ids, 0 beyond the lengths.
        token_lens: (B,) int64, labels of each utterance.
        texts: B transcripts as the data has them.
    """

    ids: list[str]
    audio_s: float
    fbank: Tensor
    fbank_lens: Tensor
    tokens: Tensor
    token_lens: Tensor
    texts: list[str]

    def to(self, device: torch.device) -> "AsrBatch":
        """Returns the batch with its tensors on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("fbank", "fbank_lens", "tokens", "token_lens")
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> "AsrBatch":
        """Returns the batch in page-locked memory, from where copies to a GPU do not block."""
        pinned = {
            name: getattr(self, name).pin_memory()
            for name in ("fbank", "fbank_lens", "tokens", "token_lens")
        }
        return dataclasses.replace(self, **pinned)


class TranscribedCuts:
    """The cuts of several shard folders as one numbered list.

    Args:
        folders: Paths of shard folders.
        purpose: What they are for, for messages, e.g. "training".
        skip_untranscribed: Whether cuts without transcript are left out instead of an error.

    Attributes:
        cuts: (folder, cut) of every clip number.
        infos: What is known of each clip without reading it.
        texts: Their transcripts; an empty one is a transcript too.

    Raises:
        DataError: A folder is missing or broken, there is no cut, or one has no transcript.
    """

    def __init__(
        self, folders: Sequence[str], purpose: str, skip_untranscribed: bool = False
    ) -> None:
        if not folders:
            raise DataError(f"no {purpose} data: name shard folders in data.{purpose}")
        found = [(folder, info) for folder in map(ShardFolder, folders) for info in folder.infos]
        without = [(folder, info) for folder, info in found if info.text is None]
        if without and not skip_untranscribed:
            folder, info = without[0]
            raise DataError(
                f"{folder.path}: {len(without)} of {len(found)} cuts have no transcript, e.g. "
                f"{info.id!r}; give `spear prepare` their text, or set skip_untranscribed"
            )
        if without:
            logger.warning("left out %d %s cuts without transcript", len(without), purpose)
        self.cuts = [(folder, info) for folder, info in found if info.text is not None]
        self.infos = [info for _, info in self.cuts]
        self.texts = [info.text or "" for info in self.infos]
        if not self.cuts:
            raise DataError(f"{', '.join(map(str, folders))}: no cut with a transcript")

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.cuts)

    @property
    def durations(self) -> list[float]:
        """Seconds of each clip."""
        return [info.duration_s for info in self.infos]

    def audio(self, number: int) -> np.ndarray:
        """Reads a clip: (S,) float32 at 16 kHz."""
        folder, info = self.cuts[number]
        return folder.audio(info)


class AsrDataset(Dataset[AsrBatch | SpearError]):
    """Makes batches; item (place, clip numbers) is a whole batch, as `BatchLoader` asks for it.

    Args:
        cuts: What the clip numbers mean.
        tokenizer: Turns transcripts into labels.
        num_mel_bins: M, size of an fbank frame.
        seed: The run's seed.
        augment: Where speeds and masks come from; None leaves clips as they are.
    """

    def __init__(
        self,
        cuts: TranscribedCuts,
        *,
        tokenizer: Tokenizer,
        num_mel_bins: int,
        seed: int,
        augment: AsrDataConfig | None = None,
    ) -> None:
        self.cuts = cuts
        self.tokens = [tokenizer.encode(text) for text in cuts.texts]
        self.fbank = Fbank(num_mel_bins=num_mel_bins)
        self.seed = seed
        self.speeds = (1.0,) if augment is None else augment.speeds
        self.specaugment = None if augment is None else SpecAugment(augment.specaugment)

    def __getitem__(self, item: tuple[Place, Sequence[int]]) -> AsrBatch | SpearError:
        """Returns a batch, or the user's error in it.

        A worker would wrap a traceback around a raised error; a returned one crosses as it is.
        """
        place, numbers = item
        try:
            return self.batch(place.epoch, numbers)
        except SpearError as error:
            return error

    def batch(self, epoch: int, numbers: Sequence[int]) -> AsrBatch:
        """Reads, augments and collates clips; a clip's augmentation is drawn anew every epoch."""
        audio, features = [], []
        for number in numbers:
            rng = generator(self.seed, "asr", epoch, number)
            samples = perturb_speed(self.cuts.audio(number), self.speeds, rng)
            fbank = self._fbank(samples)
            audio.append(samples)
            features.append(fbank if self.specaugment is None else self.specaugment(fbank, rng))
        tokens = [torch.tensor(self.tokens[number], dtype=torch.int64) for number in numbers]
        return AsrBatch(
            ids=[self.cuts.infos[number].id for number in numbers],
            audio_s=sum(map(len, audio)) / SAMPLE_RATE_HZ,
            fbank=pad_sequence(features, batch_first=True, padding_value=LOG_EPS),
            fbank_lens=torch.tensor([len(fbank) for fbank in features]),
            tokens=pad_sequence(tokens, batch_first=True),
            token_lens=torch.tensor([len(labels) for labels in tokens]),
            texts=[self.cuts.texts[number] for number in numbers],
        )

    def _fbank(self, samples: np.ndarray) -> Tensor:
        """(S,) float32 -> (T, M)."""
        audio = torch.from_numpy(np.ascontiguousarray(samples)).unsqueeze(0)
        fbank: Tensor = self.fbank(audio, torch.tensor([len(samples)]))[0][0]
        return fbank


class AsrData:
    """Training and validation batches of a run.

    Args:
        config: What to read and how.
        train: Training cuts (they were read before, to train the tokenizer).
        tokenizer: Turns transcripts into labels.
        num_mel_bins: M, size of an fbank frame.
        seed: The run's seed.
        pin: Whether batches are put into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        config: AsrDataConfig,
        train: TranscribedCuts,
        *,
        tokenizer: Tokenizer,
        num_mel_bins: int,
        seed: int,
        pin: bool = False,
    ) -> None:
        def loader(
            cuts: TranscribedCuts, batch: BatchConfig, augment: AsrDataConfig | None
        ) -> BatchLoader[AsrBatch]:
            dataset = AsrDataset(
                cuts,
                tokenizer=tokenizer,
                num_mel_bins=num_mel_bins,
                seed=seed,
                augment=augment,
            )
            plan = BatchPlan(ClipTable.of(cuts.durations), seed, batch)
            return BatchLoader(dataset, plan, config.num_workers, pin)

        self.config = config
        self.seed = seed
        self._train = loader(train, _room_for_speeds(config), config)
        self._valid: BatchLoader[AsrBatch] | None = None
        if config.valid:
            valid = TranscribedCuts(config.valid, "valid", config.skip_untranscribed)
            self._valid = loader(valid, _everything(config.batch), None)

    def longest_batch(self, epoch: int, num_shares: int) -> AsrBatch:
        """Makes the training batch of an epoch that is largest with its padding."""
        return self._train.longest(epoch, num_shares)

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, what decides which training batches come and what is in them."""
        config = self.config
        return {
            "sources": [fingerprints(Path(folder))[AUDIO] for folder in config.train],
            "batch": dataclasses.asdict(config.batch),
            "speeds": list(config.speeds),
            "specaugment": dataclasses.asdict(config.specaugment),
            "skip_untranscribed": config.skip_untranscribed,
            "seed": self.seed,
        }

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of training steps of an epoch, equal on all ranks."""
        return self._train.plan.steps(epoch, num_shares)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[AsrBatch]:
        """Yields this rank's augmented batches of an epoch from step `start_step` on."""
        return self._train.train(epoch, start_step, shares, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[AsrBatch]:
        """Yields this rank's share of the validation clips, each once, not augmented."""
        if self._valid is None:
            return iter(())
        return self._valid.share(rank, world_size)


def _room_for_speeds(config: AsrDataConfig) -> BatchConfig:
    """Lowers the limit of a batch so that it holds with every clip at the slowest speed."""
    limit = config.batch.max_duration_s * min(1.0, *config.speeds)
    return dataclasses.replace(config.batch, max_duration_s=limit)


def _everything(batch: BatchConfig) -> BatchConfig:
    """Validation leaves out no clip, however short or long, and pads as little as possible."""
    longest = batch.max_duration_s
    return BatchConfig(longest, min_clip_s=0.0, max_clip_s=math.inf, duration_jitter=0.0)
