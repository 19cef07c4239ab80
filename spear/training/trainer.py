"""The training loop: it runs alone or under torchrun, and knows no task.

`Trainer.run` is the whole of it: the batches of a step, the step, and after it whatever is due.
Everything that the next step depends on is in the checkpoint, so a run that was killed and started
again by the same command ends with the bits of one that was not. The host never waits for the
device within a step: it only does when a line of metrics, a validation or a checkpoint is due.
"""

import contextlib
import gc
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spear.config import write_yaml
from spear.errors import ConfigError, SpearError
from spear.system import ledger
from spear.system.differences import describe_differences
from spear.system.distributed import Ranks, join_ranks
from spear.system.files import remove_partials
from spear.system.progress import StepBar, get_logger
from spear.training.checkpoints import checkpoint as checkpoints
from spear.training.checkpoints.run_state import RunState, seed_batch
from spear.training.checkpoints.sharding import finish_gradients, gathered
from spear.training.config import TrainConfig
from spear.training.health.health import STOP_SIGNALS, StopRequest
from spear.training.health.preflight import describe_memory, describe_trial, try_batch
from spear.training.health.profiling import profiling
from spear.training.health.watchdog import Watchdog
from spear.training.logs.clock import GpuIdle
from spear.training.logs.metrics import JsonLines, MetricWriter, describe_values
from spear.training.logs.report import write_report
from spear.training.loss import LossNormalizer
from spear.training.position import Position
from spear.training.task import (
    Batch,
    CountsLoss,
    DescribesValidation,
    HasLongestBatch,
    StepOutput,
    Task,
)
from spear.training.validation import autocast, evaluate

_logger = get_logger(__name__)


def train(
    task: Task,
    config: TrainConfig,
    resolved_config: dict[str, Any] | None = None,
    *,
    profile: bool = False,
) -> None:
    """Trains a task until `config.max_steps`, or goes on with a run that was interrupted.

    Args:
        task: What to train. Its model lies on the CPU or on the right device already.
        config: How.
        resolved_config: The command's whole configuration, written to `config.yaml`.
        profile: Whether to trace 20 steps with torch's profiler, into `profile/`.

    Raises:
        ConfigError: The run folder holds a run of another model, of other data or of another
            number of batches a step, the device does not exist, or its memory is not enough.
        CheckpointError: No checkpoint of the run is intact, or none can be written.
        SpearError: Too many steps in a row were not finite, or the task broke its protocol.
        SystemExit: A signal asked to stop; the run is saved, and the status is 128 + signal.
    """
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    group = join_ranks(config.device, config.backend, config.distributed_timeout_s)
    with group as ranks, StopRequest() as stop:
        stacks = Path(config.output_dir) / f"hang-{ranks.rank:05d}.txt"
        with Watchdog(config.hang_timeout_s, stacks) as watchdog:
            Trainer(task, config, ranks, stop, watchdog).run(resolved_config, profile)


