import gzip
import json
import math
import signal

import pytest
import torch
from run_comparison import assert_same_run, curves
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from toy_task import ToyTask, config_for, global_batch

from spear.errors import CheckpointError, ConfigError, SpearError
from spear.system.files import partial_name
from spear.training import LossTerm, StepOutput, load_weights, train
from spear.training.checkpoints.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_state,
    step_of,
)
from spear.training.trainer import Trainer


def run(folder, config=None, **options):
    task = ToyTask(**options)
    train(task, config_for(folder, **(config or {})))
    return task


def steps_kept(folder):
    return [step_of(path) for path in list_checkpoints(folder)]


@pytest.mark.usefixtures("pictures")
def test_a_run_learns_and_leaves_what_it_promises(tmp_path):
    run(tmp_path, {"max_steps": 60, "tensorboard": True})
    lines = curves(tmp_path)
    trained = [line["train/loss"] for line in lines if "train/loss" in line]
    validated = {line["step"]: line["valid/loss"] for line in lines if "valid/loss" in line}
    assert trained[-1] < 0.6 * trained[0]
    assert list(validated) == [8, 16, 24, 32, 40, 48, 56, 60]
    assert steps_kept(tmp_path) == [30, 50, 55, 60]  # the last three, and half way
    report = (tmp_path / "report.md").read_text()
    assert "| steps | 60 |" in report and f"{validated[60]:.4g}" in report
    assert (tmp_path / "report.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())


def test_tags_name_what_they_measure(tmp_path):
    run(tmp_path)
    first, second = curves(tmp_path)[:2]
    assert {
        "train/loss",
        "train/speech_loss",
        "train/audio_loss",
        "train/size",
        "optim/learning_rate",
        "optim/grad_norm",
        "optim/clipped(%)",
        "data/audio(hours)",
        "health/skipped_steps",
    } <= first.keys()
    text = (tmp_path / "metrics.jsonl").read_text()
    for tag in ("speed/frames_per_s", "speed/audio_s_per_s", "data/wait(%)"):
        assert tag in text
    expected = first["train/speech_loss"] + 0.1 * first["train/audio_loss"]
    assert first["train/loss"] == pytest.approx(expected, rel=1e-12)
    assert second["data/audio(hours)"] > first["data/audio(hours)"]


@pytest.mark.parametrize("stop_after", [3, 7, 10, 13])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, stop_after):
    """Stops at the end of an epoch (7), at a regular save (10), and in between."""
    options = {"dropout": 0.3, "freeze_steps": 4, "bad_steps": [5, 6]}
    run(tmp_path / "straight", **options)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "broken", signal_at=(stop_after - 1, 0), **options)
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert steps_kept(tmp_path / "broken")[-1] == stop_after
    task = run(tmp_path / "broken", **options)
    assert task.starts[0] == (stop_after // 7, stop_after % 7) or stop_after == 7
    assert_same_run(tmp_path / "straight", tmp_path / "broken", 20)


def test_signals_are_handled_as_before_after_a_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    run(tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_dropout_is_drawn_from_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, {"seed": seed}, dropout=0.3)
    assert_same_run(tmp_path / "a", tmp_path / "b", 20)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c", 20)


def test_validation_and_saving_change_nothing(tmp_path):
    run(tmp_path / "often", {"valid_every": 1, "save_every": 1}, dropout=0.3)
    run(tmp_path / "never", {"valid_every": 0, "save_every": 0}, dropout=0.3)
    assert_same_run(tmp_path / "often", tmp_path / "never", 20, metrics=False)


def test_a_complete_run_is_not_run_again(tmp_path, caplog):
    run(tmp_path)
    model = checkpoint_path(tmp_path, 20) / "model.safetensors"
    written = model.stat().st_mtime_ns
    (tmp_path / "report.md").unlink()
    before = curves(tmp_path)
    with caplog.at_level("INFO"):
        task = run(tmp_path)
    assert "complete already: step 20" in caplog.text
    assert task.starts == [] and model.stat().st_mtime_ns == written
    assert curves(tmp_path) == before
    assert (tmp_path / "report.md").is_file()  # as after a kill just before the report


def test_a_longer_run_goes_on_from_the_end(tmp_path):
    run(tmp_path / "long", {"max_steps": 31, "keep_last": 9})
    run(tmp_path / "two_parts", {"max_steps": 20, "keep_last": 9})
    run(tmp_path / "two_parts", {"max_steps": 31, "keep_last": 9})
    assert_same_run(tmp_path / "long", tmp_path / "two_parts", 31, metrics=False)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, caplog):
    run(tmp_path / "straight", dropout=0.3)
    run(tmp_path / "damaged", dropout=0.3)
    newest = checkpoint_path(tmp_path / "damaged", 20) / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (checkpoint_path(tmp_path / "damaged", 15) / "checksums.json").unlink()
    task = run(tmp_path / "damaged", dropout=0.3)
    assert task.starts[0] == (1, 3)  # step 10
    assert "step-00000020 is damaged and skipped: optimizer.pt does not match" in caplog.text
    assert "step-00000015 is damaged and skipped" in caplog.text
    assert_same_run(tmp_path / "straight", tmp_path / "damaged", 20)


