"""The training loop: it runs alone or under torchrun, and knows no task.

`Trainer.run` is the whole of it: batches of the rest of the epoch, a step each, and after a step
whatever is due. Everything that the next step depends on is in the checkpoint, so a run that was
killed and started again by the same command ends with the bits of one that was not.
"""

import contextlib
import gc
import json
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spear.distributed import Ranks, join_ranks
from spear.errors import CheckpointError, ConfigError, SpearError
from spear.files import remove_partials, write_text
from spear.optim import build_optimizer
from spear.progress import get_logger
from spear.training import checkpoint as checkpoints
from spear.training.averaging import RunningAverage
from spear.training.clock import Clock
from spear.training.config import TrainConfig
from spear.training.differences import describe_differences
from spear.training.health import BadBatches, StopRequest, Verdict, agree, gradient_norm
from spear.training.loss import LossNormalizer
from spear.training.metrics import MetricSums, MetricWriter, describe_values, drop_after
from spear.training.position import Position
from spear.training.report import write_report
from spear.training.task import Batch, DescribesValidation, StepOutput, Task
from spear.training.validation import autocast, evaluate

_logger = get_logger(__name__)


def train(task: Task, config: TrainConfig, resolved_config: dict[str, Any] | None = None) -> None:
    """Trains a task until `config.max_steps`, or goes on with a run that was interrupted.

    Args:
        task: What to train. Its model lies on the CPU or on the right device already.
        config: How.
        resolved_config: The command's whole configuration, written to `config.yaml`.

    Raises:
        ConfigError: The run folder holds a run of another model, or the device does not exist.
        CheckpointError: No checkpoint of the run is intact.
        SpearError: Too many steps in a row were not finite, or the task broke its protocol.
        SystemExit: A signal asked to stop; the run is saved, and the status is 128 + signal.
    """
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    group = join_ranks(config.device, config.backend, config.distributed_timeout_s)
    with group as ranks, StopRequest() as stop:
        Trainer(task, config, ranks, stop).run(resolved_config)