class Trainer:
    """One run of one task on this rank.

    Args:
        task: What to train.
        config: How.
        ranks: The processes of the run.
        stop: Says when a signal asked to stop.
        watchdog: Is told of progress.
    """

    def __init__(
        self, task: Task, config: TrainConfig, ranks: Ranks, stop: StopRequest, watchdog: Watchdog
    ) -> None:
        self.task, self.config, self.ranks = task, config, ranks
        self.stop, self.watchdog = stop, watchdog
        self.folder = Path(config.output_dir)
        self.use_bf16 = config.precision == "bf16"
        self.state = RunState(task, config, ranks)
        self.normalize = LossNormalizer(ranks)
        self.gpu_idle = GpuIdle(ranks.device)
        self.writer: MetricWriter
        self.bar: StepBar
        self.batch_log: JsonLines | None = None
        self.forward: nn.Module | None = None
        self.saved_step = -1
        if config.accumulate > 1 and not isinstance(task, CountsLoss):
            raise ConfigError(
                "train.accumulate is above 1, and this task cannot say before the forward pass "
                "what its loss counts"
            )

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.state.position

    def run(self, resolved_config: dict[str, Any] | None = None, profile: bool = False) -> None:
        """Trains until `max_steps`, or until a signal."""
        self._resume_or_start()
        self._describe_run(resolved_config)
        if self._is_complete:
            _logger.info("%s is complete already: step %d", self.folder, self.position.step)
        else:
            self._check_needs()
        profiler = profiling(self.folder / "profile", self.ranks.rank, profile)
        with contextlib.closing(self.writer), contextlib.closing(self._steps()) as steps:
            with profiler as profile_step, self.bar:
                for batches in steps:
                    signal = self._train_step(batches)
                    profile_step()
                    self.watchdog.beat()
                    self.bar.update(self.position.step)
                    self._do_what_is_due(signal)
            self.state.verdicts.read()
        self._finish()

    def _train_step(self, batches: Sequence[Batch]) -> int:
        """Forward, backward, verdict, update; returns the signal that some rank received, or 0."""
        state = self.state
        if self.task.before_step(state.position) or self.forward is None:
            self.forward = self._wrap()
        audio_s, signal = self._agree(sum(batch.audio_s for batch in batches))
        self.gpu_idle.begin_step()
        state.optimizer.zero_grad(set_to_none=True)
        outputs, loss = self._forward_backward(batches)
        finish_gradients(state.model, self.ranks)
        state.optimizer.step(is_good=state.verdicts.judge(loss))
        ids = [name for batch in batches for name in batch.ids]
        state.verdicts.settle(state.optimizer.happened_tensor, state.position, ids)
        self.gpu_idle.end_step()
        self._note(outputs)
        if self.batch_log is not None:
            step, epoch = state.position.step + 1, state.position.epoch
            by_batch = [batch.ids for batch in batches]
            self.batch_log.write({"step": step, "epoch": epoch, "ids": by_batch})
        state.position = state.position.after_step(audio_s)
        state.move_schedule()
        if state.average is not None and state.position.step % self.config.averaging_every == 0:
            state.average.update(state.model)
        state.clock.step_done(audio_s)
        return signal

    def _agree(self, audio_s: float) -> tuple[float, int]:
        """Returns seconds of audio over all ranks, and a signal that any rank received, or 0."""
        mine = self.stop.signal
        total_s, *received = self.ranks.sum_on_host(
            [audio_s, *(float(mine == number) for number in STOP_SIGNALS)]
        )
        signals = [n for n, count in zip(STOP_SIGNALS, received, strict=True) if count]
        return total_s, max(signals, default=0)

    def _forward_backward(self, batches: Sequence[Batch]) -> tuple[list[StepOutput], Tensor]:
        """Adds up the gradients of a step's batches; returns what the model said, and the loss."""
        outputs: list[StepOutput] = []
        loss = torch.zeros((), device=self.ranks.device)
        divisors = self._divisors_of(batches)
        assert self.forward is not None
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            self._seed(number)
            with contextlib.ExitStack() as stack:
                if isinstance(self.forward, DistributedDataParallel) and not is_last:
                    stack.enter_context(self.forward.no_sync())
                with autocast(self.ranks.device, self.use_bf16):
                    output: StepOutput = self.forward(batch.to(self.ranks.device))
                if divisors is None:
                    counts = {name: term.count.detach() for name, term in output.terms.items()}
                    divisors = self.normalize.divisors(counts)
                part = self.normalize.loss(output.terms, divisors)
                part.backward()
            loss = loss + part.detach()
            outputs.append(output)
        return outputs, loss

    def _divisors_of(self, batches: Sequence[Batch]) -> dict[str, Tensor] | None:
        """Returns the loss's divisors where several batches share them; else the model says."""
        if len(batches) == 1:
            return None
        assert isinstance(self.task, CountsLoss)
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in self.task.loss_counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        return self.normalize.divisors(counts)

    def _do_what_is_due(self, signal: int) -> None:
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
        if signal and not is_last:
            self._save()
            _logger.warning(
                "stopped by signal %d after step %d: the same command goes on from there",
                signal,
                step,
            )
            raise SystemExit(128 + signal)
        self.state.clock.resume()

    def _steps(self) -> Generator[list[Batch], None, None]:
        """Yields this rank's batches of each step, epoch after epoch, up to `max_steps`."""
        while not self._is_complete:
            yield from self._rest_of_epoch()
            if not self._is_complete:
                self.state.position = self.position.next_epoch()

    def _rest_of_epoch(self) -> Iterator[list[Batch]]:
        epoch, start = self.position.epoch, self.position.step_in_epoch
        num_steps = self._steps_in_epoch(epoch)
        num_shares = self.state.batches_in_step
        batches = iter(self.task.train_batches(epoch, start, self._shares, num_shares))
        self.state.clock.resume()
        try:
            while self.position.step_in_epoch < num_steps and not self._is_complete:
                found = [batch for _ in self._shares if (batch := next(batches, None)) is not None]
                if len(found) < len(self._shares):
                    raise SpearError(
                        f"rank {self.ranks.rank}: epoch {epoch} ended after "
                        f"{self.position.step_in_epoch} of {num_steps} steps"
                    )
                self.state.clock.data_arrived()
                yield found
        finally:
            close = getattr(batches, "close", None)
            if close is not None:  # a generator: it may hold files and workers
                close()

    def _steps_in_epoch(self, epoch: int) -> int:
        num_shares = self.state.batches_in_step
        num_steps = self.task.steps_in_epoch(epoch, num_shares)
        if num_steps < 1:
            raise ConfigError(
                f"epoch {epoch} has no step of {num_shares} batches: more data, smaller batches, "
                "fewer processes or less accumulation are needed"
            )
        return num_steps

    def _wrap(self) -> nn.Module:
        """Wraps the model for several processes; again whenever the trainable set changes."""
        state, model = self.state, self.state.model
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        known = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
        unknown = [name for name, parameter in trainable if id(parameter) not in known]
        if unknown or not trainable:
            problem = f"{unknown[:5]} are in no parameter group" if unknown else "all is frozen"
            raise SpearError(f"step {self.position.step}: cannot train: {problem}")
        if self.ranks.world_size == 1 or state.is_sharded:
            return model
        self.forward = None
        gc.collect()  # an old wrapper's hooks on the parameters live until it is collected
        # Convolutions give their weights' gradients channels last; copying these few costs nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device = self.ranks.device
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def _check_needs(self) -> None:
        """Says what the run takes, and tries its longest batch before the first step."""
        state = self.state
        if self.ranks.is_main:
            _logger.info("%s", describe_memory(state.model, self._num_parts))
        if not self.config.try_longest or not isinstance(self.task, HasLongestBatch):
            return
        self.task.before_step(self.position)
        state.model.train()
        batch = self.task.longest_batch(self.position.epoch, state.batches_in_step)
        self._seed(0)
        took_s = try_batch(state.model, batch, self.ranks, self.use_bf16, _plain_loss)
        self.watchdog.beat()
        steps_left = self.config.max_steps - self.position.step
        if self.ranks.is_main:
            text = describe_trial(
                batch, took_s * self.config.accumulate, steps_left, self.ranks.device
            )
            _logger.info("%s", text)

    def _note(self, outputs: Sequence[StepOutput]) -> None:
        """Adds a good step's numbers to the sums of the interval, without a look at them."""
        state = self.state
        is_good = state.optimizer.happened_tensor
        for output in outputs:
            state.sums.add_output(output, is_good)
        optimizer = state.optimizer
        for tag, value in (
            ("optim/grad_norm", optimizer.plain_grad_norm_tensor),
            ("optim/scaled_grad_norm", optimizer.grad_norm_tensor),
            ("optim/clipped(%)", 100.0 * (optimizer.clip_factor_tensor < 1.0)),
        ):
            state.sums.add(tag, torch.where(is_good, value, 0.0), is_good)

    def _log(self) -> None:
        """Writes and prints the values of the interval that ends here."""
        state = self.state
        state.verdicts.read()
        summed = state.sums.values()
        state.sums.clear()
        values = {tag if "/" in tag else f"train/{tag}": value for tag, value in summed.items()}
        interval = state.clock.take_interval()
        ledger.note(audio_hours=interval.audio_s / 3600, last_step=self.position.step)
        values |= interval.values() | self.gpu_idle.take()
        values["optim/learning_rate"] = max(state.scheduler.get_last_lr())
        values["data/audio(hours)"] = self.position.audio_hours
        values["health/skipped_steps"] = state.bad_batches.total
        if self.ranks.device.type == "cuda":
            values["memory/max_reserved(GiB)"] = torch.cuda.max_memory_reserved() / 2**30
        self._write(values)
        self.bar.update(self.position.step, describe_values(values))
        _logger.info(
            "step %d/%d, epoch %d: %s, eta %s",
            self.position.step,
            self.config.max_steps,
            self.position.epoch,
            describe_values(values),
            state.clock.eta(self.config.max_steps - self.position.step),
        )

    def _validate(self) -> None:
        """Evaluates on the validation data; writes and prints the values."""
        with gathered(self.state.model):
            values = evaluate(
                self.task, self.ranks, self.config.seed, self.use_bf16, self.watchdog.watch
            )
        if not values:
            return
        self._write({f"valid/{tag}": value for tag, value in values.items()})
        if isinstance(self.task, DescribesValidation):
            text = self.task.describe_validation(values)
        else:
            numbers = {tag: one for tag, one in values.items() if isinstance(one, float)}
            text = ", ".join(f"{tag} {value:.4g}" for tag, value in numbers.items())
        _logger.info("step %d, validation: %s", self.position.step, text)

    def _write(self, values: dict[str, float]) -> None:
        elapsed_s = round(self.state.clock.elapsed_s, 3)
        self.writer.write(
            self.position.step, values, epoch=self.position.epoch, elapsed_s=elapsed_s
        )

    def _save(self) -> None:
        """Writes a checkpoint, once a step."""
        if self.saved_step == self.position.step:
            return
        content = self.state.content()
        self.saved_step = self.position.step
        if content is not None:
            self.writer.flush()
            checkpoints.save_checkpoint(self._checkpoint, content)
            checkpoints.remove_old(
                self.folder, self.config.keep_last, self._half_way, self.config.keep_every
            )
            _logger.info("saved %s", self._checkpoint)
        self.watchdog.beat()
        self.ranks.barrier()

    def _finish(self) -> None:
        """Writes the report, also when a kill came between the last checkpoint and this."""
        if self.ranks.is_main:
            self.writer.flush()
            write_report(
                self.folder,
                self.position,
                self.state.clock.elapsed_s,
                self.state.bad_batches.total,
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
            path = checkpoints.checkpoint_path(self.folder, step)
            self.state.restore(path)
            self.saved_step = step
            _logger.info("going on from %s", path)
        self.state.move_schedule()
        self._open_files()

    def _open_files(self) -> None:
        """Opens what is written while the run goes on, without what never came to pass."""
        step, is_main = self.position.step, self.ranks.is_main
        ledger.note(first_step=step)
        self.bar = StepBar("train", self.config.max_steps, step)
        if is_main:
            self.state.bad_batches.lines.drop_after(step)
        self.writer = MetricWriter(self.folder, step, is_main, self.config.tensorboard)
        if self.config.log_batches:
            self.batch_log = JsonLines(self.folder / f"batches-{self.ranks.rank:05d}.jsonl")
            self.batch_log.drop_after(step)

    def _seed(self, number: int) -> None:
        """Seeds what is random in one of this rank's batches of the present step."""
        seed_batch(self.config.seed, self.position.step, self._shares[number])

    def _describe_run(self, resolved_config: dict[str, Any] | None) -> None:
        """Writes `config.yaml`, and says what changed since the run was last started."""
        if resolved_config is None or not self.ranks.is_main:
            return
        path = self.folder / "config.yaml"
        if path.is_file() and self.saved_step >= 0:
            before = yaml.safe_load(path.read_text("utf-8")) or {}
            for line in describe_differences(before, resolved_config):
                _logger.warning("configuration changed: %s", line)
        write_yaml(path, resolved_config)

    @property
    def _shares(self) -> range:
        """Which of a step's batches are this rank's."""
        first = self.ranks.rank * self.config.accumulate
        return range(first, first + self.config.accumulate)

    @property
    def _num_parts(self) -> int:
        """Among how many processes the state of the run is spread."""
        return self.ranks.world_size if self.state.is_sharded else 1

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


def _plain_loss(output: StepOutput) -> Tensor:
    """Something of every term to differentiate, where nothing depends on its size."""
    return torch.stack([term.total.float() for term in output.terms.values()]).sum()