def test_when_all_checkpoints_are_damaged_nothing_is_overwritten(tmp_path):
    run(tmp_path)
    for checkpoint in list_checkpoints(tmp_path):
        (checkpoint / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"all 3 checkpoints .* are damaged"):
        run(tmp_path)
    assert steps_kept(tmp_path) == [10, 15, 20]


def test_another_model_is_refused_with_the_difference(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"sizes\.width: 6 before, 7 now"):
        run(tmp_path, {"max_steps": 30}, width=7)
    assert steps_kept(tmp_path)[-1] == 20


def test_resume_never_refuses_a_folder_with_a_run(tmp_path):
    run(tmp_path, {"resume": "never"})
    with pytest.raises(ConfigError, match="holds checkpoints"):
        run(tmp_path, {"resume": "never"})


def test_the_configuration_is_written_and_its_changes_are_told(tmp_path, caplog):
    train(ToyTask(), config_for(tmp_path), {"train": {"seed": 0}})
    train(ToyTask(), config_for(tmp_path), {"train": {"seed": 3}})
    assert "configuration changed: train.seed: 0 before, 3 now" in caplog.text
    assert "seed: 3" in (tmp_path / "config.yaml").read_text()


def test_a_step_that_is_not_finite_is_skipped_and_its_cuts_are_named(tmp_path, caplog):
    run(tmp_path, {"keep_last": 20, "save_every": 1}, bad_steps=[9])
    lines = [json.loads(line) for line in (tmp_path / "bad_batches.jsonl").open()]
    assert [(line["step"], line["epoch"], line["rank"]) for line in lines] == [(10, 1, 0)]
    assert lines[0]["ids"][0] == "cut-1-2-0" and not lines[0]["loss_is_finite"]
    assert "step 10 skipped" in caplog.text
    before, after = (load_weights(checkpoint_path(tmp_path, step))[0] for step in (9, 10))
    for name in before:
        if name != "seen":
            assert torch.equal(before[name], after[name])
    assert all(value.isfinite().all() for value in load_weights(tmp_path)[0].values())
    assert curves(tmp_path)[-2]["health/skipped_steps"] == 1
    losses = [line["train/loss"] for line in curves(tmp_path) if "train/loss" in line]
    assert len(losses) == 5 and all(math.isfinite(loss) for loss in losses)


def test_too_many_such_steps_in_a_row_end_the_run(tmp_path):
    options = {"bad_steps": [6, 8, 9, 10]}
    with pytest.raises(SpearError, match=r"step 11: 3 steps in a row .*bad_batches\.jsonl"):
        run(tmp_path, {"max_nonfinite_steps": 3}, **options)
    with pytest.raises(SpearError, match="step 11: 3 steps in a row"):  # and again after a resume
        run(tmp_path, {"max_nonfinite_steps": 3}, **options)
    steps = [json.loads(line)["step"] for line in (tmp_path / "bad_batches.jsonl").open()]
    assert steps == [7, 9, 10, 11]


