"""Everything of a run that a checkpoint holds, and the way into it and back.

Model, running average, optimiser, schedule, position and counters: after `restore` a run goes on
with the bits that it would have had. What is random is drawn from the position (`seed_batch`), and
which cuts come next from the position and the data, whose identity is stored and compared.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spear.errors import CheckpointError, ConfigError
from spear.optim import build_optimizer
from spear.system.differences import describe_differences
from spear.system.distributed import Ranks
from spear.system.weights import load_exact
from spear.training.checkpoints import checkpoint as checkpoints
from spear.training.checkpoints.averaging import RunningAverage
from spear.training.checkpoints.sharding import gather_on_main, shard_like, shard_model
from spear.training.config import TrainConfig
from spear.training.health.health import BadBatches
from spear.training.health.step_verdict import Verdicts
from spear.training.logs.clock import Clock
from spear.training.logs.metrics import MetricSums
from spear.training.position import Position
from spear.training.task import HasData, Task


class RunState:
    """The state of one run of one task on this rank.

    Args:
        task: What to train; its model is moved to the device.
        config: How.
        ranks: The processes of the run.

    Attributes:
        batches_in_step: Batches of a step over all ranks: processes times `accumulate`. It decides
            what order the data come in, and stays the same for the whole run.
    """

    def __init__(self, task: Task, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.folder = Path(config.output_dir)
        self.is_sharded = config.sharding == "fsdp"
        self.model: nn.Module = task.model.to(ranks.device)
        if self.is_sharded:
            shard_model(self.model, ranks, bf16=config.precision == "bf16")
        self.optimizer, self.scheduler = build_optimizer(task.parameter_groups(), config.optim)
        keeps_average = ranks.is_main or self.is_sharded
        self.average = RunningAverage(self.model) if keeps_average else None
        self.position = Position(schedule_unit_s=config.schedule_unit_s)
        self.batches_in_step = ranks.world_size * config.accumulate
        self.sums = MetricSums(ranks)
        self.bad_batches = BadBatches(
            self.folder / "bad_batches.jsonl", config.max_nonfinite_steps, ranks
        )
        self.verdicts = Verdicts(ranks, self.bad_batches, config.spike_factor)
        self.clock = Clock()
        self.model_config: dict[str, Any] = _as_json(task.model_config())
        data = task.data_config() if isinstance(task, HasData) else {}
        self.data_config: dict[str, Any] = _as_json(data)

    def move_schedule(self) -> None:
        """Sets the learning rate of the present position."""
        self.scheduler.step_batch(self.position.step)
        self.scheduler.step_epoch(self.position.audio_hours)

    def content(self) -> checkpoints.CheckpointContent | None:
        """Returns what a checkpoint holds, on rank 0; every rank calls this."""
        self.verdicts.read()
        sums = self.sums.state_dict()
        tensors: dict[str, Any] = {
            "model": self.model.state_dict(),
            "averaged": {} if self.average is None else self.average.values,
            "optimizer": {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            },
        }
        if self.is_sharded:
            tensors = gather_on_main(tensors, self.ranks)
        if not self.ranks.is_main:
            return None
        assert self.average is not None
        state = {
            "position": self.position.to_dict(),
            "batches_in_step": self.batches_in_step,
            "num_averaged": self.average.num_updates,
            "bad_batches": self.bad_batches.state_dict(),
            "spikes": self.verdicts.spikes.state_dict(),
            "metric_sums": sums,
            "elapsed_s": self.clock.elapsed_s,
            "torch_version": torch.__version__,
            "data": self.data_config,
        }
        return checkpoints.CheckpointContent(**tensors, state=state, config=self.model_config)

    def restore(self, path: Path) -> None:
        """Restores everything from a checkpoint.

        Raises:
            ConfigError: It is of another model, other data, or another number of batches a step.
            CheckpointError: Its files do not fit the model or the optimiser.
        """
        state = checkpoints.load_state(path)
        self._refuse_others(checkpoints.load_config(path), state)
        model_file = path / checkpoints.MODEL
        whole = checkpoints.load_part(path, checkpoints.MODEL)
        weights = shard_like(whole, self.model.state_dict())
        load_exact(self.model, weights, str(model_file))
        saved = checkpoints.load_optimizer(path)
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit the optimiser: {error}") from error
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.average is not None:
            averaged = checkpoints.load_part(path, checkpoints.AVERAGED)
            own = self.average.values
            self.average.load(shard_like(averaged, own), state["num_averaged"])
        self.position = Position(**state["position"], schedule_unit_s=self.config.schedule_unit_s)
        self.sums.load_state_dict(state["metric_sums"])
        self.bad_batches.load_state_dict(state["bad_batches"])
        self.verdicts.spikes.load_state_dict(state["spikes"])
        self.clock = Clock(state["elapsed_s"])

    def _refuse_others(self, model_config: dict[str, Any], state: dict[str, Any]) -> None:
        for what, before, now in (
            ("model", model_config, self.model_config),
            ("data", state["data"], self.data_config),
        ):
            if differences := describe_differences(before, now):
                raise ConfigError(
                    f"{self.folder} holds a run with other settings of the {what} "
                    f"({'; '.join(differences)}): choose another output_dir, or the {what} that "
                    "it was begun with"
                )
        saved = state["batches_in_step"]
        if saved != self.batches_in_step:
            size, accumulate = self.ranks.world_size, self.config.accumulate
            fitting = (
                f"train.accumulate {saved // size}"
                if saved % size == 0
                else f"a number of processes that divides {saved}"
            )
            raise ConfigError(
                f"{self.folder} holds a run of {saved} batches a step, and {size} processes x "
                f"train.accumulate {accumulate} make {self.batches_in_step}: the order of the data "
                f"would be another; use {fitting}"
            )


def seed_batch(seed: int, step: int, share: int) -> None:
    """Seeds torch's default generators, of all devices, for one batch.

    So what is drawn depends neither on what was drawn before, nor on the number of processes, nor
    on restarts. There is no generator state to save.

    Args:
        seed: The run's seed.
        step: Steps done before.
        share: Which of the step's batches, over all ranks.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{share}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint gives it back: tuples are lists."""
    result: dict[str, Any] = json.loads(json.dumps(content))
    return result
