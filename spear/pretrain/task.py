"""The pre-training task, as the training loop knows it: model, batches, schedules.

`PretrainTask` opens the shard folders, checks that their tokens are those that the configuration
describes, and serves the loop. Validation is masked like training, with masks that never change.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spear.audio.io import SAMPLE_RATE_HZ
from spear.config import to_dict
from spear.data.index.clip_index import ClipIndex
from spear.data.index.loader import BatchLoader
from spear.data.index.plan import BatchPlan
from spear.pretrain.collate import PretrainBatch
from spear.pretrain.config import PretrainConfig
from spear.pretrain.model import PretrainModel
from spear.pretrain.reading import (
    PretrainDataset,
    check_config,
    make_collator,
    make_loader,
    open_index,
    token_counts,
    training_data,
)
from spear.system.progress import get_logger
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
        index = open_index(config, config.data)
        self._fingerprints = [folder.fingerprint for folder in index.folders]
        dataset, plan = training_data(config, index, Path(config.train.output_dir) / PLANS)
        self._train = make_loader(config, dataset, plan, config.num_workers)
        self._valid: BatchLoader[PretrainBatch] | None = None
        if config.valid:
            held_out = open_index(config, config.valid)
            _point_out_overlap(index, held_out)
            unaugmented = PretrainDataset(held_out, make_collator(config), seed, "valid")
            whole = BatchPlan(held_out.table, seed, config.batch)
            self._valid = make_loader(config, unaugmented, whole, min(config.num_workers, 2))
        # The weights depend on the seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = PretrainModel(
                config.student, config.teachers, config.loss, config.mask.channel_mask_value
            )
        self._model.encoder.set_checkpointing(config.activation_checkpointing)
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

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of steps of an epoch, equal on all ranks."""
        return self._train.plan.steps(epoch, num_shares)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[PretrainBatch]:
        """Yields this rank's batches of an epoch from step `start_step` on."""
        return self._train.train(epoch, start_step, shares, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[PretrainBatch]:
        """Yields this rank's share of the held-out clips; nothing without any."""
        return iter(()) if self._valid is None else self._valid.share(rank, world_size)

    def longest_batch(self, epoch: int, num_shares: int) -> PretrainBatch:
        """Makes the batch of an epoch that is largest with its padding."""
        return self._train.longest(epoch, num_shares)

    def loss_counts(self, batch: PretrainBatch) -> dict[str, float]:
        """Returns, per teacher, the targets of a batch: valid frames times codebooks."""
        return {
            name: float(batch.valid_frames[name].numel() * target.num_codebooks)
            for name, target in self.config.teachers.items()
        }

    def data_config(self) -> dict[str, Any]:
        """Returns what decides which batches come and what is in them.

        Content and weights of the folders, limits, masks, augmentation and seed; no paths, since
        data may be moved.
        """
        config = self.config
        return {
            "sources": [
                [content, source.weight]
                for content, source in zip(self._fingerprints, config.data, strict=True)
            ],
            "batch": to_dict(config.batch),
            "mask": to_dict(config.mask),
            "augment": {**to_dict(config.augment), "noise_folder": None},
            "mode": config.loss.mode,
            "seed": config.train.seed,
        }

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
                f"unmasked {found['unmasked_accuracy']:.2%}, knows "
                f"{found['information(bits)']:.2f} bits a frame"
            )
        return "; ".join(parts)

    def _set_baselines(self, index: ClipIndex) -> None:
        """Counts the tokens of the training data: what the student must know better."""
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
            self._model.set_token_counts(name, counts)

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


RESULT_KEYS = (
    "loss",
    "masked_accuracy",
    "unmasked_accuracy",
    "baseline_accuracy",
    "information(bits)",
)
"""What a validation says of each teacher; the tags are `{teacher}_{key}`."""


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