def test_frozen_parameters_stay_until_they_thaw(tmp_path):
    task = ToyTask(freeze_steps=12)
    initial = {name: value.clone() for name, value in task.model.state_dict().items()}
    train(task, config_for(tmp_path, keep_last=20, save_every=1))
    for step in (12, 13):
        state = load_weights(checkpoint_path(tmp_path, step))[0]
        is_frozen = torch.equal(state["encoder.0.weight"], initial["encoder.0.weight"])
        assert is_frozen == (step == 12)
        assert not torch.equal(state["speech_head.weight"], initial["speech_head.weight"])


def test_a_trainable_parameter_outside_all_groups_is_refused(tmp_path):
    task = ToyTask()
    groups = task.parameter_groups()
    task.parameter_groups = lambda: groups
    task.model.forgotten = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(SpearError, match="forgotten"):
        train(task, config_for(tmp_path))


def test_an_epoch_that_breaks_its_promise_is_refused(tmp_path):
    with pytest.raises(SpearError, match="epoch 0 ended after 3 of 7 steps"):
        run(tmp_path, short_epoch=True)
    with pytest.raises(ConfigError, match="epoch 0 has no step of 1 batches"):
        run(tmp_path, steps_in_epoch=0)


def test_without_validation_data_a_run_still_ends(tmp_path):
    run(tmp_path, valid_steps=0)
    assert not any(tag.startswith("valid/") for line in curves(tmp_path) for tag in line)


def test_the_modes_of_modules_survive_validation(tmp_path):
    task = ToyTask()
    task.model.encoder.eval()
    train(task, config_for(tmp_path))
    assert task.model.training and not task.model.encoder.training


def test_a_task_may_put_validation_into_words(tmp_path, caplog):
    class Talking(ToyTask):
        def describe_validation(self, metrics):
            return f"speech {metrics['speech_loss']:.1f} and no more"

    with caplog.at_level("INFO"):
        train(Talking(), config_for(tmp_path))
    assert "and no more" in caplog.text


def test_bf16_runs_and_keeps_float32_weights(tmp_path):
    run(tmp_path / "bf16", {"precision": "bf16"})
    run(tmp_path / "fp32")
    narrow, wide = (load_weights(tmp_path / name)[0] for name in ("bf16", "fp32"))
    assert narrow["encoder.0.weight"].dtype == torch.float32
    difference = (narrow["encoder.0.weight"] - wide["encoder.0.weight"]).abs().max()
    assert 0 < difference < 0.05


def test_schedules_see_the_audio_of_all_steps(tmp_path):
    seen = []

    class Watching(ToyTask):
        def before_step(self, position):
            seen.append((position.step, position.audio_s, position.schedule))
            return super().before_step(position)

    train(Watching(), config_for(tmp_path, schedule_unit_s=10.0))
    assert [step for step, _, _ in seen] == list(range(20))
    assert seen[0][1] == 0.0 and seen[5][1] > 4 * 2.5 * 5
    assert all(schedule == audio_s / 10.0 for _, audio_s, schedule in seen)
    position = load_state(checkpoint_path(tmp_path, 20))["position"]
    assert position["audio_s"] > seen[-1][1]


def test_the_names_of_loss_terms_must_stay(tmp_path):
    class Forgetful(ToyTask):
        def __init__(self):
            super().__init__()
            full = self.model.forward

            def forward(batch):
                output = full(batch)
                if batch.ids[0] == "cut-0-3-0":
                    del output.terms["audio"]
                return output

            self.model.forward = forward

    with pytest.raises(SpearError, match=r"\['audio', 'speech'\] before and has \['speech'\] now"):
        train(Forgetful(), config_for(tmp_path))


