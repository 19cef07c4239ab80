"""FSDP beside DDP, in two processes: the same course, the same files, half the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_comparison import assert_equal
from safetensors.torch import load_file
from sharding_scenarios import SHAPES, make_model
from torch import nn

from spear.errors import CheckpointError, ConfigError
from spear.system.distributed import Ranks
from spear.system.weights import load_exact
from spear.training.checkpoints import checkpoint as checkpoints
from spear.training.checkpoints.sharding import (
    finish_gradients,
    gather_on_main,
    gathered,
    local_bytes,
    shard_like,
    shard_model,
)

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("two_processes")
ALONE = Ranks(torch.device("cpu"))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """The folder in which two processes did all of `sharding_scenarios`."""
    root = tmp_path_factory.mktemp("shards")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "sharding_scenarios.py"), str(root)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "UserWarning" not in done.stderr
    return root


@pytest.fixture(scope="module")
def results(scenarios):
    """What each rank wrote down."""
    return [json.loads((scenarios / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def assert_close(first: Path, second: Path) -> None:
    """Compares everything that two checkpoints hold, but for rounding."""
    for name in (checkpoints.MODEL, checkpoints.AVERAGED):
        one, two = load_file(first / name), load_file(second / name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert value.dtype == two[key].dtype
            torch.testing.assert_close(value, two[key], rtol=1e-5, atol=1e-5, msg=key)
    one, two = (checkpoints.load_optimizer(path)["optimizer"] for path in (first, second))
    assert one["parameters"].keys() == two["parameters"].keys()
    for key, state in one["parameters"].items():
        assert state["step"] == two["parameters"][key]["step"]
        torch.testing.assert_close(
            state["delta"], two["parameters"][key]["delta"], rtol=1e-3, atol=1e-5, msg=key
        )


def test_shards_train_as_whole_models_do(scenarios, results):
    for rank in (0, 1):
        ddp, fsdp = results[rank]["ddp"], results[rank]["fsdp"]
        assert fsdp["losses"] == pytest.approx(ddp["losses"], rel=1e-5)
        assert fsdp["norms"] == pytest.approx(ddp["norms"], rel=1e-5)
    assert_close(scenarios / "ddp" / "end", scenarios / "fsdp" / "end")
    start = make_model(seed=0).state_dict()
    moved = load_file(scenarios / "fsdp" / "end" / checkpoints.MODEL)
    still = [name for name, value in moved.items() if torch.equal(value, start[name])]
    assert len(still) < 0.05 * len(moved), still


@pytest.mark.parametrize("way", ["fsdp to ddp", "ddp to fsdp", "fsdp to fsdp"])
def test_either_goes_on_with_the_others_checkpoint(scenarios, results, way):
    assert results[0][way] == pytest.approx(results[0]["ddp"]["losses"][3:], rel=1e-5)
    assert_close(scenarios / way.replace(" to ", "_"), scenarios / "ddp" / "end")


def test_shards_go_on_from_their_own_checkpoint_with_the_same_bits(scenarios):
    one, two = scenarios / "fsdp_fsdp", scenarios / "fsdp" / "end"
    for name in (checkpoints.MODEL, checkpoints.AVERAGED):
        assert_equal(load_file(one / name), load_file(two / name), name)
    assert_equal(checkpoints.load_optimizer(one), checkpoints.load_optimizer(two), "optimizer")


def test_a_process_holds_half_of_everything(results):
    for rank in (0, 1):
        share = results[rank]["fsdp"]["bytes"] / results[rank]["ddp"]["bytes"]
        assert 0.49 < share < 0.52


def test_processes_may_validate_unequal_numbers_of_batches(results):
    assert results[0]["fsdp"]["evaluated"] == pytest.approx(
        results[0]["ddp"]["evaluated"], rel=1e-5
    )


def test_what_is_not_finite_on_one_process_changes_nothing_on_any(results):
    for rank in (0, 1):
        assert results[rank]["spoilt"] == {"same": True, "happened": False, "next": True}


def test_weights_may_travel_as_bfloat16(results):
    exact = results[0]["fsdp"]["losses"]
    assert results[0]["bf16"] == pytest.approx(exact, rel=2e-2)
    assert results[0]["bf16"] != exact


def test_the_optimizer_updates_shards_as_it_updates_whole_tensors(scenarios):
    for rank in (0, 1):
        whole = torch.load(scenarios / f"optimizer-whole-{rank}.pt")
        shards = torch.load(scenarios / f"optimizer-shards-{rank}.pt")
        assert whole.keys() == {*SHAPES, "norm", "factor"}
        for name, value in shards.items():
            if value is not None:  # on rank 0, or never sharded
                torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6, msg=name)
        assert rank == 1 or None not in shards.values()


def test_one_process_has_nothing_to_spread():
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="torchrun"):
        shard_model(model, ALONE)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.grad.clone()
    finish_gradients(model, ALONE)
    with gathered(model):
        assert torch.equal(model.weight.grad, before)
    state = {"weights": [model.weight], "step": 3}
    assert gather_on_main(state, ALONE) == state
    assert local_bytes(state) == 24


def test_what_does_not_fit_is_named_by_the_loader():
    model = nn.Linear(3, 2)
    saved = {"weight": torch.zeros(2, 4), "other": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"missing: bias; .*unexpected: other; .*shape: weight"
    ):
        load_exact(model, shard_like(saved, model.state_dict()), "here")
