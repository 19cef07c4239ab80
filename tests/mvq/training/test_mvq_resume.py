"""Training that is stopped and goes on, and training by two processes: the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spear.errors import CheckpointError, ConfigError
from spear.mvq import Quantizer, TrainingBudget, train_quantizer
from spear.mvq.training import alternation
from tests.mvq.mvq_frames import correlated_frames
from tests.mvq.training.quantizer_runs import BUDGET, train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(tmp_path_factory.mktemp("straight"))
    finally:
        torch.set_num_threads(threads)


def start(folder: Path, *launcher: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(HERE / "quantizer_runs.py"), str(folder)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output[-3000:]
    return output


def test_two_processes_give_the_bits_of_one(straight: Quantizer, tmp_path: Path) -> None:
    finish(start(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"))
    for rank in (0, 1):
        found = Quantizer.load(tmp_path / f"rank-{rank}.safetensors")
        assert found.id == straight.id
        assert json.loads(found.metadata["history"]) == json.loads(straight.metadata["history"])


def test_killed_and_started_again_gives_the_same_bits(straight: Quantizer, tmp_path: Path) -> None:
    state = tmp_path / "q.training.safetensors"
    process = start(tmp_path)
    deadline = time.monotonic() + 100
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.is_file()
    finish(start(tmp_path))
    assert Quantizer.load(tmp_path / "rank-0.safetensors").id == straight.id


@pytest.mark.parametrize("after", [1, 3, 4])
def test_stopped_after_any_round_it_goes_on_to_the_same_bits(
    straight: Quantizer, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rounds = alternation.Alternation.step, []

    def step(self: alternation.Alternation) -> alternation.Round:
        if len(rounds) == after:
            raise KeyboardInterrupt
        rounds.append(real(self))
        return rounds[-1]

    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        patch.setattr(alternation.Alternation, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert train(tmp_path).id == straight.id


def test_history_tells_how_every_round_ended(straight: Quantizer) -> None:
    history = json.loads(straight.metadata["history"])
    assert [one["iteration"] for one in history] == list(range(BUDGET["num_iterations"]))
    errors = [one["relative_error"] for one in history]
    assert errors[-1] < errors[0]
    assert history[0]["num_dead"] > 0
    assert all(0.5 < one["least_entropy"] <= 1 for one in history)
    frames = correlated_frames(6000, 12)
    target = straight.normalize(frames)
    decoded = straight.normalize(straight.decode(straight.encode(frames, num_passes=1)))
    spread = (target - target.mean(dim=0)).square().sum()
    # The last round's search was hasty, its frames are some of all.
    assert errors[-1] == pytest.approx(float((target - decoded).square().sum() / spread), rel=0.1)


def test_state_of_another_training_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    frames, state = correlated_frames(6000, 12), tmp_path / "q.training.safetensors"
    budget = TrainingBudget(**BUDGET)
    with pytest.raises(ConfigError, match="differs in metadata, normalize_channels, seed, sizes"):
        train_quantizer(frames, 2, 40, seed=1, budget=budget, state_path=state)
    with pytest.raises(ConfigError, match="differs in frames"):
        train_quantizer(
            frames + 1,
            3,
            40,
            normalize_channels=True,
            budget=budget,
            metadata={"teacher": "{}"},
            state_path=state,
        )
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is broken"):
        train(tmp_path)
