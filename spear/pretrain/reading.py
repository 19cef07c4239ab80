"""What a pre-training run reads, from its configuration: index, batches, augmentation, loader.

`PretrainTask` trains with these, `spear bench` times them. Whether the shard folders hold what
the configuration describes is checked here, when they are opened.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear.audio.noise import NoiseSource, RecordedNoise, SyntheticNoise
from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.loader import BatchDataset, BatchLoader, Place
from spear.data.index.plan import BatchPlan
from spear.encoders.frame_grid import StudentFrames
from spear.errors import ConfigError, TokenError
from spear.mvq.usage import count_codes
from spear.pretrain.augment import AugmentConfig, Augmenter
from spear.pretrain.collate import Collator, Example, PretrainBatch, TokenLayout
from spear.pretrain.config import PretrainConfig
from spear.pretrain.losses import required_teachers
from spear.pretrain.masking import MaskSampler
from spear.pretrain.model import TeacherTarget
from spear.system.files import sha256_of
from spear.system.progress import get_logger
from spear.system.rng import generator

logger = get_logger(__name__)


def check_config(config: PretrainConfig) -> None:
    """Refuses configurations that cannot work, before any data is opened.

    Raises:
        ConfigError: No teacher, a name that cannot be a parameter's, or a student whose frames
            are not 20 ms apart.
    """
    if not config.teachers:
        raise ConfigError("teachers is empty: name at least one teacher and its tokens")
    for name in config.teachers:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ConfigError(
                f"teachers.{name}: a teacher's name may have letters, digits, '_' and '-' only"
            )
    if config.student.output_downsampling_factor != 1:
        raise ConfigError(
            "student.output_downsampling_factor must be 1: targets are predicted at 50 Hz"
        )
    if config.num_workers < 0 or config.baseline_clips < 1:
        raise ConfigError("num_workers must be 0 or more, baseline_clips 1 or more")


def open_index(
    config: PretrainConfig, sources: Sequence[SourceConfig], num_jobs: int = 1
) -> ClipIndex:
    """Opens shard folders and checks that they have the tokens that the run asks for.

    Raises:
        ConfigError: There is no source.
        DataError: A folder is missing or broken.
        TokenError: Tokens are missing, or not those that the configuration describes.
    """
    required = required_teachers(
        config.loss.mode, {name: target.role for name, target in config.teachers.items()}
    )
    expected = {name: expected_tokens(name, t) for name, t in config.teachers.items()}
    return ClipIndex(sources, required, expected, num_jobs)


def expected_tokens(name: str, target: TeacherTarget) -> Mapping[str, Any]:
    """Returns what the sidecars of a teacher's tokens must say, by `TokenSidecar`'s fields.

    Raises:
        TokenError: The quantiser's file is missing.
    """
    expected: dict[str, Any] = {
        "num_codebooks": target.num_codebooks,
        "codebook_size": target.codebook_size,
        "frame_rate_hz": target.frame_rate_hz,
    }
    if target.quantizer is not None:
        path = Path(target.quantizer)
        if not path.is_file():
            raise TokenError(f"teachers.{name}.quantizer: no such file {path}")
        expected["quantizer_sha256"] = sha256_of(path)
    return expected


def make_collator(config: PretrainConfig) -> Collator:
    """Returns what turns clips into batches of the student's features, masks and targets."""
    layouts = {
        name: TokenLayout.of_rate(
            name, target.frame_rate_hz, target.num_codebooks, target.codebook_size
        )
        for name, target in config.teachers.items()
    }
    num_mel_bins = config.student.feature_dim
    frames = StudentFrames(config.student.frontend_pad)
    return Collator(layouts, frames, MaskSampler(config.mask, num_mel_bins), num_mel_bins)


