"""The pre-training task, as the training loop knows it: model, batches, schedules.

`PretrainTask` opens the shard folders, checks that their tokens are those that the configuration
describes, and serves the loop. Validation is masked like training, with masks that never change.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spear.audio.io import SAMPLE_RATE_HZ
from spear.config import to_dict
from spear.data.augment import Augmenter
from spear.data.clip_index import ClipIndex
from spear.data.collate import Collator, PretrainBatch, StudentFrames, TokenLayout
from spear.data.dataset import BatchDataset, BatchLoader, open_noise, token_counts
from spear.data.plan import BatchPlan
from spear.errors import ConfigError, TokenError
from spear.files import sha256_of
from spear.pretrain.config import PretrainConfig
from spear.pretrain.losses import required_teachers
from spear.pretrain.masking import MaskSampler
from spear.pretrain.model import PretrainModel, TeacherTarget
from spear.progress import get_logger
from spear.training import Position
from spear.zipformer import set_schedule

logger = get_logger(__name__)

SECONDS_PER_HOUR = 3600.0
PLANS = "plans"
"""Folder of a run in which the plan of the present epoch lies."""


class PretrainTask:
    """See `spear.training.task.Task`.

    Args:
        config: The whole configuration of the run.

    Attributes:
        model: The `PretrainModel`.

    Raises:
        ConfigError: The configuration contradicts itself or the data.
        DataError: A shard folder is missing or broken, or no clip is left.
        TokenError: Tokens are missing or not those that the configuration describes.
    """

    model: nn.Module

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        check_config(config)
        seed = config.train.seed
        required = required_teachers(
            config.loss.mode, {name: target.role for name, target in config.teachers.items()}
        )
        expected = {name: expected_tokens(name, t) for name, t in config.teachers.items()}
        index = ClipIndex(config.data, required, expected)
        collator = self._collator()
        rates_hz = {n: t.frame_rate_hz for n, t in config.teachers.items() if t.role == "speech"}
        augmenter = Augmenter(config.augment, rates_hz, open_noise(config.augment, index))
        plan = BatchPlan(
            index.table,
            seed,
            config.batch,
            growth_s=config.augment.growth_s if rates_hz else 0.0,
            keep_in=Path(config.train.output_dir) / PLANS,
        )
        self._train = self._loader(
            BatchDataset(index, collator, seed, "train", augmenter), plan, config.num_workers
        )
        self._valid: BatchLoader[PretrainBatch] | None = None
        if config.valid:
            held_out = ClipIndex(config.valid, required, expected)
            _point_out_overlap(index, held_out)
            self._valid = self._loader(
                BatchDataset(held_out, collator, seed, "valid"),
                BatchPlan(held_out.table, seed, config.batch),
                min(config.num_workers, 2),
            )
        # The weights depend on the seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = PretrainModel(
                config.student, config.teachers, config.loss, config.mask.channel_mask_value
            )
        self._model.set_checkpointing(config.activation_checkpointing)
        self.model = self._model
        self._set_baselines(index)
        self._describe(index)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters in one group."""
        return [{"named_params": list(self._model.named_parameters())}]

    def before_step(self, position: Position) -> bool:
        """Moves the student's schedules; nothing is ever frozen."""
        set_schedule(self._model, position.schedule)
        return False

    def steps_in_epoch(self, epoch: int, world_size: int) -> int:
        """Returns the number of steps of an epoch, equal on all ranks."""
        return self._train.plan.steps(epoch, world_size)

    def train_batches(
        self, epoch: int, start_step: int, rank: int, world_size: int
    ) -> Iterator[PretrainBatch]:
        """Yields this rank's batches of an epoch from step `start_step` on."""
        return self._train.train(epoch, start_step, rank, world_size)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[PretrainBatch]:
        """Yields this rank's share of the held-out clips; nothing without any."""
        return iter(()) if self._valid is None else self._valid.share(rank, world_size)

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the student and its heads."""
        teachers = {name: asdict(target) for name, target in self.config.teachers.items()}
        for teacher in teachers.values():
            del teacher["quantizer"]  # a path, which may change without changing the model
        return {"student": to_dict(self.config.student), "teachers": teachers}

    def describe_validation(self, metrics: dict[str, float]) -> str:
        """Returns accuracies per teacher, beside those of the most frequent tokens."""
        parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
        for name in self.config.teachers:
            if f"{name}_masked_accuracy" not in metrics:
                continue  # no held-out clip has tokens of this teacher
            found = {key: metrics.get(f"{name}_{key}", float("nan")) for key in RESULT_KEYS}
            parts.append(
                f"{name}: loss {found['loss']:.4f}, accuracy masked "
                f"{found['masked_accuracy']:.2%} (baseline {found['baseline_accuracy']:.2%}), "
                f"unmasked {found['unmasked_accuracy']:.2%}"
            )
        return "; ".join(parts)

    def _collator(self) -> Collator:
        config = self.config
        layouts = {
            name: TokenLayout.of_rate(
                name, target.frame_rate_hz, target.num_codebooks, target.codebook_size
            )
            for name, target in config.teachers.items()
        }
        num_mel_bins = config.student.feature_dim
        frames = StudentFrames(config.student.frontend_pad)
        return Collator(layouts, frames, MaskSampler(config.mask, num_mel_bins), num_mel_bins)

    def _loader(
        self, dataset: BatchDataset, plan: BatchPlan, num_workers: int
    ) -> BatchLoader[PretrainBatch]:
        pin_memory = self.config.train.device != "cpu" and torch.cuda.is_available()
        return BatchLoader(dataset, plan, num_workers, pin_memory)

    def _set_baselines(self, index: ClipIndex) -> None:
        """Finds the most frequent token of each codebook in the training data."""
        for name, target in self.config.teachers.items():
            counts = token_counts(
                index,
                name,
                num_codebooks=target.num_codebooks,
                codebook_size=target.codebook_size,
                max_clips=self.config.baseline_clips,
                seed=self.config.train.seed,
            )
            if not counts.any():
                logger.warning("no training clip has tokens of %s: its head learns nothing", name)
            frequent = torch.from_numpy(counts.argmax(axis=1))
            self._model.set_frequent_tokens(name, frequent)

    def _describe(self, index: ClipIndex) -> None:
        for domain, is_domain in (("speech", ~index.is_audio), ("audio", index.is_audio)):
            logger.info(
                "%s: %d clips, %.2f h",
                domain,
                int(is_domain.sum()),
                index.table.num_samples[is_domain].sum(dtype=np.uint64)
                / SAMPLE_RATE_HZ
                / SECONDS_PER_HOUR,
            )
        num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        logger.info("model: %.2f M parameters", num_parameters / 1e6)


RESULT_KEYS = ("loss", "masked_accuracy", "unmasked_accuracy", "baseline_accuracy")
"""What a validation says of each teacher; the tags are `{teacher}_{key}`."""


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


def _point_out_overlap(train: ClipIndex, held_out: ClipIndex) -> None:
    """Clips that are trained on and validated on make a validation worthless."""
    shared = train.shared_with(held_out)
    if len(shared):
        logger.warning(
            "%d of %d validation clips are training clips too, e.g. %s: accuracies are of little "
            "worth",
            len(shared),
            len(held_out),
            min(train.id(int(number)) for number in shared[:1000]),
        )