class Trainer:
    """One run of one task on this rank.

    Args:
        task: What to train.
        config: How.
        ranks: The processes of the run.
        stop: Says when a signal asked to stop.
    """

    def __init__(self, task: Task, config: TrainConfig, ranks: Ranks, stop: StopRequest) -> None:
        self.task, self.config, self.ranks, self.stop = task, config, ranks, stop
        self.folder = Path(config.output_dir)
        self.device, self.use_bf16 = ranks.device, config.precision == "bf16"
        self.model = task.model.to(self.device)
        self.optimizer, self.scheduler = build_optimizer(task.parameter_groups(), config.optim)
        self.average = RunningAverage(self.model) if ranks.is_main else None
        self.model_config: dict[str, Any] = json.loads(json.dumps(task.model_config()))
        self.position = Position(schedule_unit_s=config.schedule_unit_s)
        self.normalize = LossNormalizer(ranks)
        self.sums = MetricSums(ranks)
        self.bad_batches = BadBatches(
            self.folder / "bad_batches.jsonl", config.max_nonfinite_steps, ranks
        )
        self.clock = Clock()
        self.writer: MetricWriter
        self.forward: nn.Module | None = None
        self.saved_step = -1

    def run(self, resolved_config: dict[str, Any] | None = None) -> None:
        """Trains until `max_steps`, or until a signal."""
        self._resume_or_start()
        self._describe_run(resolved_config)
        if self._is_complete:
            _logger.info("%s is complete already: step %d", self.folder, self.position.step)
        with contextlib.closing(self.writer), contextlib.closing(self._batches()) as batches:
            for batch in batches:
                verdict = self._train_step(batch)
                self._do_what_is_due(verdict)
        self._finish()

    def _train_step(self, batch: Batch) -> Verdict:
        """Forward, backward, agreement of all ranks, update."""
        if self.task.before_step(self.position) or self.forward is None:
            self.forward = self._wrap()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.use_bf16):
            output: StepOutput = self.forward(batch.to(self.device))
        loss, audio_s = self.normalize(output.terms, batch.audio_s)
        loss.backward()
        grad_norm = gradient_norm(self.model.parameters(), self.device)
        verdict = agree(self.ranks, loss, grad_norm, self.stop.signal, audio_s)
        if verdict.is_finite:
            self.optimizer.step()
            self.bad_batches.good()
            self._note(output, grad_norm)
        else:
            self.bad_batches.bad(self.position, batch.ids, loss)
        self.position = self.position.after_step(verdict.audio_s)
        self._move_schedule()
        if self.average is not None and self.position.step % self.config.averaging_every == 0:
            self.average.update(self.model)
        self.clock.step_done(verdict.audio_s)
        return verdict

    def _do_what_is_due(self, verdict: Verdict) -> None:
        """Writes metrics, validates, saves; ends the process when a signal asked for it."""
        step, config = self.position.step, self.config
        is_last = step == config.max_steps
        if step % config.log_every == 0 or is_last:
            self._log()
        if is_last or (config.valid_every and step % config.valid_every == 0):
            self._validate()
        is_half = step == self._half_way
        if is_last or is_half or (config.save_every and step % config.save_every == 0):
            self._save()
        if verdict.stop_signal and not is_last:
            self._save()
            _logger.warning(
                "stopped by signal %d after step %d: the same command goes on from there",
                verdict.stop_signal,
                step,
            )
            raise SystemExit(128 + verdict.stop_signal)
        self.clock.resume()

    def _batches(self) -> Generator[Batch, None, None]:
        """Yields this rank's batches, epoch after epoch, up to `max_steps`."""
        while not self._is_complete:
            yield from self._rest_of_epoch()
            if not self._is_complete:
                self.position = self.position.next_epoch()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        epoch, rank, world_size = self.position.epoch, self.ranks.rank, self.ranks.world_size
        num_steps = self.task.steps_in_epoch(epoch, world_size)
        if num_steps < 1:
            raise ConfigError(
                f"epoch {epoch} has no batches for {world_size} processes: more data, "
                "smaller batches or fewer processes are needed"
            )
        start = self.position.step_in_epoch
        batches = iter(self.task.train_batches(epoch, start, rank, world_size))
        self.clock.resume()
        try:
            while self.position.step_in_epoch < num_steps and not self._is_complete:
                batch = next(batches, None)
                if batch is None:
                    raise SpearError(
                        f"rank {rank}: epoch {epoch} ended after {self.position.step_in_epoch} "
                        f"of {num_steps} steps"
                    )
                self.clock.data_arrived()
                yield batch
        finally:
            close = getattr(batches, "close", None)
            if close is not None:  # a generator: it may hold files and workers
                close()

    def _wrap(self) -> nn.Module:
        """Wraps the model for several processes; again whenever the trainable set changes."""
        trainable = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        unknown = [name for name, parameter in trainable if id(parameter) not in known]
        if unknown or not trainable:
            problem = f"{unknown[:5]} are in no parameter group" if unknown else "all is frozen"
            raise SpearError(f"step {self.position.step}: cannot train: {problem}")
        if self.ranks.world_size == 1:
            return self.model
        self.forward = None
        gc.collect()  # an old wrapper's hooks on the parameters live until it is collected
        # Convolutions give their weights' gradients channels last; copying these few costs nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def _move_schedule(self) -> None:
        self.scheduler.step_batch(self.position.step)
        self.scheduler.step_epoch(self.position.audio_hours)

    def _note(self, output: StepOutput, grad_norm: Tensor) -> None:
        """Adds a step's numbers to the sums of the interval, without waiting for the device."""
        self.sums.add_output(output)
        self.sums.add("optim/grad_norm", grad_norm)
        self.sums.add("optim/scaled_grad_norm", self.optimizer.grad_norm_tensor)
        self.sums.add("optim/clipped(%)", 100.0 * (self.optimizer.clip_factor_tensor < 1.0))

    def _log(self) -> None:
        """Writes and prints the values of the interval that ends here."""
        summed = self.sums.values()
        self.sums.clear()
        values = {tag if "/" in tag else f"train/{tag}": value for tag, value in summed.items()}
        values |= self.clock.take_interval().values()
        values["optim/learning_rate"] = max(self.scheduler.get_last_lr())
        values["data/audio(hours)"] = self.position.audio_hours
        values["health/skipped_steps"] = self.bad_batches.total
        if self.device.type == "cuda":
            values["memory/max_reserved(GiB)"] = torch.cuda.max_memory_reserved() / 2**30
        self._write(values)
        _logger.info(
            "step %d/%d, epoch %d: %s, eta %s",
            self.position.step,
            self.config.max_steps,
            self.position.epoch,
            describe_values(values),
            self.clock.eta(self.config.max_steps - self.position.step),
        )

    def _validate(self) -> None:
        """Evaluates on the validation data; writes and prints the values."""
        values = evaluate(self.task, self.ranks, self.config.seed, self.use_bf16)
        if not values:
            return
        self._write({f"valid/{tag}": value for tag, value in values.items()})
        if isinstance(self.task, DescribesValidation):
            text = self.task.describe_validation(values)
        else:
            text = ", ".join(f"{tag} {value:.4g}" for tag, value in values.items())
        _logger.info("step %d, validation: %s", self.position.step, text)

    def _write(self, values: dict[str, float]) -> None:
        position = self.position
        self.writer.write(
            position.step, values, epoch=position.epoch, elapsed_s=round(self.clock.elapsed_s, 3)
        )

    def _save(self) -> None:
        """Writes a checkpoint, once a step."""
        if self.saved_step == self.position.step:
            return
        sums = self.sums.state_dict()
        rng = self.ranks.gather_bytes(checkpoints.pack_rng(self.device))
        self.saved_step = self.position.step
        if self.average is not None:
            self.writer.flush()
            path = self._checkpoint
            state = {
                "position": self.position.to_dict(),
                "world_size": self.ranks.world_size,
                "num_averaged": self.average.num_updates,
                "bad_batches": self.bad_batches.state_dict(),
                "metric_sums": sums,
                "elapsed_s": self.clock.elapsed_s,
                "torch_version": torch.__version__,
            }
            content = checkpoints.CheckpointContent(
                model=self.model.state_dict(),
                averaged=self.average.values,
                optimizer={
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                },
                state=state,
                config=self.model_config,
                rng=rng,
            )
            checkpoints.save_checkpoint(path, content)
            checkpoints.remove_old(self.folder, self.config.keep_last, self._half_way)
            _logger.info("saved %s", path)
        self.ranks.barrier()

    def _finish(self) -> None:
        """Writes the report, also when a kill came between the last checkpoint and this."""
        if self.ranks.is_main:
            self.writer.flush()
            write_report(
                self.folder,
                self.position,
                self.clock.elapsed_s,
                self.bad_batches.total,
                self._checkpoint,
            )
            _logger.info("done: %s", self.folder / "report.md")
        self.ranks.barrier()

    def _resume_or_start(self) -> None:
        """Goes on from the newest intact checkpoint, which rank 0 chooses, or starts."""
        step = -1
        if self.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partials(self.folder / "checkpoints")
            if self.config.resume == "never" and checkpoints.list_checkpoints(self.folder):
                raise ConfigError(
                    f"{self.folder} holds checkpoints, and train.resume is never: choose another "
                    "output_dir, or train.resume auto to go on"
                )
            found = checkpoints.newest_intact(self.folder)
            step = -1 if found is None else checkpoints.step_of(found)
        step = self.ranks.broadcast_int(step)
        if step >= 0:
            self._resume(checkpoints.checkpoint_path(self.folder, step))
        else:
            self._seed()
        self._move_schedule()
        is_main = self.ranks.is_main
        if is_main:
            drop_after(self.bad_batches.path, self.position.step)
        self.writer = MetricWriter(
            self.folder, self.position.step, is_main, self.config.tensorboard
        )

    def _resume(self, path: Path) -> None:
        """Restores everything from a checkpoint."""
        differences = describe_differences(checkpoints.load_config(path), self.model_config)
        if differences:
            raise ConfigError(
                f"{self.folder} holds a run of another model ({'; '.join(differences)}): choose "
                "another output_dir, or the model that it was begun with"
            )
        state = checkpoints.load_state(path)
        model_file = path / checkpoints.MODEL
        checkpoints.load_into(self.model, checkpoints.load_tensors(model_file), model_file)
        saved = checkpoints.load_optimizer(path)
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit the optimiser: {error}") from error
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.average is not None:
            averaged = checkpoints.load_tensors(path / checkpoints.AVERAGED)
            self.average.load(averaged, state["num_averaged"])
        self.position = Position(**state["position"], schedule_unit_s=self.config.schedule_unit_s)
        self.sums.load_state_dict(state["metric_sums"])
        self.bad_batches.load_state_dict(state["bad_batches"])
        self.clock = Clock(state["elapsed_s"])
        self.saved_step = self.position.step
        self._restore_rng(path, state["world_size"])
        _logger.info("going on from %s", path)

    def _restore_rng(self, path: Path, saved_world_size: int) -> None:
        """Restores generators; with another number of processes, finds the nearest place."""
        if saved_world_size == self.ranks.world_size:
            rng = path / checkpoints.rng_name(self.ranks.rank)
            checkpoints.restore_rng(rng, self.device)
            return
        done = self.position.step_in_epoch * saved_world_size // self.ranks.world_size
        _logger.warning(
            "%s was written by %d processes, now there are %d: epoch %d goes on at about the "
            "same place (step %d of it), with new random numbers",
            path,
            saved_world_size,
            self.ranks.world_size,
            self.position.epoch,
            done,
        )
        self.position = replace(self.position, step_in_epoch=done)
        self._seed()

    def _seed(self) -> None:
        """Gives each rank its own stream of dropout, from the seed and the place in the run."""
        entropy = (self.config.seed, self.ranks.rank, self.position.step)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def _describe_run(self, resolved_config: dict[str, Any] | None) -> None:
        """Writes `config.yaml`, and says what changed since the run was last started."""
        if resolved_config is None or not self.ranks.is_main:
            return
        path = self.folder / "config.yaml"
        if path.is_file() and self.saved_step >= 0:
            before = yaml.safe_load(path.read_text("utf-8")) or {}
            for line in describe_differences(before, resolved_config):
                _logger.warning("configuration changed: %s", line)
        write_text(path, yaml.safe_dump(resolved_config, sort_keys=False, allow_unicode=True))

    @property
    def _is_complete(self) -> bool:
        return self.position.step >= self.config.max_steps

    @property
    def _half_way(self) -> int:
        """The step whose checkpoint stays: the average over the second half starts there."""
        return self.config.max_steps // 2

    @property
    def _checkpoint(self) -> Path:
        return checkpoints.checkpoint_path(self.folder, self.position.step)