class PretrainDataset(BatchDataset[PretrainBatch]):
    """Batches of the pre-training task.

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

    def batch(self, place: Place, numbers: Sequence[int]) -> PretrainBatch:
        """See `BatchDataset`."""
        examples = [read_example(self.index, number) for number in numbers]
        audio_s = self.index.duration_s(numbers)
        if self.augmenter is not None:
            augmenting = generator(self.seed, f"{self.purpose}/augment", *place)
            examples = self.augmenter(examples, augmenting)
        masks = generator(self.seed, f"{self.purpose}/mask", *place)
        return self.collator(examples, audio_s, masks)


def read_example(index: ClipIndex, number: int) -> Example:
    """Reads a clip with the tokens that its domain requires.

    Raises:
        SpearError: It cannot be read.
    """
    cut_id, audio = index.clip(number)
    tokens = {teacher: index.tokens(number, teacher) for teacher in index.teachers_of(number)}
    return Example(cut_id, audio, bool(index.is_audio[number]), tokens)


def open_noise(config: AugmentConfig, index: ClipIndex) -> NoiseSource:
    """Builds the source of noise that a configuration asks for.

    Raises:
        ConfigError: The run has no clips of general audio, and noise is to come from them.
        DataError: The noise folder is missing or broken.
    """
    if config.noise_source == "folder":
        assert config.noise_folder is not None
        index = ClipIndex([SourceConfig(config.noise_folder)])
        return RecordedNoise(np.arange(len(index)), index.clip)
    numbers = np.flatnonzero(index.is_audio)
    if config.noise_source == "audio" and not len(numbers):
        raise ConfigError(
            "augment.noise_source is audio, but no source has clips of general audio: use "
            "synthetic, or folder with augment.noise_folder"
        )
    if config.noise_source == "synthetic" or not len(numbers):
        logger.info("noise is synthetic")
        return SyntheticNoise()
    return RecordedNoise(numbers, index.clip)


def training_data(
    config: PretrainConfig, index: ClipIndex, keep_plans_in: Path | None = None
) -> tuple[PretrainDataset, BatchPlan]:
    """Returns the augmented batches of a run, and which clips form them.

    Args:
        config: The run.
        index: The clips of `config.data`.
        keep_plans_in: Folder in which plans of epochs are kept; None keeps none.

    Raises:
        ConfigError: Noise cannot come from where the configuration says, or a clip does not fit
            into a batch.
        DataError: No clip is left within the limits.
    """
    rates_hz = {n: t.frame_rate_hz for n, t in config.teachers.items() if t.role == "speech"}
    augmenter = Augmenter(config.augment, rates_hz, open_noise(config.augment, index))
    seed = config.train.seed
    growth_s = config.augment.growth_s if rates_hz else 0.0
    dataset = PretrainDataset(index, make_collator(config), seed, "train", augmenter)
    plan = BatchPlan(index.table, seed, config.batch, growth_s=growth_s, keep_in=keep_plans_in)
    return dataset, plan


def make_loader(
    config: PretrainConfig, dataset: PretrainDataset, plan: BatchPlan, num_workers: int
) -> BatchLoader[PretrainBatch]:
    """Returns the loader of a plan's batches, in page-locked memory where a GPU wants them."""
    pin_memory = config.train.device != "cpu" and torch.cuda.is_available()
    return BatchLoader(dataset, plan, num_workers, pin_memory)


def token_counts(
    index: ClipIndex,
    teacher: str,
    *,
    num_codebooks: int,
    codebook_size: int,
    max_clips: int,
    seed: int,
) -> Tensor:
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
    counts = torch.zeros(num_codebooks, codebook_size, dtype=torch.int64)
    for number in numbers.tolist():
        tokens = index.tokens(number, teacher)
        if tokens.shape[1:] != (num_codebooks,) or tokens.max(initial=0) >= codebook_size:
            raise TokenError(
                f"cut {index.id(number)}, teacher {teacher}: tokens of shape {tokens.shape} and "
                f"up to {tokens.max(initial=0)}, expected {num_codebooks} codebooks of "
                f"{codebook_size}"
            )
        counts += count_codes(torch.from_numpy(tokens), codebook_size)
    return counts
