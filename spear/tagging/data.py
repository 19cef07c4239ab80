"""Batches for tagging: labelled clips in, fbank and targets out.

Long training clips are cut to a random excerpt, clips are mixed, features masked. What is in a
batch depends on (seed, epoch, step, share, number of shares, data) alone, so neither the number of
workers nor a restart changes a value.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear.audio import LOG_EPS, SAMPLE_RATE_HZ, Fbank
from spear.data.index.loader import BatchDataset, BatchLoader, Place
from spear.data.index.plan import BatchConfig, BatchPlan
from spear.errors import ConfigError
from spear.finetune.data import FinetuneData, TensorBatch, every_clip
from spear.finetune.spec_augment import SpecAugment, SpecAugmentConfig
from spear.system.rng import generator
from spear.tagging.balance import BalanceConfig, balanced_table
from spear.tagging.clips import LabelledClips
from spear.tagging.labels import Classes, read_labels
from spear.tagging.mixup import MixupConfig, mixup

Floats = NDArray[np.float32]

SHORTEST_SAMPLES = SAMPLE_RATE_HZ // 10
"""Shorter recordings are followed by silence up to here: an encoder needs a frame or two."""


@dataclass
class TaggingDataConfig:
    """Which recordings to train and validate on, what they are labelled with, how they are read."""

    train: list[str] = field(default_factory=list)
    """Shard folders to train on."""
    valid: list[str] = field(default_factory=list)
    """Shard folders for loss and precision during training and mAP at its end; may be empty."""
    labels: list[str] = field(default_factory=list)
    """Files of lines `id label,label,...` with the labels of all these recordings."""
    classes: str | None = None
    """File of lines `label name`: the classes, their order and their names; none: all labels that
    occur, sorted."""
    train_ids: str | None = None
    """File of the ids of the training recordings; none: all in the folders."""
    valid_ids: str | None = None
    """File of the ids of the validation recordings; none: all in the folders."""
    skip_unlabelled: bool = False
    """Whether cuts without a line of labels are counted and left out; else they are an error."""
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(min_clip_s=0.0))
    """How training clips are put into batches; validation uses `max_duration_s` of it only."""
    crop_s: float = 10.0
    """Longer training clips are cut to a random excerpt of so many seconds, longer validation clips
    to their middle."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How classes share an epoch."""
    mixup: MixupConfig = field(default_factory=MixupConfig)
    """Mixing of training clips."""
    specaugment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Masks and warping of the training features."""
    num_workers: int = 2
    """Processes per rank that read and augment; 0 does it in the training process."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if not self.crop_s > 0:
            raise ConfigError(f"data.crop_s is {self.crop_s}: it must be above 0 seconds")
        if self.num_workers < 0:
            raise ConfigError(f"data.num_workers is {self.num_workers}: it must be 0 or more")


@dataclass
class TaggingBatch(TensorBatch):
    """One rank's batch.

    Attributes:
        ids: B cut ids.
        audio_s: Seconds of audio in it, without padding.
        fbank: (B, T, M) float32 log-mel, `LOG_EPS` beyond the lengths.
        fbank_lens: (B,) int64, valid fbank frames.
        targets: (B, C) float32, share of each class in each clip, 0 to 1.
    """

    ids: list[str]
    audio_s: float
    fbank: Tensor
    fbank_lens: Tensor
    targets: Tensor


