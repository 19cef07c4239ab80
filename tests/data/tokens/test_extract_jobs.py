"""Several processes on one folder, killed and started again: the same bytes as of one."""

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from spear.data.index.shard_folder import ShardFolder
from spear.mvq import Quantizer
from tests.data.tokens.extract_process import start

Options = list[str]


@pytest.fixture
def options(folder: ShardFolder, tmp_path: Path) -> Options:
    """Options of the command for two teachers without weights."""
    quantizers = {}
    for name, dim in (("logmel", 160), ("mfcc", 78)):
        generator = torch.Generator().manual_seed(dim)
        quantizers[name] = str(tmp_path / f"{name}.safetensors")
        Quantizer(torch.randn(4, 16, dim, generator=generator) * 5).save(Path(quantizers[name]))
    entries = ", ".join(f'"{name}": {{"quantizer": "{q}"}}' for name, q in quantizers.items())
    shards = f'["{folder.path}"]'
    return f"--shards|{shards}|--teachers|{{{entries}}}|--device|cpu|--batch_s|1.5".split("|")


def finish(process: BaseProcess) -> None:
    process.join(timeout=1800)
    assert process.exitcode == 0


def tokens_of(folder: ShardFolder) -> dict[str, bytes]:
    """Every file of tokens, hidden ones too; reports have pictures, which are no tokens."""
    files = sorted(folder.path.glob("*_tokens*"))
    return {path.name: path.read_bytes() for path in files if path.suffix != ".png"}


def remove_tokens(folder: ShardFolder) -> None:
    for path in folder.path.glob("*_tokens*"):
        path.unlink()


def test_jobs_ranks_and_killed_ones_write_the_bytes_of_one(
    folder: ShardFolder, options: Options
) -> None:
    finish(start(options))
    expected = tokens_of(folder)
    names = [f"{teacher}_tokens" for teacher in ("logmel", "mfcc")]
    assert {f"{name}.json" for name in names} <= expected.keys()

    remove_tokens(folder)
    jobs = [start([*options, "--job", f"{job}", "--num_jobs", "2"]) for job in (1, 2)]
    for job in jobs:
        finish(job)
    assert tokens_of(folder) == expected

    remove_tokens(folder)
    ranks = [start(options, RANK=f"{rank}", WORLD_SIZE="2", LOCAL_RANK="0") for rank in (0, 1)]
    for process in ranks:
        finish(process)
    assert tokens_of(folder) == expected

    remove_tokens(folder)
    moments = random.Random(0)
    for _ in range(6):
        process = start(options)
        time.sleep(moments.uniform(0.1, 0.6))
        process.kill()
        process.join()
    finish(start(options))
    assert tokens_of(folder) == expected
    assert not list(folder.path.glob(".*"))
