"""Plans an epoch of tens of millions of made-up cuts and checks every promise of the plan.

    python local/benchmarks/epoch_plan.py --clips 60000000 --world-size 64

Planning and seeking run in processes of their own, whose time and peak memory are reported. Two
data sets take part, speech (weight 1) and general audio (weight 2). Writes a Markdown report.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from spear.data.index.arrays import map_arrays, write_arrays
from spear.data.index.clip_table import ClipTable, to_samples
from spear.data.index.plan import BatchConfig, BatchPlan

CLIPS_PER_SHARD = 1000
AUDIO_SHARE = 0.1
"""Of the cuts; the rest is speech."""
AUDIO_WEIGHT = 2.0


def write_table(path: Path, num_clips: int) -> None:
    """Writes the lengths of made-up clips: speech of 0.6 to 30 s, many near 14 s; audio of 10 s."""
    num_audio = int(num_clips * AUDIO_SHARE)
    rng = np.random.default_rng(0)
    num_samples = np.empty(num_clips, np.uint32)
    for begin in range(0, num_clips, 1 << 22):
        end = min(begin + (1 << 22), num_clips)
        speech = rng.gamma(4.0, 3.2, end - begin).clip(0.6, 29.9)
        audio = np.where(rng.random(end - begin) < 0.8, 10.0, rng.uniform(1, 10, end - begin))
        is_audio = np.arange(begin, end) >= num_clips - num_audio
        num_samples[begin:end] = to_samples(np.where(is_audio, audio, speech))
    write_arrays(path, {"num_samples": num_samples})


def open_table(path: Path) -> ClipTable:
    """Maps the lengths; shards and sources follow from the number of clips."""
    num_samples = map_arrays(path, ["num_samples"])["num_samples"]
    num_clips = len(num_samples)
    first = np.append(np.arange(0, num_clips, CLIPS_PER_SHARD), num_clips)
    border = num_clips - int(num_clips * AUDIO_SHARE)
    source = (first[:-1] >= border).astype(np.int64)
    return ClipTable(num_samples, first, source, np.array([1.0, AUDIO_WEIGHT]), "made up")


def plan_of(folder: Path, arguments: argparse.Namespace) -> BatchPlan:
    """Opens the table and the plan, which may be in the folder already."""
    config = BatchConfig(max_duration_s=arguments.max_duration_s)
    return BatchPlan(open_table(folder / "table"), 0, config, keep_in=folder / "plans")


def planning(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Plans epoch 1."""
    begin = time.perf_counter()
    plan = plan_of(folder, arguments)
    steps = plan.steps(1, arguments.world_size)
    return {"plan_s": time.perf_counter() - begin, "steps": steps}


def seeking(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Opens the run anew and asks for a batch in the middle, as a restart does, then for others."""
    begin = time.perf_counter()
    plan = plan_of(folder, arguments)
    middle = plan.steps(1, arguments.world_size) // 2
    plan.batch(1, middle, arguments.world_size - 1, arguments.world_size)
    first_s = time.perf_counter() - begin
    steps = np.random.default_rng(1).integers(0, plan.steps(1, arguments.world_size), 1000)
    begin = time.perf_counter()
    for step in steps.tolist():
        plan.batch(1, step, 0, arguments.world_size)
    return {"first_s": first_s, "next_s": (time.perf_counter() - begin) / len(steps)}


def checking(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Counts how often each clip comes, and measures padding and differences between ranks."""
    plan = plan_of(folder, arguments)
    epoch = plan.epoch(1, arguments.world_size)
    table = plan.clips
    times = np.bincount(epoch.order, minlength=len(table))
    weights = np.repeat(table.weights[table.source], np.diff(table.first))
    lengths = table.num_samples[epoch.order]
    longest = np.maximum.reduceat(lengths, epoch.bounds[:-1])[epoch.steps].astype(np.float64)
    shards = (epoch.order // CLIPS_PER_SHARD).astype(np.int64)
    some = np.linspace(0, len(epoch.steps) - 100, 20).astype(int)
    visited = [
        len(
            np.unique(
                [
                    shards[epoch.bounds[b] : epoch.bounds[b + 1]][:1]
                    for b in epoch.steps[step : step + 100].ravel()
                ]
            )
        )
        for step in some
    ]
    return {
        "wrong": int((times != weights).sum()),
        "padding": plan.padding_share(1, arguments.world_size),
        "ranks": float((longest.max(1) / longest.min(1)).mean()),
        "filled": float(
            (lengths.sum(dtype=np.uint64) / 16000) / (epoch.steps.size * arguments.max_duration_s)
        ),
        "shards_in_100_steps": float(np.mean(visited)),
    }


PARTS = {"planning": planning, "seeking": seeking, "checking": checking}


def measure(part: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs a part in a process of its own; adds its peak memory."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    for name in ("clips", "world_size", "max_duration_s"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(arguments: argparse.Namespace) -> str:
    """Measures everything and returns a page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table", arguments.clips)
        made, sought, checked = (measure(part, folder, arguments) for part in PARTS)
        size = sum(one.stat().st_size for one in (folder / "plans").rglob("*.npy"))
        hours = open_table(folder / "table").num_samples.sum(dtype=np.uint64) / 16000 / 3600
    rows = [
        ("cuts, hours of audio", f"{arguments.clips:,}, {hours:,.0f}"),
        ("ranks, seconds in a batch", f"{arguments.world_size}, {arguments.max_duration_s:g}"),
        ("steps of the epoch", f"{made['steps']:,}"),
        ("plan of an epoch", f"{made['plan_s']:.1f} s, {made['peak_gib']:.2f} GiB at most"),
        ("plan on disk", f"{size / 2**20:,.0f} MiB"),
        (
            "seek to the middle in a new process",
            f"{sought['first_s']:.3f} s, {sought['peak_gib']:.2f} GiB at most",
        ),
        ("every further batch", f"{sought['next_s'] * 1e6:.0f} us"),
        ("cuts that come another number of times than their weight", f"{checked['wrong']:,}"),
        ("padding", f"{checked['padding']:.2%}"),
        ("batches filled", f"{checked['filled']:.2%}"),
        ("longest clip of a step over its ranks, largest / smallest", f"{checked['ranks']:.4f}"),
        (
            "shards that the first clips of 100 steps come from",
            f"{checked['shards_in_100_steps']:.0f}",
        ),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    head = f"# Plan of an epoch\n\n{os.cpu_count()} cores.\n\n| what | measured |\n| --- | --- |"
    return f"{head}\n{table}\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=60_000_000)
    parser.add_argument("--world-size", type=int, default=64)
    parser.add_argument("--max-duration-s", type=float, default=600.0)
    parser.add_argument("--output", type=Path, help="file for the report")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        result = PARTS[arguments.part](arguments.folder, arguments)
        result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))  # noqa: T201
        return
    page = report(arguments)
    if arguments.output:
        arguments.output.write_text(page, "utf-8")
    print(page)  # noqa: T201


if __name__ == "__main__":
    main()