class TaggingDataset(BatchDataset[TaggingBatch]):
    """Makes batches from rows of the plan.

    Args:
        clips: What is read.
        rows: (m,) the clip that each row of the plan stands for.
        config: Excerpts, mixing and masks.
        num_mel_bins: M, size of an fbank frame.
        seed: The run's seed.
        is_training: Whether clips are augmented.
    """

    def __init__(
        self,
        clips: LabelledClips,
        rows: NDArray[np.int64],
        config: TaggingDataConfig,
        *,
        num_mel_bins: int,
        seed: int,
        is_training: bool,
    ) -> None:
        self.clips = clips
        self.rows = rows
        self.crop_samples = round(config.crop_s * SAMPLE_RATE_HZ)
        self.mixup = config.mixup if is_training else MixupConfig(probability=0.0)
        self.specaugment = SpecAugment(config.specaugment) if is_training else None
        self.fbank = Fbank(num_mel_bins=num_mel_bins)
        self.seed = seed
        self.is_training = is_training

    def batch(self, place: Place, rows: Sequence[int]) -> TaggingBatch:
        """Reads, augments and collates clips; `place` decides all that is random."""
        numbers = self.rows[rows]
        rng = generator(self.seed, "tagging", *place)
        ids, audio = [], []
        for number in numbers:
            cut_id, samples = self.clips.read(number)
            ids.append(cut_id)
            audio.append(self._excerpt(samples, rng))
        audio_s = sum(map(len, audio)) / SAMPLE_RATE_HZ
        audio, targets = mixup(audio, self.clips.targets(numbers), self.mixup, rng)
        fbank, lens = self._features(audio, rng)
        return TaggingBatch(ids, audio_s, fbank, lens, torch.from_numpy(targets))

    def _excerpt(self, samples: Floats, rng: np.random.Generator) -> Floats:
        surplus = len(samples) - self.crop_samples
        if surplus <= 0:
            return samples
        start = int(rng.integers(surplus + 1)) if self.is_training else surplus // 2
        return samples[start : start + self.crop_samples]

    def _features(self, audio: Sequence[Floats], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Returns (B, T, M) float32 features, masked in training, and their (B,) lengths."""
        fbank, lens = compute_fbank(self.fbank, audio)
        if self.specaugment is None:
            return fbank, lens
        parts = [x[:n] for x, n in zip(fbank, lens.tolist(), strict=True)]
        masked = [self.specaugment(part, rng) for part in parts]
        return pad_sequence(masked, batch_first=True, padding_value=LOG_EPS), lens


def compute_fbank(fbank: Fbank, audio: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Computes the features of clips of any lengths; very short ones end in silence.

    Args:
        fbank: The filter bank.
        audio: B clips, each (S,) float32.

    Returns:
        (B, T, M) float32 and (B,) int64.
    """
    lens = torch.tensor([max(len(samples), SHORTEST_SAMPLES) for samples in audio])
    padded = torch.zeros(len(audio), int(lens.max()))
    for row, samples in enumerate(audio):
        padded[row, : len(samples)] = torch.from_numpy(np.ascontiguousarray(samples))
    features, feature_lens = fbank(padded, lens)
    return features, feature_lens


class TaggingData(FinetuneData[TaggingBatch]):
    """Training and validation batches of a run.

    Args:
        config: What to read and how.
        num_mel_bins: M, size of an fbank frame.
        seed: The run's seed.
        pin: Whether batches are put into page-locked memory, for a GPU.

    Attributes:
        classes: What is told apart.
        train: The training clips.
        valid: The validation clips, None where there are none.
    """

    def __init__(
        self, config: TaggingDataConfig, *, num_mel_bins: int, seed: int, pin: bool = False
    ) -> None:
        self.config = config
        self.seed = seed
        labels = read_labels(config.labels)
        if config.classes is None:
            self.classes = Classes.of(label for own in labels.values() for label in own)
        else:
            self.classes = Classes.load(config.classes)

        def clips(folders: list[str], ids: str | None, purpose: str) -> LabelledClips:
            return LabelledClips(
                folders,
                labels,
                self.classes,
                ids=ids,
                skip_unlabelled=config.skip_unlabelled,
                purpose=purpose,
            )

        self.train = clips(config.train, config.train_ids, "train")
        self.valid = clips(config.valid, config.valid_ids, "valid") if config.valid else None
        valid = None
        if self.valid is not None:
            valid = self._loader(self.valid, num_mel_bins, pin, is_training=False)
        super().__init__(self._loader(self.train, num_mel_bins, pin, is_training=True), valid)

    def _loader(
        self, clips: LabelledClips, num_mel_bins: int, pin: bool, is_training: bool
    ) -> BatchLoader[TaggingBatch]:
        config = self.config
        shortened = np.minimum(clips.num_samples, round(config.crop_s * SAMPLE_RATE_HZ))
        balance = config.balance if is_training else BalanceConfig()
        table, rows = balanced_table(shortened.astype(np.uint32), clips.members, balance)
        dataset = TaggingDataset(
            clips,
            rows,
            config,
            num_mel_bins=num_mel_bins,
            seed=self.seed,
            is_training=is_training,
        )
        batch = config.batch if is_training else every_clip(config.batch)
        return BatchLoader(dataset, BatchPlan(table, self.seed, batch), config.num_workers, pin)

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON, what decides which training batches come and what is in them."""
        config = self.config
        parts = ("batch", "balance", "mixup", "specaugment")
        settings = {name: dataclasses.asdict(getattr(config, name)) for name in parts}
        return {
            "clips": self.train.fingerprint,
            "crop_s": config.crop_s,
            "seed": self.seed,
            **settings,
        }
