"""Batches for speech recognition: shards with transcripts in, fbank and token ids out.

`AsrData` reads shard folders whose cuts have transcripts, asks `BatchPlan` which clips form which
batch, and lets workers read, perturb, compute features and augment. What is in a batch depends on
(seed, epoch, step, rank, world size, data) alone: every clip has its own generator, so neither the
number of workers nor a restart changes a value.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear.asr.batch import AsrBatch
from spear.asr.consistency import ConsistencyConfig
from spear.asr.tokenizer import Tokenizer
from spear.asr.train.augment import check_speeds, perturb_speed
from spear.asr.train.noise import NoiseConfig, open_noise
from spear.audio import LOG_EPS, Fbank
from spear.data.index.clip_table import ClipTable
from spear.data.index.loader import BatchDataset, BatchLoader, Place
from spear.data.index.plan import BatchConfig, BatchPlan
from spear.data.index.shard_folder import ShardFolder
from spear.errors import DataError
from spear.finetune.data import FinetuneData, every_clip
from spear.finetune.spec_augment import SpecAugment, SpecAugmentConfig
from spear.system.progress import get_logger
from spear.system.rng import generator

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
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Recorded noise under the training clips."""
    specaugment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Masks and warping of the training features."""
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    """Consistency-regularised CTC: every training clip comes in two differently masked copies."""
    num_workers: int = 2
    """Processes per rank that read and augment; 0 does it in the training process."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        self.speeds = tuple(self.speeds)
        check_speeds(self.speeds)


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
        found = [(folder, info) for folder in map(ShardFolder, folders) for info in folder]
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


class Augmentation:
    """All that happens to a training clip, from its samples to its copies.

    Args:
        config: What to do.
    """

    def __init__(self, config: AsrDataConfig) -> None:
        self.speeds = config.speeds
        self.noise = open_noise(config.noise)
        self.num_copies = config.consistency.num_copies
        self.specaugment = SpecAugment(config.consistency.scale_masks(config.specaugment))

    def samples(self, audio: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
        """Changes the speed of (S,) float32 samples and adds noise."""
        audio = perturb_speed(audio, self.speeds, rng)
        return audio if self.noise is None else self.noise(audio, name, rng)

    def features(self, fbank: Tensor, rng: np.random.Generator) -> list[Tensor]:
        """Masks features (T, M), once for each copy."""
        return self.specaugment.copies(fbank, self.num_copies, rng)


class AsrDataset(BatchDataset[AsrBatch]):
    """Makes batches of transcribed clips.

    Args:
        cuts: What the clip numbers mean.
        tokenizer: Turns transcripts into labels.
        num_mel_bins: M, size of an fbank frame.
        seed: The run's seed.
        augment: Where speeds, noise, masks and copies come from; None leaves clips as they are.
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
        self.augment = None if augment is None else Augmentation(augment)

    def batch(self, place: Place, numbers: Sequence[int]) -> AsrBatch:
        """Reads, augments and collates clips; a clip's augmentation is drawn anew every epoch."""
        num_copies = 1 if self.augment is None else self.augment.num_copies
        num_samples, copies = 0, []
        for number in numbers:
            samples, features = self._clip(number, generator(self.seed, "asr", place.epoch, number))
            num_samples += len(samples)
            copies.append(features)
        rows = [features for one in zip(*copies, strict=True) for features in one]
        numbers = [*numbers] * num_copies
        tokens = [torch.tensor(self.tokens[number], dtype=torch.int64) for number in numbers]
        return AsrBatch(
            ids=[self.cuts.infos[number].id for number in numbers],
            audio_s=num_samples / SAMPLE_RATE_HZ,
            fbank=pad_sequence(rows, batch_first=True, padding_value=LOG_EPS),
            fbank_lens=torch.tensor([len(fbank) for fbank in rows]),
            tokens=pad_sequence(tokens, batch_first=True),
            token_lens=torch.tensor([len(labels) for labels in tokens]),
            texts=[self.cuts.texts[number] for number in numbers],
            num_copies=num_copies,
        )

    def _clip(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Tensor]]:
        """Returns the samples (S,) of a clip as heard, and its copies, each (T, M)."""
        samples = self.cuts.audio(number)
        if self.augment is None:
            return samples, [self._fbank(samples)]
        samples = self.augment.samples(samples, self.cuts.infos[number].id, rng)
        return samples, self.augment.features(self._fbank(samples), rng)

    def _fbank(self, samples: np.ndarray) -> Tensor:
        """(S,) float32 -> (T, M)."""
        audio = torch.from_numpy(np.ascontiguousarray(samples)).unsqueeze(0)
        fbank: Tensor = self.fbank(audio, torch.tensor([len(samples)]))[0][0]
        return fbank


class AsrData(FinetuneData[AsrBatch]):
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

        valid = None
        if config.valid:
            cuts = TranscribedCuts(config.valid, "valid", config.skip_untranscribed)
            valid = loader(cuts, every_clip(config.batch), None)
        super().__init__(loader(train, _room_for_augmentation(config), config), valid)
        self.config = config
        self.seed = seed

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, what decides which training batches come and what is in them."""
        config = self.config
        return {
            "sources": [ShardFolder(folder).fingerprint for folder in config.train],
            "batch": dataclasses.asdict(config.batch),
            "speeds": list(config.speeds),
            "noise": _noise_identity(config.noise),
            "consistency": dataclasses.asdict(config.consistency),
            "specaugment": dataclasses.asdict(config.specaugment),
            "skip_untranscribed": config.skip_untranscribed,
            "seed": self.seed,
        }


def _noise_identity(config: NoiseConfig) -> dict[str, Any]:
    """Returns what decides the noise: the recordings, not where they lie."""
    sources = [ShardFolder(folder).fingerprint for folder in config.shards]
    return {**dataclasses.asdict(config), "shards": sources}


def _room_for_augmentation(config: AsrDataConfig) -> BatchConfig:
    """Lowers a batch's limit so that it holds with all copies at the slowest speed."""
    limit = config.batch.max_duration_s * min(1.0, *config.speeds) / config.consistency.num_copies
    return dataclasses.replace(config.batch, max_duration_s=limit)