def test_a_loss_of_nothing_is_zero_and_no_nan(tmp_path):
    class Empty(ToyTask):
        def __init__(self):
            super().__init__()
            full = self.model.forward

            def forward(batch):
                terms = full(batch).terms
                nothing = LossTerm(terms["audio"].total * 0, torch.zeros(()))
                return StepOutput({**terms, "audio": nothing})

            self.model.forward = forward

    train(Empty(), config_for(tmp_path))
    assert not any("train/audio_loss" in line for line in curves(tmp_path))
    assert not (tmp_path / "bad_batches.jsonl").exists()


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    leftover = tmp_path / "checkpoints" / partial_name("step-00000005")
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    run(tmp_path)
    assert not leftover.exists()


def test_other_data_are_refused_with_the_difference(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"settings of the data \(corpus: toys before, toads now"):
        run(tmp_path, {"max_steps": 30}, corpus="toads")
    assert steps_kept(tmp_path)[-1] == 20


def test_accumulated_batches_train_like_one_large_batch(tmp_path):
    """The first share of each batch is one item, the second the rest: unequal on purpose."""
    run(tmp_path / "large", freeze_steps=4)
    run(tmp_path / "small", {"accumulate": 2}, freeze_steps=4)
    for weights in ("last", "averaged"):
        one, two = (load_weights(tmp_path / name, weights)[0] for name in ("large", "small"))
        for name in set(one) - {"seen"}:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    for first, second in zip(curves(tmp_path / "large"), curves(tmp_path / "small"), strict=True):
        assert first == pytest.approx(second, rel=1e-4)


def test_accumulation_is_interrupted_like_anything_else(tmp_path):
    options = {"dropout": 0.3, "bad_steps": [5]}
    run(tmp_path / "straight", {"accumulate": 2}, **options)
    with pytest.raises(SystemExit):
        run(tmp_path / "broken", {"accumulate": 2}, signal_at=(8, 1), **options)
    run(tmp_path / "broken", {"accumulate": 2}, **options)
    assert_same_run(tmp_path / "straight", tmp_path / "broken", 20)


def test_accumulation_needs_a_task_that_counts(tmp_path):
    class Mute(ToyTask):
        loss_counts = None

    with pytest.raises(ConfigError, match=r"train\.accumulate is above 1"):
        train(Mute(), config_for(tmp_path, accumulate=2))


@pytest.mark.parametrize(
    ("before", "now", "advice"),
    [(4, 1, "use train.accumulate 4"), (1, 2, "use train.accumulate 1")],
)
def test_another_number_of_batches_a_step_is_refused(tmp_path, before, now, advice):
    run(tmp_path, {"accumulate": before})
    with pytest.raises(ConfigError, match=f"a run of {before} batches a step.*{advice}"):
        run(tmp_path, {"accumulate": now, "max_steps": 30})


def test_a_spike_is_skipped_where_that_is_asked_for(tmp_path):
    config = {"max_steps": 60, "spike_factor": 20.0, "save_every": 7}
    run(tmp_path / "skips", config, spikes=[50])
    lines = [json.loads(line) for line in (tmp_path / "skips" / "bad_batches.jsonl").open()]
    assert [(line["step"], line["loss_is_finite"]) for line in lines] == [(51, True)]
    run(tmp_path / "does_not", {"max_steps": 60}, spikes=[50])
    assert not (tmp_path / "does_not" / "bad_batches.jsonl").exists()
    with pytest.raises(SystemExit):
        run(tmp_path / "broken", config, spikes=[50], signal_at=(45, 0))
    run(tmp_path / "broken", config, spikes=[50])
    assert_same_run(tmp_path / "skips", tmp_path / "broken", 60)


def test_checkpoints_of_every_nth_step_stay(tmp_path):
    run(tmp_path, {"keep_last": 1, "keep_every": 10, "max_steps": 30})
    assert steps_kept(tmp_path) == [10, 15, 20, 30]  # 15 is half way


