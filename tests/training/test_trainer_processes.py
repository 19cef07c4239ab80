"""Two processes under torchrun, and processes that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_comparison import assert_same_run, curves
from toy_scenarios import PLAIN
from toy_task import ToyTask, config_for

from spear.training import load_weights, train
from spear.training.checkpoint import checkpoint_path, load_state
from spear.training.metrics import read_jsonl

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes did all scenarios of `toy_scenarios`."""
    root = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HERE / "toy_scenarios.py"), str(root)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_two_processes_train_like_one_with_all_the_data(two_processes, tmp_path):
    """Shares are 1 item and the rest; rank 0 never has anything for the audio term."""
    train(ToyTask(**PLAIN), config_for(tmp_path))
    for weights in ("last", "averaged"):
        one, _ = load_weights(tmp_path, weights)
        two, _ = load_weights(two_processes / "plain", weights)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    for first, second in zip(curves(tmp_path), curves(two_processes / "plain"), strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    position = load_state(checkpoint_path(tmp_path, 20))["position"]
    assert load_state(checkpoint_path(two_processes / "plain", 20))["position"] == position


def test_two_interrupted_processes_end_with_the_same_bits(two_processes):
    for rank in (0, 1):
        ends = (two_processes / f"ends-{rank}.txt").read_text().splitlines()
        assert f"broken: stopped {128 + signal.SIGUSR1}" in ends
        assert "resumed: done" in ends and "straight: done" in ends
    assert_same_run(two_processes / "straight", two_processes / "broken", 20)
    rngs = sorted(p.name for p in checkpoint_path(two_processes / "broken", 20).glob("rng-*"))
    assert rngs == ["rng-00000.safetensors", "rng-00001.safetensors"]


def test_all_ranks_skip_a_step_that_is_bad_on_one(two_processes):
    records = list(read_jsonl(two_processes / "straight" / "bad_batches.jsonl"))
    found = [(r["step"], r["rank"], r["loss_is_finite"], len(r["ids"])) for r in records]
    assert found[0] == (9, 0, True, 1)
    assert found[1][:3] == (9, 1, False)
    assert records[0]["ids"] == ["cut-1-1-0"] and records[1]["ids"][0] == "cut-1-1-1"
    weights, _ = load_weights(two_processes / "straight")
    assert all(value.isfinite().all() for value in weights.values())


def test_all_ranks_give_up_together(two_processes):
    for rank in (0, 1):
        ends = (two_processes / f"ends-{rank}.txt").read_text()
        assert "hopeless: error step 4: 2 steps in a row" in ends


def test_another_number_of_processes_goes_on_near_the_same_place(two_processes, tmp_path, caplog):
    folder = tmp_path / "fewer"
    (two_processes / "plain").rename(folder)
    try:
        task = ToyTask(**PLAIN)
        train(task, config_for(folder, max_steps=25))
    finally:
        folder.rename(two_processes / "plain")
    assert "was written by 2 processes, now there are 1" in caplog.text
    # Step 20 is the 6th of epoch 2; 6 steps of two processes would be 12 of one: a full epoch.
    assert task.starts[0][0] == 3
    assert curves(two_processes / "plain")[-1]["step"] == 25


def test_killed_at_any_moment_the_same_command_finishes_the_job(tmp_path):
    options = {"dropout": 0.3, "freeze_steps": 5, "steps_in_epoch": 30}
    config = {"max_steps": 40, "save_every": 1, "keep_last": 2}
    train(ToyTask(**options), config_for(tmp_path / "straight", **config))
    arguments = {
        "train": {"output_dir": str(tmp_path / "killed"), **config},
        "task": {**options, "step_s": 0.02},
    }
    command = [sys.executable, str(HERE / "toy_task.py"), json.dumps(arguments)]
    num_kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pid")  # imports are done
        delay = random.uniform(0.05, 1.5)
        if num_kills == 0:
            time.sleep(delay)
            process.kill()
            num_kills += 1
        _, errors = process.communicate(timeout=120)
        print(f"after {delay:.3f} s: {process.returncode}")  # noqa: T201
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert process.returncode == 0, errors
    assert_same_run(tmp_path / "straight", tmp_path / "killed", 40)
    steps = [line["step"] for line in read_jsonl(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == sorted(steps)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_a_termination_signal_saves_and_reports_that_the_job_is_not_done(tmp_path):
    arguments = {
        "train": {"output_dir": str(tmp_path), "max_steps": 100_000, "save_every": 0},
        "task": {"step_s": 0.01},
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "toy_task.py"), json.dumps(arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command goes on from there" in errors
    weights, config = load_weights(tmp_path)
    assert config["family"] == "toy" and int(weights["seen"]) > 0
