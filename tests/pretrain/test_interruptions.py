"""Interrupted equals uninterrupted: weights, averages, optimiser, curves and the cuts consumed.

With one process and with two, without data workers and with two; stopped in the middle of an epoch,
at its end and after a validation.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interruption_scenarios import STEPS, main

from tests.pretrain.small_shards import write_corpus

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from run_comparison import assert_same_run

from spear.training.checkpoints.checkpoint import list_checkpoints, step_of
from spear.training.logs.metrics import read_jsonl

pytestmark = pytest.mark.xdist_group("interruptions")
HERE = Path(__file__).parent


def make_corpus(root):
    write_corpus(root / "train", num_speech=24, num_audio=12)
    write_corpus(root / "valid", num_speech=6, num_audio=4, seed=1)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = make_corpus(tmp_path_factory.mktemp("alone"))
    main(root)
    return root, 1


@pytest.fixture(scope="module")
def together(tmp_path_factory, repo_dir):
    root = make_corpus(tmp_path_factory.mktemp("together"))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join(str(path) for path in (repo_dir, HERE))
    done = subprocess.run(
        [*words, str(HERE / "interruption_scenarios.py"), str(root)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root, 2


def consumed(folder, rank):
    lines = list(read_jsonl(folder / f"batches-{rank:05d}.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return lines


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", ["killed", "epoch", "validated"])
@pytest.mark.parametrize("processes", ["alone", "together"])
def test_an_interrupted_run_ends_with_the_same_bits(request, processes, stop, num_workers):
    root, world_size = request.getfixturevalue(processes)
    straight, broken = root / "straight", root / f"{stop}-{num_workers}"
    assert_same_run(straight, broken, STEPS)
    for rank in range(world_size):
        assert consumed(straight, rank) == consumed(broken, rank)


def test_the_stops_were_where_they_should_be(alone):
    """A signal leaves a checkpoint at its step; a kill leaves none."""
    root, _ = alone
    regular = {step_of(path) for path in list_checkpoints(root / "straight")}
    for stop in ("epoch", "validated"):
        saved = {step_of(path) for path in list_checkpoints(root / f"{stop}-0")}
        assert saved >= regular
    assert 4 in {step_of(path) for path in list_checkpoints(root / "validated-0")}
    epochs = {line["epoch"] for line in consumed(root / "straight", 0)}
    assert len(epochs) > 1, "the run goes through an epoch's end"
