"""A task of a few hundred parameters for the tests of the loop; also a script for torchrun.

Its global batches do not depend on the number of processes, and are shared out unequally: so the
same run can be done by one process and by two. Some batches have nothing for the second term.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spear.optim import OptimConfig
from spear.system.progress import setup_logging
from spear.training import LossTerm, Metric, Position, StepOutput, TrainConfig, train

DIM = 6


@dataclass
class ToyBatch:
    ids: list[str]
    inputs: Tensor
    targets: Tensor
    is_audio: Tensor

    @property
    def audio_s(self) -> float:
        return 2.5 * len(self.ids)

    def to(self, device: torch.device) -> "ToyBatch":
        tensors = (self.inputs.to(device), self.targets.to(device), self.is_audio.to(device))
        return ToyBatch(self.ids, *tensors)


class ToyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.encoder = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(dropout), nn.Linear(DIM, DIM))
        self.speech_head = nn.Linear(DIM, 3)
        self.audio_head = nn.Linear(DIM, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, batch: ToyBatch) -> StepOutput:
        if self.training:
            self.seen += 1
        hidden = self.encoder(batch.inputs).tanh() * self.scale
        speech = (self.speech_head(hidden) - batch.targets).square().sum()
        audio = (self.audio_head(hidden) - batch.targets).abs().sum(1) * batch.is_audio
        count = torch.tensor(float(len(batch.ids)))
        terms = {
            "speech": LossTerm(speech, count),
            "audio": LossTerm(audio.sum(), batch.is_audio.sum(), weight=0.1),
        }
        return StepOutput(terms, {"size": Metric(hidden.detach().abs().mean(1).sum(), count)})


class ToyTask:
    """Options that matter: bad_steps and bad_on_rank (NaN inputs there), signal_at ((step, rank):
    the process sends itself SIGUSR1 while that batch is made), step_s (sleep), hang_at (sleep for
    ever), spikes (targets that make the loss jump), corpus (identity of the data)."""

    def __init__(self, **options: Any) -> None:
        self.options = {
            "dropout": 0.0,
            "freeze_steps": 0,
            "bad_steps": [],
            "bad_on_rank": None,
            "step_s": 0.0,
            "steps_in_epoch": 7,
            "width": DIM,
            "signal_at": None,
            "hang_at": None,
            "spikes": [],
            "corpus": "toys",
            "valid_steps": 3,
            "short_epoch": False,
            **options,
        }
        self.model: nn.Module = ToyModel(self.options["dropout"])
        self.starts: list[tuple[int, int]] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        named = list(self.model.named_parameters())
        encoder = [pair for pair in named if pair[0].startswith("encoder")]
        rest = [pair for pair in named if not pair[0].startswith("encoder")]
        return [{"named_params": encoder, "lr_scale": 0.5}, {"named_params": rest}]

    def before_step(self, position: Position) -> bool:
        trainable = position.step >= self.options["freeze_steps"]
        encoder = list(self.model.encoder.parameters())
        changed = encoder[0].requires_grad != trainable
        for parameter in encoder:
            parameter.requires_grad_(trainable)
        return changed

    def steps_in_epoch(self, epoch: int, world_size: int) -> int:
        return self.options["steps_in_epoch"]

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[ToyBatch]:
        self.starts.append((epoch, start_step))
        for step in range(start_step, self.options["steps_in_epoch"]):
            time.sleep(self.options["step_s"])
            if self.options["short_epoch"] and step == 3:
                return
            for number in shares:
                yield self._batch(epoch, step, number, num_shares)

    def _batch(self, epoch: int, step: int, number: int, num_shares: int) -> ToyBatch:
        batch = share(global_batch(epoch, step), number, num_shares)
        overall = epoch * self.options["steps_in_epoch"] + step
        if self.options["signal_at"] == (overall, number):
            os.kill(os.getpid(), signal.SIGUSR1)
        if overall == self.options["hang_at"] and self.options["bad_on_rank"] in (None, number):
            time.sleep(3600.0)
        if overall in self.options["bad_steps"] and self.options["bad_on_rank"] in (None, number):
            batch.inputs[0, 0] = float("nan")
        if overall in self.options["spikes"]:
            batch.targets *= 1e4
        return batch

    def loss_counts(self, batch: ToyBatch) -> dict[str, float]:
        return {"speech": float(len(batch.ids)), "audio": float(batch.is_audio.sum())}

    def data_config(self) -> dict[str, Any]:
        return {"corpus": self.options["corpus"]}

    def valid_batches(self, rank: int, world_size: int) -> Iterator[ToyBatch]:
        for step in range(
            rank, self.options["valid_steps"], world_size
        ):  # unequal numbers for two ranks
            yield global_batch(10_000, step)

    def model_config(self) -> dict[str, Any]:
        return {"family": "toy", "sizes": {"width": self.options["width"], "heads": (3, 3)}}


def global_batch(epoch: int, step: int) -> ToyBatch:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((epoch, step))))
    num_items = 4 + int(rng.integers(5))
    inputs = torch.from_numpy(rng.standard_normal((num_items, DIM))).float()
    is_audio = torch.zeros(num_items)
    if step % 3 != 0:  # every third global batch has no audio at all
        is_audio[-2:] = 1.0  # and otherwise only the last rank has some
    ids = [f"cut-{epoch}-{step}-{i}" for i in range(num_items)]
    return ToyBatch(ids, inputs, inputs[:, :3].sin() * 0.7, is_audio)


def share(batch: ToyBatch, rank: int, world_size: int) -> ToyBatch:
    """Rank 0 of two gets one item, the other the rest."""
    if world_size == 1:
        return batch
    part = slice(0, 1) if rank == 0 else slice(1, None)
    return ToyBatch(batch.ids[part], batch.inputs[part], batch.targets[part], batch.is_audio[part])


def config_for(folder: Any, **values: Any) -> TrainConfig:
    """A configuration for short runs: everything happens often."""
    given = {
        "output_dir": str(folder),
        "max_steps": 20,
        "log_every": 4,
        "valid_every": 8,
        "save_every": 5,
        "keep_last": 3,
        "averaging_every": 2,
        "device": "cpu",
        "tensorboard": False,
        "optim": OptimConfig(base_lr=0.03, warmup_batches=5.0),
        **values,
    }
    return TrainConfig(**given)


def main() -> None:
    """Runs as `toy_task.py '{"train": {...}, "task": {...}}'`."""
    torch.set_num_threads(1)
    setup_logging()
    arguments = json.loads(sys.argv[1])
    folder = arguments["train"].pop("output_dir")
    print("pid", os.getpid(), flush=True)  # noqa: T201
    train(ToyTask(**arguments["task"]), config_for(folder, **arguments["train"]), arguments)


if __name__ == "__main__":
    main()