def test_the_cuts_of_every_step_are_written_and_equal_after_an_interruption(tmp_path):
    config = {"log_batches": True, "accumulate": 2}
    run(tmp_path / "straight", config)
    with pytest.raises(SystemExit):
        run(tmp_path / "broken", config, signal_at=(9, 0))
    (tmp_path / "broken" / "batches-00000.jsonl").open("a").write('{"step": 19, "ids": []}\n{"st')
    run(tmp_path / "broken", config)
    straight, broken = (
        (tmp_path / name / "batches-00000.jsonl").read_text() for name in ("straight", "broken")
    )
    assert straight == broken
    first = json.loads(straight.splitlines()[0])
    assert first == {"step": 1, "epoch": 0, "ids": [["cut-0-0-0"], first["ids"][1]]}


def test_the_longest_batch_is_tried_first_and_leaves_no_trace(tmp_path, caplog):
    tried = []

    class Trying(ToyTask):
        def longest_batch(self, epoch, num_shares):
            tried.append((epoch, num_shares))
            return global_batch(99, 0)

    run(tmp_path / "plain", dropout=0.3)
    with caplog.at_level("INFO"):
        train(Trying(dropout=0.3), config_for(tmp_path / "tried"))
    assert tried == [(0, 1)]
    assert_same_run(tmp_path / "plain", tmp_path / "tried", 20)
    assert "longest batch tried" in caplog.text and "20 steps like it take" in caplog.text
    assert "0.00 M parameters" in caplog.text and "optimiser" in caplog.text
    train(Trying(), config_for(tmp_path / "untried", try_longest=False))
    assert len(tried) == 1


def test_memory_that_is_not_enough_is_found_before_the_first_step(tmp_path):
    class Huge(ToyTask):
        def longest_batch(self, epoch, num_shares):
            full = self.model.forward

            def forward(batch):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

            self.model.forward = forward if self.model.forward == full else full
            return global_batch(0, 0)

    with pytest.raises(
        ConfigError, match=r"longest batch.*batch\.max_duration_s.*Tried to allocate"
    ):
        train(Huge(), config_for(tmp_path))
    assert steps_kept(tmp_path) == []


def test_a_profile_of_some_steps_is_written(tmp_path):
    train(ToyTask(), config_for(tmp_path, max_steps=30), profile=True)
    trace = gzip.decompress((tmp_path / "profile" / "trace-00000.json.gz").read_bytes())
    assert len(json.loads(trace)["traceEvents"]) > 1000
    assert "aten::addmm" in (tmp_path / "profile" / "operations-00000.txt").read_text()
    run(tmp_path / "straight", {"max_steps": 30})
    assert_same_run(tmp_path, tmp_path / "straight", 30)


def test_no_step_asks_the_device_for_a_number(tmp_path, monkeypatch):
    """From the second step on (the first compares names): metrics, averages, verdict included."""

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert "local_scalar_dense" not in str(function), "the host read a tensor"
            return function(*args, **(kwargs or {}))

    # What a batch counts is asked before its tensors go to the device, so it may be read there.
    counts = ToyTask.loss_counts

    def loss_counts(self, batch):
        with _disable_current_modes():
            return counts(self, batch)

    monkeypatch.setattr(ToyTask, "loss_counts", loss_counts)
    plain, watched = Trainer._train_step, []

    def step(self, batches):
        if self.position.step == 0:
            return plain(self, batches)
        watched.append(self.position.step)
        with NoReads():
            return plain(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", step)
    run(tmp_path, {"accumulate": 2, "averaging_every": 1}, dropout=0.3)
    assert watched == list(range(1, 20))

    def reading(self, batches):
        with NoReads():
            return plain(self, batches) or self.state.average.values["scale"].item() * 0

    monkeypatch.setattr(Trainer, "_train_step", reading)
    with pytest.raises(AssertionError, match="the host read a tensor"):
        run(tmp_path / "reads")
