"""What a pre-training run reads, from its configuration: index, batches, augmentation, loader.

`PretrainTask` trains with these, `spear bench data` times them. Whether the shard folders hold what
the configuration describes is checked here, when they are opened.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spear.data.index.clip_index import ClipIndex, SourceConfig
from spear.data.index.loader import BatchDataset, BatchLoader, open_noise
from spear.data.index.plan import BatchPlan
from spear.encoders.frame_grid import StudentFrames
from spear.errors import ConfigError, TokenError
from spear.pretrain.augment import Augmenter
from spear.pretrain.collate import Collator, PretrainBatch, TokenLayout
from spear.pretrain.config import PretrainConfig
from spear.pretrain.losses import required_teachers
from spear.pretrain.masking import MaskSampler
from spear.pretrain.model import TeacherTarget
from spear.system.files import sha256_of


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


def training_data(
    config: PretrainConfig, index: ClipIndex, keep_plans_in: Path | None = None
) -> tuple[BatchDataset, BatchPlan]:
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
    dataset = BatchDataset(index, make_collator(config), seed, "train", augmenter)
    plan = BatchPlan(index.table, seed, config.batch, growth_s=growth_s, keep_in=keep_plans_in)
    return dataset, plan


def make_loader(
    config: PretrainConfig, dataset: BatchDataset, plan: BatchPlan, num_workers: int
) -> BatchLoader[PretrainBatch]:
    """Returns the loader of a plan's batches, in page-locked memory where a GPU wants them."""
    pin_memory = config.train.device != "cpu" and torch.cuda.is_available()
    return BatchLoader(dataset, plan, num_workers, pin_memory)
