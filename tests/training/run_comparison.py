"""Whether two runs ended in the same state, to the bit; for the tests of the loop."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spear.training.checkpoints.checkpoint import (
    AVERAGED,
    MODEL,
    checkpoint_path,
    load_optimizer,
    load_state,
)
from spear.training.logs.metrics import read_jsonl

TIMED = ("speed/", "data/wait", "elapsed_s", "memory/")


def assert_same_run(first: Path, second: Path, step: int, metrics: bool = True) -> None:
    """Compares weights, averages, optimiser, counters and curves of two runs at a step."""
    one, two = checkpoint_path(first, step), checkpoint_path(second, step)
    for name in (MODEL, AVERAGED):
        assert_equal(load_file(one / name), load_file(two / name), name)
    assert_equal(load_optimizer(one), load_optimizer(two), "optimizer")
    states = [load_state(path) for path in (one, two)]
    for state in states:
        del state["elapsed_s"]
    assert_equal(states[0], states[1], "state")
    if metrics:
        assert_equal(curves(first), curves(second), "metrics")


def curves(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        {tag: value for tag, value in line.items() if not tag.startswith(TIMED)}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]


def assert_equal(first: Any, second: Any, where: str) -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key, value in first.items():
            assert_equal(value, second[key], f"{where}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for index, (one, two) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, two, f"{where}[{index}]")
    else:
        assert first == second, where
