"""Two processes under torchrun, and processes that are killed."""

import contextlib
import json
import os
import random
import shutil
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

from spear.errors import ConfigError
from spear.training import load_weights, train
from spear.training.checkpoints.checkpoint import checkpoint_path, load_state
from spear.training.logs.metrics import read_jsonl

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("two_processes")  # one start of torchrun for all
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes did all scenarios of `toy_scenarios`."""
    root = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*TORCHRUN, str(HERE / "toy_scenarios.py"), str(root)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
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


def test_all_ranks_skip_a_step_that_is_bad_on_one(two_processes):
    records = list(read_jsonl(two_processes / "straight" / "bad_batches.jsonl"))
    found = [(r["step"], r["rank"], r["loss_is_finite"], len(r["ids"])) for r in records]
    assert found[0] == (9, 0, True, 1)
    assert found[1][:3] == (9, 1, False)
    assert records[0]["ids"] == ["cut-1-1-0"] and records[1]["ids"][0] == "cut-1-1-1"
    weights, _ = load_weights(two_processes / "straight")
    assert all(value.isfinite().all() for value in weights.values())


def test_sharded_processes_train_like_whole_ones(two_processes):
    """FSDP2 beside DDP; two toy layers thaw in step 5, and a scale has no dimension to cut."""
    for name, other in (("sharded", "plain"), ("sharded_rough", "straight")):
        for weights in ("last", "averaged"):
            one, two = (load_weights(two_processes / run, weights)[0] for run in (name, other))
            for key in one:
                torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
        pairs = zip(curves(two_processes / name), curves(two_processes / other), strict=True)
        for first, second in pairs:
            assert first == pytest.approx(second, rel=1e-4)
    assert_same_run(two_processes / "sharded", two_processes / "sharded_half", 20)


def test_a_sharded_run_is_continued_by_one_process(two_processes, tmp_path):
    shutil.copytree(two_processes / "sharded", tmp_path / "run")
    train(ToyTask(**PLAIN), config_for(tmp_path / "run", accumulate=2, max_steps=22))
    assert load_state(checkpoint_path(tmp_path / "run", 22))["position"]["step"] == 22


def test_all_ranks_give_up_together(two_processes):
    for rank in (0, 1):
        ends = (two_processes / f"ends-{rank}.txt").read_text()
        assert "hopeless: error step 4: 2 steps in a row" in ends


def test_fewer_processes_go_on_in_the_same_order(two_processes, tmp_path):
    """2 processes x 1 batch, continued by 1 process x 2: the same cuts, the same numbers."""
    folder = tmp_path / "fewer"
    shutil.copytree(two_processes / "half", folder)
    with pytest.raises(ConfigError, match=r"2 batches a step.*use train.accumulate 2"):
        train(ToyTask(**PLAIN), config_for(folder))
    train(ToyTask(**PLAIN), config_for(folder, accumulate=2, log_batches=True))
    one, two = (load_weights(path)[0] for path in (folder, two_processes / "plain"))
    for name in set(one) - {"seen"}:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    consumed = [line["ids"] for line in read_jsonl(folder / "batches-00000.jsonl")]
    by_rank = [
        [line["ids"][0] for line in read_jsonl(two_processes / "plain" / f"batches-0000{r}.jsonl")]
        for r in (0, 1)
    ]
    assert consumed[-10:] == [list(pair) for pair in zip(*by_rank, strict=True)][-10:]


def test_a_rank_that_hangs_ends_all_and_says_where(tmp_path):
    """Rank 1 sleeps for ever in step 6; rank 0 waits for it, as others would in NCCL."""
    arguments = {
        "train": {"output_dir": str(tmp_path), "hang_timeout_s": 10.0},
        "task": {"hang_at": 5, "bad_on_rank": 1},
    }
    done = subprocess.run(
        [*TORCHRUN, str(HERE / "toy_task.py"), json.dumps(arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode != 0
    assert "no progress for" in done.stderr
    stacks = [(tmp_path / f"hang-0000{rank}.txt") for rank in (0, 1)]
    assert any(path.is_file() for path in stacks)
    assert "toy_task.py" in "".join(path.read_text() for path in stacks if path.is_file())


class Forks:
    """A process with everything imported, which forks one that trains whenever it is asked to."""

    def __init__(self, arguments: dict[str, object]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "toy_forks.py"), json.dumps(arguments)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self) -> int:
        """Starts training; returns the number of the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """Returns the status of the process that was started last."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def test_killed_at_any_moment_the_same_command_finishes_the_job(tmp_path):
    """SIGKILL twenty-four times: at random, and a third of them while a checkpoint is written."""
    options = {"dropout": 0.3, "freeze_steps": 5, "steps_in_epoch": 30}
    config = {"max_steps": 40, "save_every": 1, "keep_last": 2, "log_batches": True}
    train(ToyTask(**options), config_for(tmp_path / "straight", **config))
    folder = tmp_path / "killed"
    forks = Forks({"train": {"output_dir": str(folder), **config}, "task": options})
    num_in_save = 0
    for number in range(24):
        if (folder / "checkpoints" / "step-00000040").exists():  # every kill is to meet a run
            forks.ask()
            assert forks.wait() == 0
            assert_same_run(tmp_path / "straight", folder, 40)
            shutil.rmtree(folder)
        pid = forks.ask()
        if number % 3 == 0:
            num_in_save += wait_for_a_save(folder)
        else:
            time.sleep(random.uniform(0.0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = forks.wait()
        print(f"kill {number}: {status}, steps {checkpoint_steps(folder)}")  # noqa: T201
        assert status in (0, -signal.SIGKILL)
    assert num_in_save >= 4, "kills in the middle of a save"
    forks.ask()
    assert forks.wait() == 0
    assert_same_run(tmp_path / "straight", folder, 40)
    for name in ("metrics.jsonl", "batches-00000.jsonl"):
        steps = [line["step"] for line in read_jsonl(folder / name)]
        assert steps == sorted(steps)
    consumed = [(p / "batches-00000.jsonl").read_text() for p in (tmp_path / "straight", folder)]
    assert consumed[0] == consumed[1]
    assert not list((folder / "checkpoints").glob(".*"))


def checkpoint_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/step-*"))


def wait_for_a_save(folder: Path) -> bool:
    """Returns as soon as a checkpoint is half written; False if none was seen for a while."""
    deadline = time.monotonic() + 15.0
    while time.monotonic() < deadline:
        if next(folder.glob("checkpoints/.step-*"), None) is not None:
            return True
    return False


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
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command goes on from there" in errors
    weights, config = load_weights(tmp_path)
    assert config["family"] == "toy" and int(weights["seen"]) > 0
